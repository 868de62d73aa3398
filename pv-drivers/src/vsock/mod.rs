//! Streams between the guest and programs of the host: sockets.
//!
//! The host's port N is the Unix socket `PATH_N` there, if `hv run --vsock PATH` was said; a program of the host that connects to
//! `PATH` and writes `CONNECT N` comes to the guest's port N.
//!
//! It is on our own [`Queue`], not on `virtio-drivers`' sockets: those spin until the device has read each packet, and cannot be
//! waited for by a task.
//!
//! Start at [`Vsock::connect`] and [`Vsock::listen`]; `state` is what is behind them.

mod packet;
mod state;
mod stream;

pub use stream::{VsockListener, VsockStream};

use crate::buffers::{Inbound, Outbound};
use crate::queue::Queue;
use crate::registered::Registered;
use crate::{Error, Transport};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use guest_sdk::events::Channel;
use guest_sdk::sync::{Guard, Lock};
use guest_sdk::task::Source;
use hv_abi::device::kind;
use packet::Header;
use state::State;

/// The context identifier of the host.
pub const HOST: u32 = 2;

const RX: u16 = 0;
const TX: u16 = 1;
/// Packets that the device may send before the guest has looked, and bytes of each.
const RX_SIZE: usize = 16;
const RX_BYTES: usize = size_of::<Header>() + (8 << 10);
/// Packets that wait until the device has read them.
const TX_SIZE: usize = 32;

/// The sockets of a guest. Copies are of the same.
#[derive(Clone)]
pub struct Vsock(Arc<Registered<Sockets>>);

/// What all of a guest's sockets share.
struct Sockets {
    /// Its queues are to be gone before the transport.
    state: Lock<State>,
    transport: Transport,
}

impl Vsock {
    /// The VM's.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if it has none, or another driver has it.
    pub fn find() -> Result<Self, Error> {
        use virtio_drivers::transport::Transport as _;
        let mut transport = Transport::find(kind::VSOCK)?;
        transport.negotiate(0)?;
        let mut rx = Queue::<_, RX_SIZE>::new(&mut transport, RX)?;
        let tx = Queue::<Outbound, TX_SIZE>::new(&mut transport, TX)?;
        let cid: u64 = transport.config(0)?;
        for _ in 0..RX_SIZE {
            let room = Box::new(Inbound(vec![0; RX_BYTES]));
            rx.submit(room).map_err(|_| Error::NoMemory)?;
        }
        let state = State::new(cid as u32, rx, tx);
        transport.finish_init();
        let sockets = Sockets { state: Lock::new(state), transport };
        sockets.state().ring();
        Ok(Self(Arc::new(Registered::new(sockets))))
    }

    /// The guest's context identifier.
    pub fn cid(&self) -> u32 {
        self.0.state().cid()
    }

    /// Connects to a port of the host's.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] if nobody is there; [`Error::Broken`].
    pub async fn connect(&self, port: u32) -> Result<VsockStream, Error> {
        let stream = self.begin(port)?;
        self.0.ready(|sockets, waker| sockets.state().try_connected(stream.ports(), waker)).await?;
        Ok(stream)
    }

    /// As [`connect`](Self::connect); the vCPU sleeps until it is done.
    ///
    /// # Errors
    ///
    /// As [`connect`](Self::connect).
    pub fn connect_blocking(&self, port: u32) -> Result<VsockStream, Error> {
        let stream = self.begin(port)?;
        self.0.wait(|sockets| sockets.state().try_connected(stream.ports(), None))?;
        Ok(stream)
    }

    fn begin(&self, port: u32) -> Result<VsockStream, Error> {
        let ports = self.0.state().connect(port)?;
        Ok(VsockStream::new(self.0.clone(), ports))
    }

    /// Listens on a port of the guest's.
    ///
    /// # Errors
    ///
    /// [`Error::InUse`] if somebody does.
    pub fn listen(&self, port: u32) -> Result<VsockListener, Error> {
        self.0.state().listen(port)?;
        Ok(VsockListener::new(self.0.clone(), port))
    }
}

impl Sockets {
    fn state(&self) -> Guard<'_, State> {
        self.state.lock()
    }
}

impl Source for Sockets {
    fn channel(&self) -> Channel {
        self.transport.channel()
    }

    fn look(&self) -> bool {
        self.state().look()
    }

    fn arm(&self) -> bool {
        self.state().arm()
    }
}

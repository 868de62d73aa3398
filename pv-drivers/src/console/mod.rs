//! The console as a device: a terminal, and ports with names beside it.
//!
//! The SDK's console (`guest_sdk::print!`) is another one, and is there in every VM; this one is for a terminal whose size is
//! known and whose keys all come (`hv run --terminal`), and for streams of bytes to files and programs of the host (`--port`).
//!
//! Start at [`Console::find`]; `state` is what is behind it.

mod control;
mod port;
mod state;

pub use port::Port;

use crate::queue::Queue;
use crate::registered::Registered;
use crate::{Error, Transport};
use alloc::string::String;
use alloc::sync::Arc;
use guest_sdk::events::Channel;
use guest_sdk::sync::{Guard, Lock};
use guest_sdk::task::Source;
use hv_abi::device::kind;
use state::{PortState, State};

/// The most ports that a console may have here.
const PORTS_MAX: u16 = 31;

mod feature {
    pub(super) const SIZE: u64 = 1 << 0;
    pub(super) const MULTIPORT: u64 = 1 << 1;
}

/// A console. Copies are of the same.
#[derive(Clone)]
pub struct Console(Arc<Registered<Ports>>);

/// What all ports of a console share.
struct Ports {
    /// Its queues are to be gone before the transport.
    state: Lock<State>,
    transport: Transport,
}

/// The size of a window, in characters; zeros: it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Characters of a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

impl Size {
    /// As the device says it: columns, then rows in the upper half.
    fn of(word: u32) -> Self {
        Self { columns: word as u16, rows: (word >> 16) as u16 }
    }
}

impl Console {
    /// The VM's. The vCPU sleeps until the host has told of all its ports.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if it has none, or another driver has it; [`Error::Broken`].
    pub fn find() -> Result<Self, Error> {
        use virtio_drivers::transport::Transport as _;
        let mut transport = Transport::find(kind::CONSOLE)?;
        if transport.negotiate(feature::SIZE | feature::MULTIPORT)? & feature::MULTIPORT == 0 {
            return Err(Error::Unsupported);
        }
        let [size, count] = transport.config::<[u32; 2]>(0)?;
        let count = u16::try_from(count).ok().filter(|count| (1..=PORTS_MAX).contains(count));
        let count = count.ok_or(Error::Unsupported)?;
        let messages = (Queue::new(&mut transport, 2)?, Queue::new(&mut transport, 3)?);
        let mut port = |number| {
            let input = if number == 0 { 0 } else { 2 + 2 * number };
            PortState::new(Queue::new(&mut transport, input)?, Queue::new(&mut transport, input + 1)?)
        };
        let ports = (0..count).map(&mut port).collect::<Result<_, _>>()?;
        let state = State::new(Size::of(size), ports, messages)?;
        transport.finish_init();
        let console = Self(Arc::new(Registered::new(Ports { state: Lock::new(state), transport })));
        console.0.state().begin();
        console.0.wait(|ports| ports.state().try_announced())?;
        Ok(console)
    }

    /// Takes a port by its number: 0 is the terminal.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if there is none; [`Error::InUse`] if somebody has it.
    pub fn port(&self, number: usize) -> Result<Port, Error> {
        self.0.state().open(number)?;
        Ok(Port::new(self.0.clone(), number))
    }

    /// Takes a port by its name.
    ///
    /// # Errors
    ///
    /// As [`port`](Self::port).
    pub fn port_named(&self, name: &str) -> Result<Port, Error> {
        let number = self.0.state().names().position(|of| of == name);
        self.port(number.ok_or(Error::NoDevice)?)
    }

    /// The names of its ports, by their numbers.
    pub fn names(&self) -> alloc::vec::Vec<String> {
        self.0.state().names().map(String::from).collect()
    }

    /// The size of the terminal's window.
    pub fn size(&self) -> Size {
        self.0.look();
        self.0.state().size()
    }

    /// Waits until the size is another than this one; gives it.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub async fn resized(&self, from: Size) -> Result<Size, Error> {
        self.0.ready(|ports, waker| ports.state().try_resized(from, waker)).await
    }

    /// As [`resized`](Self::resized); the vCPU sleeps meanwhile.
    ///
    /// # Errors
    ///
    /// As [`resized`](Self::resized).
    pub fn resized_blocking(&self, from: Size) -> Result<Size, Error> {
        self.0.wait(|ports| ports.state().try_resized(from, None))
    }
}

impl Ports {
    fn state(&self) -> Guard<'_, State> {
        self.state.lock()
    }
}

impl Source for Ports {
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

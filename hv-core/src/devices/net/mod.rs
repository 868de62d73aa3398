//! The network device (Virtual I/O Device 1.3, section 5.1): Ethernet frames between a guest and a descriptor of the host's.
//!
//! What is at the other end of the descriptor is no business of the monitor's, which looks at no frame: it moves them, each as a
//! whole, between guest memory and the descriptor, without a copy of its own if they are long. Nothing is lost on the way: while the
//! descriptor takes no more, what the guest sends waits in its ring, and while the guest has no buffers, what comes waits in the
//! descriptor. Frames that cannot be delivered, too long for the guest's buffers or with nobody at the other end, are counted.
//!
//! Start at [`Card::process`], then at [`stream`].

mod stream;
mod tap;
mod vectors;

use super::chain::Chain;
use super::line::Line;
use super::ring::Ring;
use super::{Broken, Device, Interest};
use hv_abi::device::kind;
use rustix::fd::BorrowedFd;
use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::Relaxed;
use stream::Stream;
use tap::Tap;

/// Descriptors of each queue.
const QUEUE: u16 = 256;
/// Frames that are moved in one go, each way.
const BATCH: usize = 64;
/// Bytes of an Ethernet frame: from a bare header to a header and the longest IP packet.
const FRAME: RangeInclusive<usize> = 14..=14 + 65_535;
/// Bytes of `struct virtio_net_hdr`, before each frame in guest memory.
const HEADER: usize = 12;
/// The header of a frame in one buffer, of which nothing is left to do.
const PLAIN: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Feature bits.
mod feature {
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const STATUS: u64 = 1 << 16;
}

/// A network card that a guest is to have.
#[derive(Debug)]
pub struct Net {
    /// Where its frames go, and come from.
    pub link: NetLink,
    /// Its address.
    pub mac: [u8; 6],
    /// The longest IP packet on its network, at least 68 bytes.
    pub mtu: u16,
}

/// What a network card is connected to.
#[derive(Debug)]
pub enum NetLink {
    /// A stream of Ethernet frames, each behind its length, 32 bits and big-endian; as `passt` and QEMU's `-netdev stream` speak it.
    Stream(UnixStream),
    /// A tap of the host's, opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, whose header has its usual ten bytes, and `O_NONBLOCK`.
    Tap(File),
}

/// Why frames are not moved.
#[derive(Debug)]
enum Stop {
    /// The driver broke the rules.
    Broken(Broken),
    /// The other end has gone, or cannot be understood.
    Gone(io::Error),
}

impl From<Broken> for Stop {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

/// What a link does with frames.
trait Link: Send {
    /// Takes what the driver has to send, as far as it can. Whether there was something.
    fn transmit(&mut self, ring: &mut Ring, counted: &Line) -> Result<bool, Stop>;

    /// Gives the driver what has come, as far as it has room. Whether there was something.
    fn receive(&mut self, ring: &mut Ring, counted: &Line) -> Result<bool, Stop>;

    /// The descriptor.
    fn source(&self) -> BorrowedFd<'_>;

    /// Whether frames wait until the descriptor takes more.
    fn is_full(&self) -> bool;

    /// Whether frames may wait until the driver has room.
    fn is_starved(&self) -> bool;

    /// Drops the chains of a queue; what the descriptor was given half of is kept elsewhere.
    fn forget(&mut self, queue: usize);

    /// There will be no link: gives all chains back.
    fn give_back(&mut self, rings: &mut [Option<Ring>], counted: &Line);
}

/// The device.
pub(super) struct Card {
    mac: [u8; 6],
    mtu: u16,
    /// `None`: the other end has gone.
    link: Option<Box<dyn Link>>,
    /// Which queues the driver has set up.
    queues: [bool; 2],
}

impl Card {
    pub(super) fn new(net: Net) -> Self {
        let link: Box<dyn Link> = match net.link {
            NetLink::Stream(socket) => Box::new(Stream::new(socket)),
            NetLink::Tap(tap) => Box::new(Tap::new(tap)),
        };
        Self { mac: net.mac, mtu: net.mtu, link: Some(link), queues: [false; 2] }
    }

    fn run(link: &mut dyn Link, rings: &mut [Option<Ring>], line: &Line, look: bool) -> Result<bool, Stop> {
        let mut worked = false;
        if let Some(ring) = &mut rings[TRANSMIT]
            && (look || !link.is_full())
        {
            worked |= link.transmit(ring, line)?;
        }
        if let Some(ring) = &mut rings[RECEIVE]
            && (look || link.is_starved())
        {
            worked |= link.receive(ring, line)?;
        }
        Ok(worked)
    }
}

impl Device for Card {
    fn kind(&self) -> u32 {
        kind::NETWORK
    }

    fn features(&self) -> u64 {
        feature::MAC | feature::MTU | feature::STATUS
    }

    fn queues(&self) -> &'static [u16] {
        &[QUEUE, QUEUE]
    }

    /// `struct virtio_net_config`.
    fn config(&self) -> Vec<u8> {
        let up = u16::from(self.link.is_some());
        let pairs = 1_u16;
        [&self.mac[..], &up.to_le_bytes(), &pairs.to_le_bytes(), &self.mtu.to_le_bytes()].concat()
    }

    fn reset(&mut self) {
        self.stop_queue(RECEIVE);
        self.stop_queue(TRANSMIT);
    }

    fn stop_queue(&mut self, queue: usize) {
        if let Some(link) = &mut self.link {
            link.forget(queue);
        }
    }

    fn sources(&self) -> Vec<(BorrowedFd<'_>, Interest)> {
        let Some(link) = &self.link else { return Vec::new() };
        let reads = self.queues[RECEIVE] && !link.is_starved();
        let writes = self.queues[TRANSMIT] && link.is_full();
        let interest = match (reads, writes) {
            (true, false) => Interest::Read,
            (false, true) => Interest::Write,
            (true, true) => Interest::Both,
            (false, false) => return Vec::new(),
        };
        vec![(link.source(), interest)]
    }

    fn waits_for(&self, queue: usize) -> bool {
        let Some(link) = &self.link else { return queue == TRANSMIT };
        if queue == TRANSMIT { !link.is_full() } else { link.is_starved() }
    }

    fn process(&mut self, rings: &mut [Option<Ring>], line: &Line, look: bool) -> Result<bool, Broken> {
        self.queues = [RECEIVE, TRANSMIT].map(|queue| rings[queue].is_some());
        let Some(link) = &mut self.link else { return drop_all(&mut rings[TRANSMIT], line) };
        match Self::run(&mut **link, rings, line, look) {
            Ok(worked) => Ok(worked),
            Err(Stop::Broken(broken)) => Err(broken),
            Err(Stop::Gone(why)) => {
                tracing::warn!(%why, "a network card has lost its link");
                link.give_back(rings, line);
                self.link = None;
                line.set_config(self.config());
                Ok(true)
            }
        }
    }
}

/// The next frame that a driver sends: its length, and its chain without the header. Those that are no frames are counted as dropped.
fn pop_frame(ring: &mut Ring, line: &Line) -> Result<Option<(usize, Chain)>, Broken> {
    while let Some(mut chain) = ring.pop()? {
        // Nothing in it is of use: no feature was offered that gives it a meaning.
        let header = chain.read(&mut [0; HEADER]);
        header.map_err(|_| Broken("a buffer for sending is shorter than the header of a frame"))?;
        let length = chain.readable();
        if FRAME.contains(&length) {
            return Ok(Some((length, chain)));
        }
        line.dropped.fetch_add(1, Relaxed);
        ring.push(chain);
    }
    Ok(None)
}

/// There is nobody to send to.
fn drop_all(ring: &mut Option<Ring>, line: &Line) -> Result<bool, Broken> {
    let Some(ring) = ring else { return Ok(false) };
    let mut dropped = 0;
    while dropped < BATCH
        && let Some((_, chain)) = pop_frame(ring, line)?
    {
        dropped += 1;
        ring.push(chain);
    }
    line.dropped.fetch_add(dropped as u64, Relaxed);
    Ok(dropped > 0)
}

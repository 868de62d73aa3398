//! The user-mode network, seen from a guest whose stack is smoltcp's, and from real sockets on the host's loopback.
//!
//! Start at [`Guest`].

mod datagrams;
mod guarded;
mod hostile;
mod tcp;

use super::super::frames::{FrameError, FrameReader, FrameWriter, LONGEST_FRAME};
use super::{DNS, GATEWAY, GUEST, Options, PREFIX_LENGTH, UserNetwork};
use rustix::event::{PollFd, PollFlags, Timespec};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::AnySocket;
use smoltcp::time::Instant as SmolInstant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use std::net::{SocketAddr, SocketAddrV4};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const ADDRESS: EthernetAddress = EthernetAddress([2, 0, 0, 0, 0, 15]);

/// A guest on a user-mode network, which runs on a thread.
struct Guest {
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    started: Instant,
    network: JoinHandle<Result<(), FrameError>>,
    /// Where its published ports are.
    published: Vec<SocketAddr>,
}

/// One that may connect to this host's loopback.
fn on_loopback() -> Options {
    Options { host_loopback: true, ..Options::default() }
}

/// What the guest calls an address of this host's loopback.
fn as_guest_sees(address: SocketAddr) -> SocketAddrV4 {
    assert!(address.ip().is_loopback());
    SocketAddrV4::new(GATEWAY, address.port())
}

impl Guest {
    fn start(options: &Options) -> Self {
        let (near, far) = UnixStream::pair().unwrap();
        let network = UserNetwork::new(options).unwrap();
        let published = network.tcp.published().chain(network.udp.published()).collect();
        let network = std::thread::spawn(move || network.serve(&far));
        Self::on(near, network, published)
    }

    /// One at this end of a network's link.
    fn on(near: UnixStream, network: JoinHandle<Result<(), FrameError>>, published: Vec<SocketAddr>) -> Self {
        let mut link = Link { socket: near, reader: FrameReader::new(0), writer: FrameWriter::new(0) };
        let mut interface = Interface::new(Config::new(ADDRESS.into()), &mut link, SmolInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(GUEST), PREFIX_LENGTH)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        let sockets = SocketSet::new(Vec::new());
        Self { link, interface, sockets, started: Instant::now(), network, published }
    }

    /// Runs its stack until `done` gives something.
    fn until<T>(&mut self, what: &str, mut done: impl FnMut(&mut SocketSet<'static>) -> Option<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(100);
        loop {
            let now = SmolInstant::from_micros(self.started.elapsed().as_micros() as i64);
            self.interface.poll(now, &mut self.link, &mut self.sockets);
            if let Some(result) = done(&mut self.sockets) {
                // What that has given the stack is sent.
                self.interface.poll(now, &mut self.link, &mut self.sockets);
                return result;
            }
            assert!(Instant::now() < deadline, "it took too long: {what}");
            self.link.wait(Duration::from_millis(5));
        }
    }

    fn socket<T: AnySocket<'static>>(&mut self, handle: SocketHandle) -> &mut T {
        self.sockets.get_mut(handle)
    }

    /// Closes the link, upon which the network ends.
    fn end(self) {
        drop(self.link);
        self.network.join().unwrap().unwrap();
    }
}

/// The guest's end of the stream of frames.
struct Link {
    socket: UnixStream,
    reader: FrameReader,
    writer: FrameWriter,
}

impl Link {
    fn wait(&mut self, longest: Duration) {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, !self.writer.is_empty());
        let timeout = Timespec { tv_sec: 0, tv_nsec: longest.subsec_nanos().into() };
        rustix::event::poll(&mut [PollFd::new(&self.socket, flags)], Some(&timeout)).unwrap();
        self.writer.flush(&self.socket).unwrap();
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: SmolInstant) -> Option<(Received, Sending<'_>)> {
        let mut next = || Some(Received(self.reader.next_frame().unwrap()?.to_vec()));
        let frame = next().or_else(|| {
            self.reader.fill(&self.socket).unwrap();
            Some(Received(self.reader.next_frame().unwrap()?.to_vec()))
        })?;
        Some((frame, Sending(self)))
    }

    fn transmit(&mut self, _: SmolInstant) -> Option<Sending<'_>> {
        self.writer.has_room().then_some(Sending(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = LONGEST_FRAME;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut Link);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let result = self.0.writer.push(length, f);
        self.0.writer.flush(&self.0.socket).unwrap();
        result
    }
}

/// Bytes of which each place has its own, so that nothing lost or moved goes unseen.
fn pattern(length: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(length as u64);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

//! The user-mode network: a guest's connections become sockets of this process, so it takes no right but to have sockets.
//!
//! To the guest it is a network of two, 10.0.2.0/24: the guest is 10.0.2.15, the gateway 10.0.2.2, and a name server answers
//! at 10.0.2.3. TCP that the guest sends anywhere is answered here, by smoltcp, in the name of whoever it is for, and what it
//! carries goes on by a connection of the host's ([`tcp`]). Datagrams go by a socket for each pair of ends ([`udp`]), names to
//! the host's resolvers ([`dns`]). What a guest may reach is decided in one place ([`policy`]).
//!
//! # The guest is hostile
//!
//! Whatever it sends gets an answer or none. All that it can make this process hold is bounded: connections, sockets, queries,
//! and bytes of each. Nothing is read that there is no room for: not from the guest while it does not take what is sent to it,
//! nor from a host's socket while the guest's window is shut. So a sender is slowed down by TCP, and not stored.
//!
//! One thread, which waits by `poll(2)` and otherwise never. Start at [`UserNetwork::serve`].

mod dhcp;
mod dns;
mod guard;
mod link;
mod packet;
mod policy;
mod publish;
mod tcp;
mod udp;

use super::frames::{FrameError, FrameReader};
use link::ToGuest;
use packet::Packet;
use policy::Policy;
pub use publish::{Protocol, Publish};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Length of the network's prefix, 10.0.2.0/24.
const PREFIX_LENGTH: u8 = 24;
/// This process, to the guest.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Where it finds a name server.
const DNS: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 3), 53);
/// The guest.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);

/// Bytes that are read from the guest at once.
const READ: usize = 256 << 10;

/// What a user-mode network is to do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether the guest reaches services of the host's loopback, at 10.0.2.2.
    pub host_loopback: bool,
    /// Ports of the host that lead to the guest.
    pub published: Vec<Publish>,
    /// Whom to ask for names. Without one, each query is answered by a failure.
    pub resolvers: Vec<SocketAddr>,
}

pub use dns::resolvers;
pub use guard::guard;

/// A port of the host's that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("the host does not let `{publish}` be published")]
pub struct PublishError {
    publish: Publish,
    source: io::Error,
}

/// A network with one guest on it.
pub struct UserNetwork {
    policy: Policy,
    tcp: tcp::Flows,
    udp: udp::Flows,
    dns: dns::Forwarder,
}

/// What is waited for.
#[derive(Clone, Copy)]
enum Source {
    Guest,
    TcpListener(usize),
    Tcp(Key),
    UdpListener(usize),
    Udp(Key),
    Query(u64),
}

/// The two ends of a flow: the guest's port, and who it talks to, as it sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest_port: u16,
    peer: SocketAddrV4,
}

/// Descriptors to wait on.
#[derive(Default)]
struct Wanted<'a> {
    descriptors: Vec<PollFd<'a>>,
    sources: Vec<Source>,
}

impl<'a> Wanted<'a> {
    /// Nothing is waited for without flags, not even errors: whoever wants nothing has read what there was.
    fn add(&mut self, source: Source, descriptor: &'a impl AsFd, flags: PollFlags) {
        if !flags.is_empty() {
            self.descriptors.push(PollFd::new(descriptor, flags));
            self.sources.push(source);
        }
    }
}

impl UserNetwork {
    /// Listens on the ports that are published. It needs no further files.
    ///
    /// # Errors
    ///
    /// A port cannot be had.
    pub fn new(options: &Options) -> Result<Self, PublishError> {
        let mut network = Self {
            policy: Policy::new(options),
            tcp: tcp::Flows::new(),
            udp: udp::Flows::default(),
            dns: dns::Forwarder::new(&options.resolvers),
        };
        for publish in &options.published {
            let published = match publish.protocol {
                Protocol::Tcp => network.tcp.listen(publish),
                Protocol::Udp => network.udp.listen(publish),
            };
            published.map_err(|source| PublishError { publish: *publish, source })?;
        }
        Ok(network)
    }

    /// Serves the guest at the other end of `socket`, until that is closed.
    ///
    /// # Errors
    ///
    /// The socket carries something else than frames, or the host fails to wait.
    pub fn serve(mut self, socket: &UnixStream) -> Result<(), FrameError> {
        let (mut reader, mut to_guest) = (FrameReader::new(READ), ToGuest::new());
        loop {
            let ready = self.wait(socket, &to_guest)?;
            let now = Instant::now();
            for (source, flags) in ready {
                match source {
                    Source::Guest => match reader.fill(socket) {
                        Err(FrameError::Closed) => return Ok(()),
                        result => _ = result?,
                    },
                    Source::TcpListener(index) => self.tcp.accept(index),
                    Source::Tcp(key) => self.tcp.ready(key, flags, &mut to_guest),
                    Source::UdpListener(index) => self.udp.receive_published(index, now, &mut to_guest),
                    Source::Udp(key) => self.udp.receive(key, now, &mut to_guest),
                    Source::Query(id) => self.dns.receive(id, now, &mut to_guest),
                }
            }
            while to_guest.has_room()
                && let Some(frame) = reader.next_frame()?
            {
                self.take(frame, now, &mut to_guest);
            }
            self.tcp.advance(&mut to_guest);
            self.udp.expire(now);
            self.dns.expire(now, &mut to_guest);
            match to_guest.flush(socket) {
                Err(FrameError::Closed) => return Ok(()),
                result => result?,
            }
        }
    }

    /// Waits until there is something to do, and says where.
    fn wait(&mut self, socket: &UnixStream, to_guest: &ToGuest) -> io::Result<Vec<(Source, PollFlags)>> {
        let deadlines = [self.tcp.timeout(to_guest), self.udp.timeout(), self.dns.timeout()];
        let timeout = deadlines
            .into_iter()
            .flatten()
            .min()
            .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let mut wanted = Wanted::default();
        let room = to_guest.has_room();
        let mut of_guest = PollFlags::empty();
        of_guest.set(PollFlags::IN, room);
        of_guest.set(PollFlags::OUT, !to_guest.is_empty());
        wanted.add(Source::Guest, socket, of_guest);
        if room {
            self.udp.sources(&mut wanted);
            self.dns.sources(&mut wanted);
        }
        self.tcp.sources(&mut wanted, room);
        match rustix::event::poll(&mut wanted.descriptors, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = wanted.descriptors.iter().map(PollFd::revents);
        let all = wanted.sources.into_iter().zip(flags);
        Ok(all.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    /// Does with a frame of the guest's what it asks for.
    fn take(&mut self, frame: &[u8], now: Instant, to_guest: &mut ToGuest) {
        let Some((sender, packet)) = Packet::parse(frame) else { return };
        to_guest.address = sender;
        match packet {
            Packet::Local => self.tcp.ingress(frame, to_guest),
            Packet::Tcp { key, syn, rst } => self.tcp.take(key, syn, rst, frame, &self.policy, to_guest),
            Packet::Dhcp(message) => dhcp::answer(message, to_guest),
            Packet::Udp { key, payload } if key.peer == DNS => {
                self.dns.ask(key.guest_port, payload, now, to_guest);
            }
            Packet::Udp { key, payload } => self.udp.send(key, payload, &self.policy, now),
        }
    }
}

#[cfg(test)]
mod tests;

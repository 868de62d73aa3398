//! TCP: the guest's connections end here, at sockets of smoltcp's, and go on as connections of the host's.
//!
//! A guest that connects is answered once it is known how: its first segment is kept while the host connects. Then it is
//! given to smoltcp with a socket that listens for it, or, if the host was refused, without one, which makes smoltcp refuse it.
//! Bytes are moved between the two ends without a buffer in between, as long as one has some and the other room, and the end of
//! one direction is passed on by itself.
//!
//! Start at [`Flows::take`] for what comes from the guest, and at [`Open::pump`] for the bytes.

use super::link::{GATEWAY_ADDRESS, Link, ToGuest};
use super::policy::Policy;
use super::publish::Publish;
use super::{DNS, GATEWAY, GUEST, Key, PREFIX_LENGTH, Source, Wanted};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::{Duration as SmolDuration, Instant as SmolInstant};
use smoltcp::wire::{IpAddress, IpCidr};
use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Connections at once, and bytes that each holds in each direction. It is what a guest can make this process hold.
pub(super) const FLOWS: usize = 512;
const BUFFER: usize = 128 << 10;

/// A first segment has no need to be longer; one that is has data, and is refused.
const LONGEST_SYN: usize = 1514;

/// How long a guest may take to answer the first segment that it is sent, and any later one.
const OPENING: SmolDuration = SmolDuration::from_secs(20);
const SILENCE: SmolDuration = SmolDuration::from_secs(300);

/// Ports that the gateway connects to the guest from.
const FIRST_OWN_PORT: u16 = 49_152;

/// All connections.
pub(super) struct Flows {
    interface: Interface,
    sockets: SocketSet<'static>,
    flows: HashMap<Key, Flow>,
    listeners: Vec<(TcpListener, u16)>,
    next_port: u16,
    started: Instant,
}

enum Flow {
    /// The host connects. The guest's first segment waits for what comes of it.
    Connecting {
        host: TcpStream,
        syn: Box<[u8]>,
    },
    Open(Open),
}

/// A connection with both of its ends.
struct Open {
    host: TcpStream,
    socket: SocketHandle,
    /// The host's end may have bytes.
    readable: bool,
    /// The host's end does not take more now.
    stuck: bool,
    /// The host's end has said all that it had to say; smoltcp's socket knows.
    host_done: bool,
    /// The guest has; and the host's end knows.
    guest_done: bool,
    shut: bool,
    /// The host's end failed; smoltcp's socket is aborted.
    failed: bool,
    established: bool,
}

impl Flows {
    pub(super) fn new() -> Self {
        let mut config = Config::new(GATEWAY_ADDRESS.into());
        config.random_seed = random_seed();
        let mut to_guest = ToGuest::new(); // only asked for what a link is like
        let mut link = Link { frame: None, to_guest: &mut to_guest };
        let mut interface = Interface::new(config, &mut link, SmolInstant::ZERO);
        interface.update_ip_addrs(|addresses| {
            for address in [GATEWAY, *DNS.ip()] {
                addresses
                    .push(IpCidr::new(IpAddress::Ipv4(address), PREFIX_LENGTH))
                    .expect("smoltcp is built for two addresses and more");
            }
        });
        interface.set_any_ip(true);
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            flows: HashMap::new(),
            listeners: Vec::new(),
            next_port: FIRST_OWN_PORT,
            started: Instant::now(),
        }
    }

    /// Publishes a port of the guest's.
    pub(super) fn listen(&mut self, publish: &Publish) -> io::Result<()> {
        let listener = TcpListener::bind(publish.host)?;
        listener.set_nonblocking(true)?;
        self.listeners.push((listener, publish.guest_port));
        Ok(())
    }

    /// What is waited for. What may need a frame sent is not, while there is no room for one.
    pub(super) fn sources<'a>(&'a self, wanted: &mut Wanted<'a>, room: bool) {
        if self.flows.len() < FLOWS {
            for (index, (listener, _)) in self.listeners.iter().enumerate() {
                wanted.add(Source::TcpListener(index), listener, PollFlags::IN);
            }
        }
        for (key, flow) in &self.flows {
            let mut flags = PollFlags::empty();
            let host = match flow {
                Flow::Connecting { host, .. } => {
                    flags.set(PollFlags::OUT, room);
                    host
                }
                Flow::Open(open) => {
                    let takes = self.sockets.get::<Socket<'_>>(open.socket).can_send();
                    flags.set(PollFlags::IN, takes && !open.readable && !open.host_done);
                    flags.set(PollFlags::OUT, open.stuck);
                    &open.host
                }
            };
            wanted.add(Source::Tcp(*key), host, flags);
        }
    }

    /// How long there is nothing to do, if nothing comes.
    pub(super) fn timeout(&mut self, to_guest: &ToGuest) -> Option<Duration> {
        if !to_guest.has_room() {
            return None; // it is waited for room
        }
        self.interface.poll_delay(self.now(), &self.sockets).map(Into::into)
    }

    fn now(&self) -> SmolInstant {
        SmolInstant::from_micros(self.started.elapsed().as_micros() as i64)
    }

    /// Takes a segment of the guest's. There is room for an answer.
    pub(super) fn take(
        &mut self,
        key: Key,
        syn: bool,
        rst: bool,
        frame: &[u8],
        policy: &Policy,
        to_guest: &mut ToGuest,
    ) {
        match self.flows.get(&key) {
            Some(Flow::Connecting { .. }) if rst => _ = self.flows.remove(&key),
            Some(Flow::Connecting { .. }) => {} // repeated, for the answer takes long
            None if syn => match self.connect(key, frame, policy) {
                Ok(flow) => _ = self.flows.insert(key, flow),
                Err(error) => {
                    tracing::debug!(peer = %key.peer, %error, "a connection of the guest's is refused");
                    self.ingress(frame, to_guest);
                }
            },
            _ => self.ingress(frame, to_guest),
        }
    }

    /// Begins to connect to whom the guest wants.
    fn connect(&self, key: Key, syn: &[u8], policy: &Policy) -> io::Result<Flow> {
        let to = policy.destination(key.peer).ok_or(ErrorKind::PermissionDenied)?;
        if self.flows.len() >= FLOWS || syn.len() > LONGEST_SYN {
            return Err(ErrorKind::QuotaExceeded.into());
        }
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Flow::Connecting { host: socket.into(), syn: syn.into() })
    }

    /// Gives a frame to smoltcp, which may answer it. There is room for that.
    pub(super) fn ingress(&mut self, frame: &[u8], to_guest: &mut ToGuest) {
        let mut link = Link { frame: Some(frame), to_guest };
        self.interface.poll_ingress_single(self.now(), &mut link, &mut self.sockets);
    }

    /// The host's end of a flow is ready for something.
    pub(super) fn ready(&mut self, key: Key, flags: PollFlags, to_guest: &mut ToGuest) {
        let over = PollFlags::HUP | PollFlags::ERR;
        match self.flows.get_mut(&key) {
            Some(Flow::Open(open)) => {
                open.readable |= flags.intersects(PollFlags::IN | over) && !open.host_done;
                open.stuck &= !flags.intersects(PollFlags::OUT | over);
            }
            Some(Flow::Connecting { .. }) if to_guest.has_room() => {
                if let Some(Flow::Connecting { host, syn }) = self.flows.remove(&key) {
                    self.connected(key, host, &syn, to_guest);
                }
            }
            _ => {}
        }
    }

    /// The host has connected, or was refused; and so is the guest.
    fn connected(&mut self, key: Key, host: TcpStream, syn: &[u8], to_guest: &mut ToGuest) {
        if !matches!(sockopt::socket_error(&host), Ok(Ok(()))) {
            self.ingress(syn, to_guest);
            return;
        }
        let mut socket = new_socket();
        let listens = socket.listen((IpAddress::Ipv4(*key.peer.ip()), key.peer.port()));
        let handle = self.sockets.add(socket);
        self.ingress(syn, to_guest);
        // It is the guest's, and no other: only this one listened. A segment that is broken has left it so.
        let taken = self.sockets.get::<Socket<'_>>(handle).state() == State::SynReceived;
        if listens.is_ok() && taken {
            self.flows.insert(key, Flow::Open(Open::new(host, handle)));
        } else {
            self.sockets.remove(handle);
        }
    }

    /// Takes the connections that wait at a published port, and connects them to the guest.
    pub(super) fn accept(&mut self, index: usize) {
        while self.flows.len() < FLOWS {
            let (listener, guest_port) = &self.listeners[index];
            let guest_port = *guest_port;
            let host = match listener.accept() {
                Ok((host, _)) => host,
                Err(error)
                    if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) =>
                {
                    continue;
                }
                Err(_) => return,
            };
            let Some(key) = self.own_key(guest_port) else { return };
            let mut socket = new_socket();
            let guest = (IpAddress::Ipv4(GUEST), guest_port);
            let gateway = (IpAddress::Ipv4(GATEWAY), key.peer.port());
            let connects = socket.connect(self.interface.context(), guest, gateway);
            if connects.is_ok() && host.set_nonblocking(true).is_ok() {
                let handle = self.sockets.add(socket);
                self.flows.insert(key, Flow::Open(Open::new(host, handle)));
            }
        }
    }

    /// A flow from the gateway to a port of the guest's, that there is not yet.
    fn own_key(&mut self, guest_port: u16) -> Option<Key> {
        (0..=FLOWS).find_map(|_| {
            let peer = SocketAddrV4::new(GATEWAY, self.next_port);
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_OWN_PORT);
            let key = Key { guest_port, peer };
            (!self.flows.contains_key(&key)).then_some(key)
        })
    }

    /// Moves what can be moved, sends what is to be sent, and forgets what has ended.
    pub(super) fn advance(&mut self, to_guest: &mut ToGuest) {
        for flow in self.flows.values_mut() {
            if let Flow::Open(open) = flow {
                open.advance(self.sockets.get_mut(open.socket));
            }
        }
        let now = self.now();
        let mut link = Link { frame: None, to_guest };
        while self.interface.poll_egress(now, &mut link, &mut self.sockets) == PollResult::SocketStateChanged
        {
        }
        self.flows.retain(|_, flow| {
            let Flow::Open(open) = flow else { return true };
            let lives = !open.has_ended(self.sockets.get(open.socket));
            if !lives {
                self.sockets.remove(open.socket);
            }
            lives
        });
    }
}

impl Open {
    fn new(host: TcpStream, socket: SocketHandle) -> Self {
        let _ = host.set_nodelay(true); // the guest has decided already what to send together
        Self {
            host,
            socket,
            readable: false,
            stuck: false,
            host_done: false,
            guest_done: false,
            shut: false,
            failed: false,
            established: false,
        }
    }

    fn advance(&mut self, socket: &mut Socket<'_>) {
        if !self.established && socket.may_send() {
            self.established = true;
            socket.set_timeout(Some(SILENCE));
        }
        if !self.failed && self.pump(socket).is_err() {
            self.failed = true;
            socket.abort();
        }
    }

    /// Moves bytes, and the ends of both directions, as far as it goes without waiting.
    fn pump(&mut self, socket: &mut Socket<'_>) -> io::Result<()> {
        use State::{CloseWait, Closing, LastAck, TimeWait};
        self.guest_done |= matches!(socket.state(), CloseWait | Closing | LastAck | TimeWait);
        while !self.stuck && socket.can_recv() {
            let moved = socket.recv(|bytes| moved(self.host.write(bytes))).unwrap_or(Ok(None))?;
            self.stuck = moved.is_none();
        }
        if self.guest_done && !self.shut && !socket.can_recv() {
            self.shut = true;
            self.host.shutdown(Shutdown::Write)?;
        }
        while self.readable && socket.can_send() {
            let moved = socket.send(|room| moved(self.host.read(room))).unwrap_or(Ok(None))?;
            self.readable = moved.is_some_and(|length| length > 0);
            if moved == Some(0) {
                self.host_done = true;
                socket.close();
            }
        }
        Ok(())
    }

    /// Whether there is no more to do. If not both sides had come to their ends, the host's peer is told.
    fn has_ended(&self, socket: &Socket<'_>) -> bool {
        let whole = self.host_done && self.guest_done && !self.failed;
        match socket.state() {
            State::TimeWait | State::Closed if whole => self.shut,
            State::Closed if socket.remote_endpoint().is_none() => {
                let _ = sockopt::set_socket_linger(&self.host, Some(Duration::ZERO)); // closing it resets it
                true
            }
            _ => false,
        }
    }
}

/// What smoltcp wants to know of a transfer, and what it came to: `None` if it would have had to wait.
fn moved(result: io::Result<usize>) -> (usize, io::Result<Option<usize>>) {
    match result {
        Ok(length) => (length, Ok(Some(length))),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => (0, Ok(None)),
        Err(error) => (0, Err(error)),
    }
}

fn new_socket() -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false); // the host's peer has decided already what to send together
    socket.set_timeout(Some(OPENING));
    socket
}

/// What sequence numbers begin from: not to be guessed by whom the guest talks to.
fn random_seed() -> u64 {
    let mut seed = [0; 8];
    // The kernel has entropy long before anybody can run this.
    let _ = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    u64::from_ne_bytes(seed)
}

/// What tests look at.
#[cfg(test)]
impl Flows {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn published(&self) -> impl Iterator<Item = std::net::SocketAddr> {
        self.listeners.iter().map(|(listener, _)| listener.local_addr().expect("it listens"))
    }
}

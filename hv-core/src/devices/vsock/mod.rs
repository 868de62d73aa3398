//! The socket device (Virtual I/O Device 1.3, section 5.10): streams between a guest's programs and Unix sockets of the host.
//!
//! It follows Firecracker's convention. A guest that connects to the host's port N is connected to the socket `PATH_N`. A program
//! of the host that wants the guest's port N connects to `PATH`, writes `CONNECT N` and a newline, and is answered with
//! `OK`, the port of its own end, and a newline, before the guest's first byte; or the stream ends.
//!
//! What a guest can have the host keep is bounded: [`CONNECTIONS`], and [`BUFFER`](connection::BUFFER) bytes for each.
//!
//! Start at [`Sockets::process`](Device::process), then at `connection`.

mod connection;
mod packet;

use super::chain::Chain;
use super::line::Line;
use super::ring::Ring;
use super::{Broken, Device, Interest};
use connection::{Connection, Greeting, Reset};
use hv_abi::device::kind;
use packet::{HOST, Header, Ports, STREAM, operation};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use zerocopy::IntoBytes;

/// Connections at once, with those that are yet to be.
const CONNECTIONS: usize = 128;
/// Packets that are answered with a reset, before their answers are sent.
const RESETS: usize = 64;
/// Packets of the guest's that are served in one go.
const BATCH: usize = 64;
/// Bytes of data in a packet to the guest.
const PACKET: usize = 64 << 10;
/// Ports of the host's for connections that it asks for: from here on.
const FIRST_PORT: u32 = 1 << 30;

const RX: usize = 0;
const TX: usize = 1;

mod feature {
    pub(super) const STREAM: u64 = 1 << 0;
}

/// Connects to the socket for a port of the host's.
type Connect = Box<dyn FnMut(u32) -> io::Result<UnixStream> + Send>;

/// The sockets of a guest.
pub struct Vsock {
    cid: u32,
    listener: UnixListener,
    connect: Connect,
}

/// Why a VM cannot have sockets so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum VsockError {
    #[error("{cid} cannot be a guest's context identifier; 3 to 4294967294 can, and usual is 3")]
    Cid { cid: u32 },
    #[error("`{path}` cannot be listened on")]
    Listen { path: PathBuf, source: io::Error },
    #[error("`{path}` is the socket of a program that listens on it")]
    InUse { path: PathBuf },
}

impl Vsock {
    /// For the guest with this context identifier, usually 3. Programs of the host connect to `path`. `connect` gives the stream
    /// for a port of the host's: usually [`connect`]; a program that has given up its rights to connect asks another for it.
    ///
    /// # Errors
    ///
    /// [`VsockError`].
    pub fn new(
        path: &Path,
        cid: u32,
        connect: impl FnMut(u32) -> io::Result<UnixStream> + Send + 'static,
    ) -> Result<Self, VsockError> {
        if !(3..u32::MAX).contains(&cid) {
            return Err(VsockError::Cid { cid });
        }
        let listener = listen(path)?;
        Ok(Self { cid, listener, connect: Box::new(connect) })
    }
}

/// Listens on a Unix socket. One that nobody listens on any more is replaced.
fn listen(path: &Path) -> Result<UnixListener, VsockError> {
    let cannot = |source| VsockError::Listen { path: path.to_owned(), source };
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match UnixStream::connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(cannot(error)),
                Ok(_) => return Err(VsockError::InUse { path: path.to_owned() }),
            }
            std::fs::remove_file(path).and_then(|()| UnixListener::bind(path)).map_err(cannot)?
        }
        bound => bound.map_err(cannot)?,
    };
    listener.set_nonblocking(true).map_err(cannot)?;
    Ok(listener)
}

/// Connects to the Unix socket for `port` beside `path`, which is `PATH_PORT`. It does not wait for a program that is slow to accept.
///
/// # Errors
///
/// The host's.
pub fn connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(name)?)?;
    Ok(socket.into())
}

/// The device.
pub(super) struct Sockets {
    vsock: Vsock,
    connections: BTreeMap<Ports, Connection>,
    greetings: Vec<Greeting>,
    /// Connections that the guest is to be told the end of.
    resets: VecDeque<Ports>,
    /// The connection that had the last packet for the guest: the next ones come first.
    last: Ports,
    next_port: u32,
    /// What a stream is read into.
    data: Box<[u8; PACKET]>,
    /// The driver has set up the queues of packets. Without them nobody takes what the host has.
    has_queues: bool,
}

impl Device for Sockets {
    fn kind(&self) -> u32 {
        kind::VSOCK
    }

    fn features(&self) -> u64 {
        feature::STREAM
    }

    fn queues(&self) -> &'static [u16] {
        &[128, 128, 8]
    }

    fn config(&self) -> Vec<u8> {
        u64::from(self.vsock.cid).to_le_bytes().to_vec()
    }

    fn reset(&mut self) {
        self.connections.clear();
        self.greetings.clear();
        self.resets.clear();
    }

    fn sources(&self) -> Vec<(BorrowedFd<'_>, Interest)> {
        if !self.has_queues {
            return Vec::new();
        }
        let listener = self.has_room().then_some((self.vsock.listener.as_fd(), Interest::Read));
        let greetings = self.greetings.iter().map(|greeting| (greeting.stream().as_fd(), Interest::Read));
        let streams = self.connections.values().filter_map(Connection::source);
        let streams = streams.map(|(stream, interest)| (stream.as_fd(), interest));
        listener.into_iter().chain(greetings).chain(streams).collect()
    }

    /// The third queue is for events, of which there are none yet.
    fn waits_for(&self, queue: usize) -> bool {
        match queue {
            RX => !self.resets.is_empty() || self.connections.values().any(Connection::has_packet),
            TX => self.resets.len() < RESETS,
            _ => false,
        }
    }

    fn process(&mut self, rings: &mut [Option<Ring>], _: &Line, look: bool) -> Result<bool, Broken> {
        self.has_queues = matches!(rings, [Some(_), Some(_), ..]);
        let [Some(rx), Some(tx), ..] = rings else { return Ok(false) };
        let mut worked = self.take_packets(tx)?;
        if look {
            worked |= self.look_at_streams();
        }
        worked |= self.send_packets(rx)?;
        self.connections.retain(|ports, connection| {
            let over = connection.is_over();
            if over {
                self.resets.push_back(*ports);
            }
            !over
        });
        Ok(worked)
    }
}

impl Sockets {
    pub(super) fn new(vsock: Vsock) -> Self {
        Self {
            vsock,
            connections: BTreeMap::new(),
            greetings: Vec::new(),
            resets: VecDeque::new(),
            last: Ports { host: 0, guest: 0 },
            next_port: FIRST_PORT,
            data: Box::new([0; PACKET]),
            has_queues: false,
        }
    }

    fn has_room(&self) -> bool {
        self.connections.len() + self.greetings.len() < CONNECTIONS
    }

    fn reset_connection(&mut self, ports: Ports) {
        self.connections.remove(&ports);
        self.resets.push_back(ports);
    }

    /// Serves packets of the guest's. Whether there were any.
    fn take_packets(&mut self, tx: &mut Ring) -> Result<bool, Broken> {
        let mut served = 0;
        while served < BATCH
            && self.resets.len() < RESETS
            && let Some(mut chain) = tx.pop()?
        {
            let short = |_| Broken("a packet of a socket has no header");
            let header: Header = chain.read_value().map_err(short)?;
            if header.length as usize > chain.readable() {
                return Err(Broken("a packet of a socket has less data than its header says"));
            }
            self.take_packet(&header, &mut chain);
            tx.push(chain);
            served += 1;
        }
        Ok(served > 0)
    }

    fn take_packet(&mut self, header: &Header, chain: &mut Chain) {
        if (header.source_cid, header.source_cid_high) != (self.vsock.cid, 0) {
            return; // it says that it is from somebody else, who cannot be answered
        }
        let ports = Ports::of(header);
        let is_reset = header.operation == operation::RESET;
        if (header.destination_cid, header.destination_cid_high, header.kind) != (HOST, 0, STREAM) {
            // Nobody is there. The answer is from the host: there is one context that answers.
            if !is_reset && !self.connections.contains_key(&ports) {
                self.resets.push_back(ports);
            }
            return;
        }
        let room = self.has_room();
        match self.connections.get_mut(&ports) {
            Some(_) if is_reset => drop(self.connections.remove(&ports)),
            None if is_reset => {}
            Some(connection) => {
                if connection.receive(header, chain) == Err(Reset) {
                    self.reset_connection(ports);
                }
            }
            None if header.operation == operation::REQUEST && room => match self.connect(ports.host) {
                Ok(stream) => drop(self.connections.insert(ports, Connection::accepted(stream, header))),
                Err(error) => {
                    tracing::debug!(port = ports.host, %error, "a guest's connection is refused");
                    self.resets.push_back(ports);
                }
            },
            None => self.resets.push_back(ports),
        }
    }

    fn connect(&mut self, port: u32) -> io::Result<UnixStream> {
        let stream = (self.vsock.connect)(port)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Looks what has happened at the host. Whether something has.
    fn look_at_streams(&mut self) -> bool {
        let sources = self.sources();
        let mut polls: Vec<PollFd<'_>> = sources
            .iter()
            .map(|(source, interest)| PollFd::from_borrowed_fd(*source, interest.flags()))
            .collect();
        if poll(&mut polls, Some(&Timespec::default())).unwrap_or(0) == 0 {
            return false;
        }
        let happened: Vec<PollFlags> = polls.iter().map(PollFd::revents).collect();
        let mut happened = happened.into_iter(); // in the order of `sources`
        let listens = self.has_room() && happened.next().is_some_and(|flags| !flags.is_empty());
        let mut wanted = Vec::new();
        let greetings = std::mem::take(&mut self.greetings).into_iter();
        self.greetings = greetings
            .zip(happened.by_ref())
            .filter_map(|(mut greeting, flags)| {
                let port = if flags.is_empty() { Ok(None) } else { greeting.read() };
                match port {
                    Ok(None) => return Some(greeting),
                    Ok(Some(port)) => wanted.push((greeting.into_stream(), port)),
                    Err(Reset) => {}
                }
                None
            })
            .collect();
        let waited = self.connections.values_mut().filter(|connection| connection.source().is_some());
        for (connection, flags) in waited.zip(happened) {
            if flags.intersects(PollFlags::OUT | PollFlags::ERR | PollFlags::HUP) {
                connection.flush();
            }
            if flags.intersects(PollFlags::IN | PollFlags::ERR | PollFlags::HUP) {
                connection.note_readable();
            }
        }
        if listens && let Ok((stream, _)) = self.vsock.listener.accept() {
            self.greetings.extend(Greeting::new(stream)); // one that fails has gone
        }
        for (stream, port) in wanted {
            let ports = Ports { host: self.free_port(), guest: port };
            self.connections.insert(ports, Connection::requested(stream));
        }
        true
    }

    /// A port of the host's that no connection has.
    fn free_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            let from = Ports { host: port, guest: 0 };
            if self.connections.range(from..).next().is_none_or(|(ports, _)| ports.host != port) {
                return port;
            }
        }
    }

    /// Tells the guest what there is to tell: resets, then a packet of each connection. Whether there was something.
    fn send_packets(&mut self, rx: &mut Ring) -> Result<bool, Broken> {
        let mut sent = false;
        while let Some(ports) = self.resets.front() {
            let packet = ports.packet(self.vsock.cid, operation::RESET);
            let Some(mut chain) = pop_room(rx)? else { return Ok(sent) };
            chain.write_value(&packet).expect("there is room for a header");
            rx.push(chain);
            self.resets.pop_front();
            sent = true;
        }
        let later = self.connections.range((Excluded(self.last), Unbounded));
        let all = later.chain(self.connections.range(..=self.last));
        let with_packets: Vec<Ports> =
            all.filter(|(_, connection)| connection.has_packet()).map(|(ports, _)| *ports).collect();
        for ports in with_packets {
            let Some(mut chain) = pop_room(rx)? else { return Ok(sent) };
            let connection = self.connections.get_mut(&ports).expect("it was there");
            let room = (chain.writable() - size_of::<Header>()).min(PACKET);
            match connection.send(ports, self.vsock.cid, &mut self.data[..room]) {
                Ok(Some(header)) => {
                    chain.write(header.as_bytes()).expect("there is room for a header");
                    chain.write(&self.data[..header.length as usize]).expect("so much was read");
                    rx.push(chain);
                    self.last = ports;
                    sent = true;
                }
                Ok(None) => rx.put_back(chain),
                Err(Reset) => {
                    rx.put_back(chain);
                    self.reset_connection(ports);
                }
            }
        }
        Ok(sent)
    }
}

/// A buffer for a packet to the guest.
fn pop_room(rx: &mut Ring) -> Result<Option<Chain>, Broken> {
    let chain = rx.pop()?;
    if chain.as_ref().is_some_and(|chain| chain.writable() <= size_of::<Header>()) {
        return Err(Broken("a buffer for packets of sockets has no room for a header and a byte"));
    }
    Ok(chain)
}

//! Connections, and what the host says of them.
//!
//! The host is not trusted: a packet for nobody is answered with a reset, and a connection whose host sends more than it was told
//! there is room for is reset. What is kept is bounded by [`BUFFER`] for each connection of the guest's own, and [`BACKLOG`]
//! connections that nobody has accepted yet.
//!
//! Start at [`State::look`].

use super::packet::{Header, Ports, STREAM, closed, operation};
use super::{HOST, RX_SIZE, TX_SIZE};
use crate::Error;
use crate::buffers::{Inbound, Outbound};
use crate::queue::Queue;
use crate::registered::Wakers;
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, VecDeque};
use core::task::Waker;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes that are kept for a connection until they are read.
const BUFFER: usize = 64 << 10;
/// Connections to a port that nobody has accepted.
const BACKLOG: usize = 16;
/// Bytes of data in a packet to the host.
const PACKET: usize = 32 << 10;
/// Packets without data that wait for room in the ring.
const PENDING: usize = 128;
/// Ports of the guest's for connections that it asks for: from here on.
const FIRST_PORT: u32 = 1 << 30;

#[derive(Default)]
struct Connection {
    /// The other side has agreed.
    open: bool,
    /// Nothing comes of it any more.
    over: bool,
    received: VecDeque<u8>,
    /// Bytes that were read, and as far as the host knows.
    forwarded: u32,
    told: u32,
    /// Bytes sent to the host; what it has room for, and has passed on.
    sent: u32,
    host_buffer: u32,
    host_forwarded: u32,
    /// Bits of [`closed`].
    closed: u32,
    host_closed: u32,
    wakers: Wakers,
}

#[derive(Default)]
struct Listener {
    backlog: VecDeque<Ports>,
    wakers: Wakers,
}

/// All of it.
pub(super) struct State {
    cid: u32,
    rx: Queue<Inbound, RX_SIZE>,
    tx: Queue<Outbound, TX_SIZE>,
    connections: BTreeMap<Ports, Connection>,
    listeners: BTreeMap<u32, Listener>,
    pending: VecDeque<Header>,
    /// Somebody waits for room in the ring.
    wants_room: bool,
    next_port: u32,
}

impl Connection {
    fn credit(&self) -> usize {
        self.host_buffer.saturating_sub(self.sent.wrapping_sub(self.host_forwarded)) as usize
    }

    /// Takes a packet. What is to be answered, if something is.
    fn receive(&mut self, header: &Header, data: &[u8]) -> Option<u16> {
        (self.host_buffer, self.host_forwarded) = (header.buffer, header.forwarded);
        self.wakers.wake();
        match header.operation {
            operation::RESPONSE if !self.open => self.open = true,
            operation::DATA if self.open && self.closed & closed::RECEIVES != 0 => {} // nobody reads it
            operation::DATA if self.open && data.len() <= BUFFER - self.received.len() => {
                self.received.extend(data);
            }
            operation::SHUTDOWN if self.open => {
                self.host_closed |= header.flags & closed::BOTH;
                if self.host_closed == closed::BOTH {
                    self.over = true;
                    return Some(operation::RESET);
                }
            }
            operation::CREDIT_UPDATE => {}
            operation::CREDIT_REQUEST => return Some(operation::CREDIT_UPDATE),
            operation::RESET => self.over = true,
            _ => {
                self.over = true;
                return Some(operation::RESET);
            }
        }
        None
    }
}

impl State {
    pub(super) fn new(cid: u32, rx: Queue<Inbound, RX_SIZE>, tx: Queue<Outbound, TX_SIZE>) -> Self {
        Self {
            cid,
            rx,
            tx,
            connections: BTreeMap::new(),
            listeners: BTreeMap::new(),
            pending: VecDeque::new(),
            wants_room: false,
            next_port: FIRST_PORT,
        }
    }

    pub(super) fn cid(&self) -> u32 {
        self.cid
    }

    pub(super) fn ring(&mut self) {
        self.rx.ring();
        self.tx.ring();
    }

    fn is_broken(&self) -> bool {
        self.rx.is_broken() || self.tx.is_broken()
    }

    /// Takes what the host has sent, and sends what there was no room for. Whether there was something.
    pub(super) fn look(&mut self) -> bool {
        let made_room = self.tx.look();
        let happened = self.rx.look() | made_room;
        while let Some(Ok((room, written))) = self.rx.take_next() {
            self.receive(&room.0[..written as usize]);
            let _ = self.rx.submit(room); // broken: it was reset, and wants none
        }
        if happened {
            self.send_pending();
            if made_room && core::mem::take(&mut self.wants_room) || self.is_broken() {
                self.connections.values_mut().for_each(|connection| connection.wakers.wake());
                self.listeners.values_mut().for_each(|listener| listener.wakers.wake());
            }
            self.ring();
        }
        happened
    }

    pub(super) fn arm(&mut self) -> bool {
        let for_room = self.wants_room || !self.pending.is_empty();
        self.rx.arm() | (for_room && self.tx.arm())
    }

    fn receive(&mut self, packet: &[u8]) {
        let Ok((header, data)) = Header::read_from_prefix(packet) else { return };
        let (from, to) = (header.source_cid, header.destination_cid);
        if (from, to, header.kind) != (HOST, self.cid, STREAM) || header.length as usize > data.len() {
            return; // not of a kind that could be answered
        }
        let data = &data[..header.length as usize];
        let ports = Ports { guest: header.destination_port, host: header.source_port };
        let answer = match self.connections.get_mut(&ports) {
            Some(connection) => connection.receive(&header, data),
            None if header.operation == operation::RESET => None,
            None => Some(self.offer(ports, &header)),
        };
        if let Some(operation) = answer {
            self.send(ports, operation, 0);
        }
        self.forget_if_closed(ports);
    }

    /// The host wants a connection. The answer.
    fn offer(&mut self, ports: Ports, header: &Header) -> u16 {
        let listener = self.listeners.get_mut(&ports.guest);
        let Some(listener) = listener.filter(|listener| listener.backlog.len() < BACKLOG) else {
            return operation::RESET;
        };
        if header.operation != operation::REQUEST {
            return operation::RESET;
        }
        listener.backlog.push_back(ports);
        listener.wakers.wake();
        let (host_buffer, host_forwarded) = (header.buffer, header.forwarded);
        let connection = Connection { open: true, host_buffer, host_forwarded, ..Connection::default() };
        self.connections.insert(ports, connection);
        operation::RESPONSE
    }

    /// Sends a packet without data, at once or when there is room. A host that does not take them loses some.
    fn send(&mut self, ports: Ports, operation: u16, flags: u32) {
        if self.pending.len() < PENDING {
            self.pending.push_back(self.header(ports, operation, flags));
            self.note_told(ports);
        }
        self.send_pending();
    }

    fn send_pending(&mut self) {
        while let Some(header) = self.pending.front() {
            let packet = Box::new(Outbound(header.as_bytes().to_vec()));
            if self.tx.submit_and_forget(packet).is_err() {
                return;
            }
            self.pending.pop_front();
        }
        self.tx.ring();
    }

    /// A packet to the host, which says how much room there is.
    fn header(&self, ports: Ports, operation: u16, flags: u32) -> Header {
        let forwarded = self.connections.get(&ports).map_or(0, |connection| connection.forwarded);
        Header {
            source_cid: self.cid,
            destination_cid: HOST,
            source_port: ports.guest,
            destination_port: ports.host,
            kind: STREAM,
            operation,
            flags,
            buffer: BUFFER as u32,
            forwarded,
            ..Header::default()
        }
    }

    /// The host will know how much room there is: a packet that says so is on its way.
    fn note_told(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.get_mut(&ports) {
            connection.told = connection.forwarded;
        }
    }

    /// Asks for a connection to a port of the host's.
    pub(super) fn connect(&mut self, host: u32) -> Result<Ports, Error> {
        if self.is_broken() {
            return Err(Error::Broken);
        }
        let ports = loop {
            let ports = Ports { guest: self.next_port, host };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
            if !self.connections.contains_key(&ports) && !self.listeners.contains_key(&ports.guest) {
                break ports;
            }
        };
        self.connections.insert(ports, Connection::default());
        self.send(ports, operation::REQUEST, 0);
        Ok(ports)
    }

    /// Whether the host has agreed; `None`: it has not said.
    pub(super) fn try_connected(&mut self, ports: Ports, waker: Option<&Waker>) -> Option<Result<(), Error>> {
        let broken = self.is_broken();
        let connection = self.connection(ports);
        match connection {
            _ if broken => Some(Err(Error::Broken)),
            Connection { open: true, .. } => Some(Ok(())),
            Connection { over: true, .. } => Some(Err(Error::Refused)),
            connection => connection.wakers.add(waker),
        }
    }

    fn connection(&mut self, ports: Ports) -> &mut Connection {
        self.connections.get_mut(&ports).expect("a connection is there for as long as its stream is")
    }

    /// Reads what there is; 0: there will be no more. `None`: there is nothing yet.
    pub(super) fn try_read(
        &mut self,
        ports: Ports,
        bytes: &mut [u8],
        waker: Option<&Waker>,
    ) -> Option<Result<usize, Error>> {
        let broken = self.is_broken();
        let connection = self.connection(ports);
        let length = bytes.len().min(connection.received.len());
        if length == 0 && !bytes.is_empty() {
            let ended = connection.host_closed & closed::SENDS | connection.closed & closed::RECEIVES != 0;
            return match connection {
                _ if ended => Some(Ok(0)),
                _ if broken => Some(Err(Error::Broken)),
                Connection { over: true, .. } => Some(Err(Error::Closed)),
                connection => connection.wakers.add(waker),
            };
        }
        for (to, from) in bytes.iter_mut().zip(connection.received.drain(..length)) {
            *to = from;
        }
        connection.forwarded = connection.forwarded.wrapping_add(length as u32);
        if !connection.over && connection.forwarded.wrapping_sub(connection.told) as usize >= BUFFER / 2 {
            self.send(ports, operation::CREDIT_UPDATE, 0);
        }
        Some(Ok(length))
    }

    /// Whether [`try_read`](Self::try_read) would give something.
    pub(super) fn can_read(&mut self, ports: Ports) -> bool {
        let broken = self.is_broken();
        let connection = self.connection(ports);
        let ended = connection.host_closed & closed::SENDS | connection.closed & closed::RECEIVES != 0;
        !connection.received.is_empty() || ended || connection.over || broken
    }

    /// Sends as much as the host, and the ring, have room for. `None`: none yet.
    pub(super) fn try_write(
        &mut self,
        ports: Ports,
        bytes: &[u8],
        waker: Option<&Waker>,
    ) -> Option<Result<usize, Error>> {
        if bytes.is_empty() {
            return Some(Ok(0));
        }
        let (broken, crowded) = (self.is_broken(), !self.pending.is_empty());
        let connection = self.connection(ports);
        let ended = connection.host_closed & closed::RECEIVES | connection.closed & closed::SENDS != 0;
        if broken || ended || connection.over {
            return Some(Err(if broken { Error::Broken } else { Error::Closed }));
        }
        let length = bytes.len().min(connection.credit()).min(PACKET);
        if length == 0 {
            return connection.wakers.add(waker);
        }
        let header = Header { length: length as u32, ..self.header(ports, operation::DATA, 0) };
        let packet = [header.as_bytes(), &bytes[..length]].concat();
        // Packets that wait for room come first.
        if crowded || self.tx.submit_and_forget(Box::new(Outbound(packet))).is_err() {
            self.wants_room = true;
            return self.connection(ports).wakers.add(waker);
        }
        self.tx.ring();
        self.note_told(ports);
        let connection = self.connection(ports);
        connection.sent = connection.sent.wrapping_add(length as u32);
        Some(Ok(length))
    }

    /// Whether [`try_write`](Self::try_write) would send something, but for a ring that is full.
    pub(super) fn can_write(&mut self, ports: Ports) -> bool {
        let (broken, crowded) = (self.is_broken(), !self.pending.is_empty());
        let connection = self.connection(ports);
        let ended = connection.host_closed & closed::RECEIVES | connection.closed & closed::SENDS != 0;
        broken || ended || connection.over || connection.credit() > 0 && !crowded
    }

    /// The guest does not want to do this any more: bits of [`closed`].
    pub(super) fn close(&mut self, ports: Ports, what: u32) {
        let Some(connection) = self.connections.get_mut(&ports) else { return };
        let before = connection.closed;
        connection.closed |= what;
        if connection.closed & closed::RECEIVES != 0 {
            connection.received = VecDeque::new();
        }
        let told = connection.closed;
        if told != before && !connection.over {
            if connection.open {
                self.send(ports, operation::SHUTDOWN, told);
            } else {
                connection.over = true;
                self.send(ports, operation::RESET, 0);
            }
        }
        self.forget_if_closed(ports);
    }

    /// Whether nothing comes of it any more; `None`: it is not over.
    pub(super) fn try_over(&mut self, ports: Ports, waker: Option<&Waker>) -> Option<Result<(), Error>> {
        let broken = self.is_broken();
        match self.connections.get_mut(&ports) {
            None => Some(Ok(())),
            Some(_) if broken => Some(Err(Error::Broken)),
            Some(connection) => connection.wakers.add(waker),
        }
    }

    /// Nobody wants the stream any more, and the host has answered.
    fn forget_if_closed(&mut self, ports: Ports) {
        let gone = |connection: &Connection| connection.over && connection.closed == closed::BOTH;
        if self.connections.get(&ports).is_some_and(gone) {
            self.connections.remove(&ports);
        }
    }

    pub(super) fn listen(&mut self, port: u32) -> Result<(), Error> {
        if self.listeners.contains_key(&port) {
            return Err(Error::InUse);
        }
        self.listeners.insert(port, Listener::default());
        Ok(())
    }

    /// The next connection to a port.
    pub(super) fn try_accept(&mut self, port: u32, waker: Option<&Waker>) -> Option<Result<Ports, Error>> {
        let broken = self.is_broken();
        let listener = self.listeners.get_mut(&port).expect("it is there for as long as somebody has it");
        if let Some(ports) = listener.backlog.pop_front() {
            return Some(Ok(ports));
        }
        if broken {
            return Some(Err(Error::Broken));
        }
        listener.wakers.add(waker)
    }

    /// Nobody listens on a port any more.
    pub(super) fn unlisten(&mut self, port: u32) {
        let listener = self.listeners.remove(&port).unwrap_or_default();
        listener.backlog.into_iter().for_each(|ports| self.close(ports, closed::BOTH));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(operation: u16, flags: u32) -> Header {
        Header { operation, flags, buffer: 100, ..Header::default() }
    }

    fn open() -> Connection {
        let mut connection = Connection::default();
        assert_eq!(connection.receive(&packet(operation::RESPONSE, 0), &[]), None);
        assert!(connection.open);
        connection
    }

    #[test]
    fn a_host_that_sends_more_than_there_is_room_for_loses_the_connection() {
        let mut connection = open();
        let data = packet(operation::DATA, 0);
        assert_eq!(connection.receive(&data, &[1; BUFFER - 1]), None);
        assert_eq!(connection.receive(&data, &[1; 2]), Some(operation::RESET));
        assert!(connection.over);
        assert_eq!(connection.received.len(), BUFFER - 1);
    }

    #[test]
    fn what_comes_at_the_wrong_time_ends_the_connection() {
        for (mut connection, operation) in [
            (Connection::default(), operation::DATA),
            (Connection::default(), operation::SHUTDOWN),
            (Connection::default(), operation::REQUEST),
            (open(), operation::REQUEST),
            (open(), operation::RESPONSE),
            (open(), 0),
            (open(), u16::MAX),
        ] {
            assert_eq!(connection.receive(&packet(operation, 0), &[]), Some(operation::RESET), "{operation}");
            assert!(connection.over);
        }
    }

    #[test]
    fn a_connection_is_over_when_the_host_has_closed_both_directions_and_not_before() {
        let mut connection = open();
        assert_eq!(connection.receive(&packet(operation::SHUTDOWN, closed::SENDS), &[]), None);
        assert!(!connection.over);
        let both = connection.receive(&packet(operation::SHUTDOWN, closed::RECEIVES), &[]);
        assert_eq!((both, connection.over), (Some(operation::RESET), true));
    }

    #[test]
    fn a_host_that_has_passed_on_more_than_it_was_sent_has_no_room() {
        let mut connection = open();
        assert_eq!(connection.credit(), 100);
        connection.sent = 60;
        assert_eq!(connection.credit(), 40);
        connection.host_forwarded = 61;
        assert_eq!(connection.credit(), 0);
        (connection.sent, connection.host_forwarded) = (5, u32::MAX - 4); // the counters wrap
        assert_eq!(connection.credit(), 90);
    }
}

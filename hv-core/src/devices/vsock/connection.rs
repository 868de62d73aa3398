//! One connection: a stream of the host's, and what the guest was promised and has promised.
//!
//! Each side may send as much as the other has said that it has room for. What the guest sends beyond that ends the connection;
//! what it says of its own room is believed, since only its own data depends on it.
//!
//! Start at [`Connection::receive`] and [`Connection::send`].

use super::packet::{Header, Ports, closed, operation};
use crate::devices::Interest;
use crate::devices::chain::Chain;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// Bytes that are kept for a stream which does not take them.
pub(super) const BUFFER: u32 = 64 << 10;

/// The connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reset;

/// What the guest is to be told of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    request: bool,
    response: bool,
    credit: bool,
    shutdown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The guest was asked for it, or will be.
    Requested,
    Open,
}

pub(super) struct Connection {
    stream: UnixStream,
    state: State,
    due: Due,
    /// From the guest, for the stream.
    buffered: VecDeque<u8>,
    /// Bytes that the stream has taken, and as far as the guest knows.
    forwarded: u32,
    told: u32,
    /// Bytes sent to the guest; what it has room for, and has passed on.
    sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    /// The guest was asked to say when it has room again.
    asked_for_credit: bool,
    /// Bits of [`closed`].
    guest_closed: u32,
    host_closed: u32,
    /// There was something to read when the stream was last looked at.
    readable: bool,
}

impl Connection {
    /// One that the guest has asked for, by `request`.
    pub(super) fn accepted(stream: UnixStream, request: &Header) -> Self {
        let mut connection = Self::new(stream, State::Open);
        connection.due.response = true;
        connection.learn(request);
        connection
    }

    /// One that the guest is to be asked for.
    pub(super) fn requested(stream: UnixStream) -> Self {
        let mut connection = Self::new(stream, State::Requested);
        connection.due.request = true;
        connection
    }

    fn new(stream: UnixStream, state: State) -> Self {
        Self {
            stream,
            state,
            due: Due::default(),
            buffered: VecDeque::new(),
            forwarded: 0,
            told: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            asked_for_credit: false,
            guest_closed: 0,
            host_closed: 0,
            readable: false,
        }
    }

    /// The stream, and what to wait for on it.
    pub(super) fn source(&self) -> Option<(&UnixStream, Interest)> {
        let reads = self.reads() && !self.readable;
        let interest = match (reads, !self.buffered.is_empty()) {
            (false, false) => return None,
            (true, false) => Interest::Read,
            (false, true) => Interest::Write,
            (true, true) => Interest::Both,
        };
        Some((&self.stream, interest))
    }

    /// Whether the stream's bytes are for the guest, now or later.
    fn reads(&self) -> bool {
        let ended = self.host_closed & closed::SENDS | self.guest_closed & closed::RECEIVES;
        self.state == State::Open && ended == 0
    }

    /// The stream was looked at, and there is something to read or to be told.
    pub(super) fn note_readable(&mut self) {
        self.readable = self.reads();
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> u32 {
        // A guest that has passed on more than it was sent has no room.
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    fn learn(&mut self, header: &Header) {
        (self.guest_buffer, self.guest_forwarded) = (header.buffer, header.forwarded);
        self.asked_for_credit &= self.credit() == 0;
    }

    /// Takes a packet from the guest, whose data is at the front of `chain`.
    pub(super) fn receive(&mut self, header: &Header, chain: &mut Chain) -> Result<(), Reset> {
        self.learn(header);
        match (header.operation, self.state) {
            (operation::RESPONSE, State::Requested) if !self.due.request => {
                self.state = State::Open;
                let told = format!("OK {}\n", header.destination_port);
                self.stream.write_all(told.as_bytes()).map_err(|_| Reset)
            }
            (operation::DATA, State::Open) if self.guest_closed & closed::SENDS == 0 => {
                self.take(chain, header.length)
            }
            (operation::SHUTDOWN, State::Open) => {
                self.guest_closed |= header.flags & closed::BOTH;
                if self.guest_closed & closed::RECEIVES != 0 {
                    self.readable = false;
                    let _ = self.stream.shutdown(Shutdown::Read); // it has gone: so has what is read
                }
                self.pass_end_on();
                Ok(())
            }
            (operation::CREDIT_UPDATE, _) => Ok(()),
            (operation::CREDIT_REQUEST, _) => {
                self.due.credit = true;
                Ok(())
            }
            _ => Err(Reset),
        }
    }

    fn take(&mut self, chain: &mut Chain, length: u32) -> Result<(), Reset> {
        if length > BUFFER - self.buffered.len() as u32 {
            return Err(Reset); // more than it was allowed
        }
        let mut left = length as usize;
        while left > 0 && self.buffered.is_empty() && self.host_closed & closed::RECEIVES == 0 {
            match chain.read_to(left, |places| places.write(self.stream.as_fd())) {
                Ok(taken) => {
                    left -= taken;
                    self.forward(taken);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.end_of_writing(),
            }
        }
        if self.host_closed & closed::RECEIVES != 0 {
            self.forward(left); // nobody wants it
            return Ok(());
        }
        let mut rest = vec![0; left];
        chain.read(&mut rest).expect("a packet is as long as its header says");
        self.buffered.extend(rest);
        Ok(())
    }

    /// The stream has taken so many bytes.
    fn forward(&mut self, bytes: usize) {
        self.forwarded = self.forwarded.wrapping_add(bytes as u32);
        self.due.credit |= self.forwarded.wrapping_sub(self.told) >= BUFFER / 2;
    }

    /// Has the stream take what is kept for it.
    pub(super) fn flush(&mut self) {
        while !self.buffered.is_empty() {
            match self.stream.write(self.buffered.as_slices().0) {
                Ok(taken) => {
                    self.buffered.drain(..taken);
                    self.forward(taken);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => self.end_of_writing(),
            }
        }
        self.pass_end_on();
    }

    /// The guest has said that it sends no more, and the stream has all that it has sent.
    fn pass_end_on(&mut self) {
        if self.guest_closed & closed::SENDS != 0 && self.buffered.is_empty() {
            let _ = self.stream.shutdown(Shutdown::Write); // it has gone: there is nobody to tell
        }
    }

    /// The stream takes nothing any more.
    fn end_of_writing(&mut self) {
        self.host_closed |= closed::RECEIVES;
        self.due.shutdown = true;
        let dropped = self.buffered.len();
        self.buffered = VecDeque::new();
        self.forward(dropped);
    }

    /// Whether there is a packet for the guest, as far as is known without a look at the stream.
    pub(super) fn has_packet(&self) -> bool {
        self.due != Due::default() || self.readable && (self.credit() > 0 || !self.asked_for_credit)
    }

    /// The next packet for the guest, whose data is put into `data`. `None`: there is none after all.
    pub(super) fn send(&mut self, ports: Ports, cid: u32, data: &mut [u8]) -> Result<Option<Header>, Reset> {
        let packet = |operation| ports.packet(cid, operation);
        let mut header = if std::mem::take(&mut self.due.request) {
            packet(operation::REQUEST)
        } else if std::mem::take(&mut self.due.response) {
            packet(operation::RESPONSE)
        } else if self.readable && self.credit() > 0 {
            match self.read(data)? {
                Some(length) => Header { length, ..packet(operation::DATA) },
                None => return Ok(None),
            }
        } else if std::mem::take(&mut self.due.shutdown) {
            Header { flags: self.host_closed, ..packet(operation::SHUTDOWN) }
        } else if std::mem::take(&mut self.due.credit) {
            packet(operation::CREDIT_UPDATE)
        } else if self.readable && !self.asked_for_credit {
            self.asked_for_credit = true;
            packet(operation::CREDIT_REQUEST)
        } else {
            return Ok(None);
        };
        // Every packet says how much room there is.
        self.due.credit = false;
        self.told = self.forwarded;
        (header.buffer, header.forwarded) = (BUFFER, self.forwarded);
        Ok(Some(header))
    }

    /// Reads as much as the guest, and `data`, have room for. `None`: there is nothing.
    fn read(&mut self, data: &mut [u8]) -> Result<Option<u32>, Reset> {
        let most = data.len().min(self.credit() as usize);
        match self.stream.read(&mut data[..most]) {
            Ok(0) => {
                self.readable = false;
                self.host_closed |= closed::SENDS;
                self.due.shutdown = true;
                Ok(None)
            }
            Ok(length) => {
                self.readable = length == most;
                self.sent = self.sent.wrapping_add(length as u32);
                Ok(Some(length as u32))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                self.readable = error.kind() == ErrorKind::Interrupted;
                Ok(None)
            }
            Err(_) => Err(Reset),
        }
    }

    /// Whether nothing can come of it any more.
    pub(super) fn is_over(&self) -> bool {
        let nobody_reads = self.guest_closed & closed::RECEIVES | self.host_closed & closed::SENDS != 0;
        let all_passed_on = self.guest_closed & closed::SENDS != 0 && self.buffered.is_empty();
        nobody_reads && all_passed_on && !self.due.shutdown
    }
}

/// A program of the host's that is about to say which port it wants.
pub(super) struct Greeting {
    stream: UnixStream,
    line: Vec<u8>,
}

impl Greeting {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, line: Vec::new() })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads on, and no further than the line. The port, once it is known.
    pub(super) fn read(&mut self) -> Result<Option<u32>, Reset> {
        /// `CONNECT 4294967295`
        const MOST: usize = 18;
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break,
                Ok(1) if self.line.len() < MOST => self.line.push(byte[0]),
                Ok(_) => return Err(Reset),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(_) => return Err(Reset),
            }
        }
        let line = std::str::from_utf8(&self.line).map_err(|_| Reset)?;
        let port = line.strip_prefix("CONNECT ").ok_or(Reset)?;
        port.parse().map(Some).map_err(|_| Reset)
    }

    pub(super) fn into_stream(self) -> UnixStream {
        self.stream
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports = Ports { host: 5, guest: 6 };

    fn connection(room: u32) -> (Connection, UnixStream) {
        let (stream, program) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let request = Header { buffer: room, ..Header::default() };
        (Connection::accepted(stream, &request), program)
    }

    /// The next packet: its operation, length and flags.
    fn next(connection: &mut Connection) -> Option<(u16, u32, u32)> {
        let header = connection.send(PORTS, 3, &mut [0; 100]).unwrap()?;
        Some((header.operation, header.length, header.flags))
    }

    #[test]
    fn a_guest_is_sent_no_more_than_it_has_room_for_and_is_asked_once() {
        let (mut connection, mut program) = connection(10);
        program.write_all(&[7; 25]).unwrap();
        connection.note_readable();
        assert_eq!(next(&mut connection), Some((operation::RESPONSE, 0, 0)));
        assert_eq!(next(&mut connection), Some((operation::DATA, 10, 0)));
        assert_eq!(next(&mut connection), Some((operation::CREDIT_REQUEST, 0, 0)));
        assert!(!connection.has_packet());
        assert_eq!(next(&mut connection), None);
        // It says that it has passed on more than it was sent.
        connection.learn(&Header { buffer: 10, forwarded: 11, ..Header::default() });
        assert_eq!(next(&mut connection), None);
        connection.learn(&Header { buffer: 10, forwarded: 4, ..Header::default() });
        assert_eq!(next(&mut connection), Some((operation::DATA, 4, 0)));
        connection.learn(&Header { buffer: u32::MAX, forwarded: 14, ..Header::default() });
        assert_eq!(next(&mut connection), Some((operation::DATA, 11, 0)));
    }

    #[test]
    fn the_end_of_a_stream_is_told_behind_its_bytes() {
        let (mut connection, mut program) = connection(100);
        program.write_all(b"last").unwrap();
        program.shutdown(Shutdown::Write).unwrap();
        connection.note_readable();
        assert_eq!(next(&mut connection), Some((operation::RESPONSE, 0, 0)));
        assert_eq!(next(&mut connection), Some((operation::DATA, 4, 0)));
        connection.note_readable();
        assert_eq!(next(&mut connection), None, "it is found to have ended");
        assert_eq!(next(&mut connection), Some((operation::SHUTDOWN, 0, closed::SENDS)));
        connection.note_readable();
        assert!(!connection.has_packet() && !connection.is_over());
    }

    #[test]
    fn a_program_says_a_port_in_one_line_and_no_byte_behind_it_is_read() {
        for (line, port) in [("CONNECT 0\n", Some(0)), ("CONNECT 4294967295\n", Some(u32::MAX))] {
            let (stream, mut program) = UnixStream::pair().unwrap();
            let mut greeting = Greeting::new(stream).unwrap();
            let (first, second) = line.split_at(5);
            program.write_all(first.as_bytes()).unwrap();
            assert_eq!(greeting.read(), Ok(None));
            program.write_all(format!("{second}rest").as_bytes()).unwrap();
            assert_eq!(greeting.read(), Ok(port));
            let mut rest = [0; 10];
            assert_eq!(greeting.into_stream().read(&mut rest).unwrap(), 4);
        }
        for line in [
            "CONNECT 4294967296\n",
            "CONNECT\n",
            "connect 1\n",
            "CONNECT -1\n",
            "\n",
            "CONNECT 00000000000000",
        ] {
            let (stream, mut program) = UnixStream::pair().unwrap();
            program.write_all(line.as_bytes()).unwrap();
            assert_eq!(Greeting::new(stream).unwrap().read(), Err(Reset), "{line:?}");
        }
    }
}

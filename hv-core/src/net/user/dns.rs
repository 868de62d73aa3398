//! A name server that asks the host's resolvers, one after the other, and says so when none answers.
//!
//! Queries are passed on as they are, each from a socket of its own: so the host chooses a port at random, and only the
//! resolver can answer. Start at [`Forwarder::ask`].

use super::link::ToGuest;
use super::udp::connected_to;
use super::{DNS, Source, Wanted};
use rustix::event::PollFlags;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Queries at once. More are answered by a failure.
pub(super) const QUERIES: usize = 64;

/// The longest query that is passed on; none has a need to be longer.
const LONGEST_QUERY: usize = 4096;

/// How long a resolver may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Resolvers that are asked, as other resolvers do.
const RESOLVERS: usize = 3;

/// The resolvers that a `resolv.conf` names.
#[must_use]
pub fn resolvers(text: &str) -> Vec<SocketAddr> {
    let words = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok()).flatten()
    };
    text.lines().filter_map(words).take(RESOLVERS).map(|address| (address, 53).into()).collect()
}

/// The queries that resolvers have not answered yet.
pub(super) struct Forwarder {
    resolvers: Vec<SocketAddr>,
    queries: BTreeMap<u64, Query>,
    next: u64,
}

struct Query {
    guest_port: u16,
    bytes: Vec<u8>,
    /// Who was asked, and how many were before.
    socket: UdpSocket,
    asked: usize,
    deadline: Instant,
}

impl Forwarder {
    pub(super) fn new(resolvers: &[SocketAddr]) -> Self {
        Self { resolvers: resolvers.to_vec(), queries: BTreeMap::new(), next: 0 }
    }

    pub(super) fn sources<'a>(&'a self, wanted: &mut Wanted<'a>) {
        for (id, query) in &self.queries {
            wanted.add(Source::Query(*id), &query.socket, PollFlags::IN);
        }
    }

    /// How long until a resolver has taken too long.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let first = self.queries.values().map(|query| query.deadline).min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Passes a query of the guest's on.
    pub(super) fn ask(&mut self, guest_port: u16, query: &[u8], now: Instant, to_guest: &mut ToGuest) {
        if query.len() > LONGEST_QUERY {
            return;
        }
        if self.queries.len() < QUERIES {
            self.ask_from(0, guest_port, query.to_vec(), now, to_guest);
        } else {
            fail(guest_port, query, to_guest);
        }
    }

    /// Asks the first resolver behind `skip` others that can be asked.
    fn ask_from(
        &mut self,
        skip: usize,
        guest_port: u16,
        bytes: Vec<u8>,
        now: Instant,
        to_guest: &mut ToGuest,
    ) {
        let send = |to: &SocketAddr| -> io::Result<UdpSocket> {
            let socket = connected_to(*to)?;
            socket.send(&bytes)?;
            Ok(socket)
        };
        let rest = self.resolvers.iter().enumerate().skip(skip);
        match rest.into_iter().find_map(|(index, to)| Some((index, send(to).ok()?))) {
            Some((asked, socket)) => {
                let query = Query { guest_port, bytes, socket, asked, deadline: now + PATIENCE };
                self.queries.insert(self.next, query);
                self.next += 1;
            }
            None => fail(guest_port, &bytes, to_guest),
        }
    }

    /// A resolver has answered, or cannot be reached.
    pub(super) fn receive(&mut self, id: u64, now: Instant, to_guest: &mut ToGuest) {
        let Some(query) = self.queries.remove(&id) else { return };
        let mut answer = [0; 65_535];
        match query.socket.recv(&mut answer) {
            Ok(length) if answer[..length].get(..2) == query.bytes.get(..2) => {
                to_guest.datagram(DNS, query.guest_port, &answer[..length]);
            }
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => self.ask_next(query, now, to_guest),
            _ => _ = self.queries.insert(id, query), // another's answer, or none
        }
    }

    /// Lets those go that have taken too long.
    pub(super) fn expire(&mut self, now: Instant, to_guest: &mut ToGuest) {
        let late: Vec<u64> =
            self.queries.iter().filter(|(_, query)| query.deadline <= now).map(|(id, _)| *id).collect();
        for id in late {
            if let Some(query) = self.queries.remove(&id) {
                self.ask_next(query, now, to_guest);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queries.len()
    }

    fn ask_next(&mut self, query: Query, now: Instant, to_guest: &mut ToGuest) {
        self.ask_from(query.asked + 1, query.guest_port, query.bytes, now, to_guest);
    }
}

const HEADER: usize = 12;

/// Answers a query by "server failure", with the question, as answers have it.
fn fail(guest_port: u16, query: &[u8], to_guest: &mut ToGuest) {
    if let Some(answer) = failure(query) {
        to_guest.datagram(DNS, guest_port, &answer);
    }
}

fn failure(query: &[u8]) -> Option<Vec<u8>> {
    const RESPONSE: u8 = 0x80;
    const RECURSION_AVAILABLE: u8 = 0x80;
    const SERVER_FAILURE: u8 = 2;
    let header = query.get(..HEADER)?;
    if header[2] & RESPONSE != 0 {
        return None; // an answer is not answered
    }
    let question = question(query).unwrap_or_default();
    let opcode_and_recursion = header[2] & 0x79;
    let flags = [RESPONSE | opcode_and_recursion, RECURSION_AVAILABLE | SERVER_FAILURE];
    let counts = [0, u8::from(!question.is_empty()), 0, 0, 0, 0, 0, 0];
    Some([&header[..2], &flags, &counts, question].concat())
}

/// The first question of a query.
fn question(query: &[u8]) -> Option<&[u8]> {
    let mut end = HEADER;
    loop {
        match *query.get(end)? {
            0 => return query.get(HEADER..end + 5), // its end, the type and the class
            label @ 1..64 => end += 1 + usize::from(label),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_those_of_the_file() {
        let text = "# none here\nsearch example.org\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # so\n\
                    nameserver fe80::1%eth0\nnameserver\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let expected: Vec<SocketAddr> =
            ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:53"].map(|text| text.parse().unwrap()).into();
        assert_eq!(resolvers(text), expected);
        assert_eq!(resolvers(""), []);
    }

    #[test]
    fn a_failure_repeats_the_question() {
        let query = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\x01\x02hv\x03org\0\0\x01\0\x01rest";
        assert_eq!(failure(query).unwrap(), b"\x12\x34\x81\x82\0\x01\0\0\0\0\0\0\x02hv\x03org\0\0\x01\0\x01");
        let cut = &query[..20];
        assert_eq!(failure(cut).unwrap(), b"\x12\x34\x81\x82\0\0\0\0\0\0\0\0");
        assert_eq!(failure(&query[..11]), None);
        assert_eq!(failure(b"\x12\x34\x81\x80\0\0\0\0\0\0\0\0"), None);
    }
}

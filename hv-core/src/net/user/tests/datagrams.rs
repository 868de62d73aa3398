//! Datagrams, names, addresses and echoes.

use super::*;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, icmp, udp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpEndpoint};
use std::net::{Ipv4Addr, UdpSocket};

impl Guest {
    fn udp_socket(&mut self, port: u16) -> SocketHandle {
        let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 256 << 10]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    fn send_datagram(&mut self, handle: SocketHandle, to: SocketAddrV4, payload: &[u8]) {
        let to = IpEndpoint::new(IpAddress::Ipv4(*to.ip()), to.port());
        self.socket::<udp::Socket<'_>>(handle).send_slice(payload, to).unwrap();
    }

    fn receive_datagram(&mut self, handle: SocketHandle) -> (Vec<u8>, IpEndpoint) {
        self.until("a datagram", |sockets| {
            let (payload, from) = sockets.get_mut::<udp::Socket<'_>>(handle).recv().ok()?;
            Some((payload.to_vec(), from.endpoint))
        })
    }

    fn ask(&mut self, handle: SocketHandle, query: &[u8]) -> Vec<u8> {
        self.send_datagram(handle, DNS, query);
        let (answer, from) = self.receive_datagram(handle);
        assert_eq!(from, IpEndpoint::new(IpAddress::Ipv4(*DNS.ip()), 53));
        answer
    }
}

/// Something on the host's loopback that answers datagrams.
fn answering(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(&answer(&bytes[..length]), from);
        }
    });
    address
}

#[test]
fn datagrams_of_any_size_are_answered_by_whom_they_were_for() {
    let address = as_guest_sees(answering(<[u8]>::to_vec));
    let mut guest = Guest::start(&on_loopback());
    let socket = guest.udp_socket(5000);
    for length in [0, 1, 1400, 9000, 65_507] {
        guest.send_datagram(socket, address, &pattern(length));
        let (answer, from) = guest.receive_datagram(socket);
        assert!(answer == pattern(length), "{length} bytes");
        assert_eq!(from, IpEndpoint::new(IpAddress::Ipv4(*address.ip()), address.port()));
    }
    guest.end();
}

#[test]
fn datagrams_do_not_reach_the_hosts_loopback() {
    let listener = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::start(&Options::default());
    let socket = guest.udp_socket(5000);
    for address in [GATEWAY, Ipv4Addr::LOCALHOST, *DNS.ip()] {
        guest.send_datagram(socket, SocketAddrV4::new(address, port), b"hello");
    }
    guest.ask(socket, QUERY); // it is answered behind those
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    guest.end();
}

#[test]
fn a_published_port_takes_datagrams() {
    let options = Options { published: vec!["0:53/udp".parse().unwrap()], ..Options::default() };
    let mut guest = Guest::start(&options);
    let socket = guest.udp_socket(53);
    let clients = [(); 3].map(|()| {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.connect(guest.published[0]).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client
    });
    for round in 0..3_u8 {
        for (n, client) in (0_u8..).zip(&clients) {
            client.send(&[round, n]).unwrap();
        }
        for _ in &clients {
            let (payload, from) = guest.receive_datagram(socket);
            assert_eq!(from.addr, IpAddress::Ipv4(GATEWAY));
            guest.socket::<udp::Socket<'_>>(socket).send_slice(&payload, from).unwrap();
        }
        guest.until("the answers are sent", |sockets| {
            (sockets.get::<udp::Socket<'_>>(socket).send_queue() == 0).then_some(())
        });
        for (n, client) in (0_u8..).zip(&clients) {
            let mut answer = [0; 8];
            assert_eq!(client.recv(&mut answer).unwrap(), 2);
            assert_eq!(answer[..2], [round, n]);
        }
    }
    guest.end();
}

const QUERY: &[u8] = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x02hv\x03org\0\0\x01\0\x01";

/// An answer that cannot be taken for another's.
fn resolved(query: &[u8]) -> Vec<u8> {
    [&query[..2], b"\x81\x80 resolved ", &query[12..]].concat()
}

#[test]
fn names_are_asked_for_at_the_hosts_resolver() {
    let options = Options { resolvers: vec![answering(resolved)], ..Options::default() };
    let mut guest = Guest::start(&options);
    let socket = guest.udp_socket(5000);
    assert_eq!(guest.ask(socket, QUERY), resolved(QUERY));
    guest.end();
}

#[test]
fn the_next_resolver_is_asked_when_one_is_not_there_or_silent_or_answers_another_question() {
    let absent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let wrong = answering(|_| b"\xff\xff another question".to_vec());
    let right = answering(resolved);
    for first in [absent, silent.local_addr().unwrap(), wrong] {
        let mut guest = Guest::start(&Options { resolvers: vec![first, right], ..Options::default() });
        let socket = guest.udp_socket(5000);
        assert_eq!(guest.ask(socket, QUERY), resolved(QUERY), "{first}");
        guest.end();
    }
}

#[test]
fn without_a_resolver_a_query_fails_at_once() {
    let absent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    for resolvers in [vec![], vec![absent]] {
        let mut guest = Guest::start(&Options { resolvers, ..Options::default() });
        let socket = guest.udp_socket(5000);
        let answer = guest.ask(socket, QUERY);
        assert_eq!(answer[..4], *b"\x12\x34\x81\x82", "a response to it, and a server failure");
        assert_eq!(answer[12..], QUERY[12..], "with its question");
        guest.end();
    }
}

#[test]
fn a_guest_that_asks_gets_its_address() {
    let mut guest = Guest::start(&Options::default());
    guest.interface.update_ip_addrs(|addresses| addresses.clear());
    let client = guest.sockets.add(dhcpv4::Socket::new());
    let config =
        guest.until("a lease", |sockets| match sockets.get_mut::<dhcpv4::Socket<'_>>(client).poll()? {
            dhcpv4::Event::Configured(config) => {
                Some((config.address, config.router, config.dns_servers.to_vec(), config.server.address))
            }
            dhcpv4::Event::Deconfigured => None,
        });
    assert_eq!(config.0.to_string(), "10.0.2.15/24");
    assert_eq!(config.1, Some(GATEWAY));
    assert_eq!(config.2, [*DNS.ip()]);
    assert_eq!(config.3, GATEWAY);
    guest.end();
}

#[test]
fn the_gateway_and_nobody_else_answers_an_echo() {
    let mut guest = Guest::start(&Options::default());
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 8], vec![0; 4096]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(7)).unwrap();
    let socket = guest.sockets.add(socket);
    for (seq_no, address) in (0..).zip([Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::LOCALHOST, GATEWAY]) {
        let echo = Icmpv4Repr::EchoRequest { ident: 7, seq_no, data: b"hello" };
        let sending = guest.socket::<icmp::Socket<'_>>(socket);
        let bytes = sending.send(echo.buffer_len(), IpAddress::Ipv4(address)).unwrap();
        echo.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    }
    let (answer, from) = guest.until("an answer", |sockets| {
        let (bytes, from) = sockets.get_mut::<icmp::Socket<'_>>(socket).recv().ok()?;
        Some((bytes.to_vec(), from))
    });
    assert_eq!(from, IpAddress::Ipv4(GATEWAY), "it was asked last, and answers first");
    let packet = Icmpv4Packet::new_checked(&answer[..]).unwrap();
    let expected = Icmpv4Repr::EchoReply { ident: 7, seq_no: 2, data: b"hello" };
    assert_eq!(Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()), Ok(expected));
    guest.end();
}

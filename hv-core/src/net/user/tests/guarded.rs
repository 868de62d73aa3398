//! A guard before a network that would let the guest go anywhere.

use super::super::guard::guard;
use super::*;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::socket::udp;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

impl Guest {
    /// One whose network is guarded, and what comes out of the guard at the other end.
    fn guarded(options: Options) -> (Self, Link) {
        let (near, guests) = UnixStream::pair().unwrap();
        let (networks, far) = UnixStream::pair().unwrap();
        let guard = std::thread::spawn(move || guard(&guests, &networks, &options));
        let beyond = Link { socket: far, reader: FrameReader::new(0), writer: FrameWriter::new(0) };
        (Self::on(near, guard, Vec::new()), beyond)
    }

    /// One whose network is guarded, and allows everything itself.
    fn guarded_before_an_open_network(options: Options) -> Self {
        let (guest, beyond) = Self::guarded(options);
        let network = UserNetwork::new(&on_loopback()).unwrap();
        std::thread::spawn(move || network.serve(&beyond.socket).unwrap());
        guest
    }

    fn connecting(&mut self, to: SocketAddrV4) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 256 << 10]);
        let handle = self.sockets.add(Socket::new(buffer(), buffer()));
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        let port = 40_000 + to.port() % 1000;
        socket.connect(self.interface.context(), (IpAddress::Ipv4(*to.ip()), to.port()), port).unwrap();
        handle
    }
}

#[test]
fn what_is_allowed_arrives_whole_in_both_directions() {
    const LENGTH: usize = 8 << 20;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = as_guest_sees(listener.local_addr().unwrap());
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 64 << 10];
        while let Ok(length @ 1..) = stream.read(&mut bytes) {
            stream.write_all(&bytes[..length]).unwrap();
        }
    });
    let mut guest = Guest::guarded_before_an_open_network(on_loopback());
    let connection = guest.connecting(address);
    let bytes = pattern(LENGTH);
    let (mut sent, mut received) = (0, Vec::new());
    guest.until("all comes back", |sockets| {
        let socket = sockets.get_mut::<Socket<'_>>(connection);
        if socket.may_send() {
            sent += socket.send_slice(&bytes[sent..]).unwrap();
        }
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
        }
        (received.len() == LENGTH).then_some(())
    });
    assert!(received == bytes);
    guest.end();
}

#[test]
fn what_is_not_allowed_does_not_come_out() {
    let (mut guest, mut beyond) = Guest::guarded(Options::default());
    // The gateway is found: ARP passes. The network is played by hand, so that every frame is seen.
    let refused = [GATEWAY, Ipv4Addr::LOCALHOST, Ipv4Addr::new(169, 254, 169, 254), *DNS.ip()];
    for (port, address) in (1..).zip(refused) {
        guest.connecting(SocketAddrV4::new(address, port));
    }
    let allowed = guest.connecting(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 99));
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 4096]);
    let mut datagrams = udp::Socket::new(buffer(), buffer());
    datagrams.bind(5000).unwrap();
    datagrams.send_slice(b"no", (IpAddress::Ipv4(Ipv4Addr::LOCALHOST), 7)).unwrap();
    guest.sockets.add(datagrams);
    let mut network = Interface::new(
        Config::new(EthernetAddress([2, 0, 0, 0, 0, 2]).into()),
        &mut beyond,
        SmolInstant::ZERO,
    );
    network.update_ip_addrs(|addresses| {
        for address in [GATEWAY, *DNS.ip()] {
            addresses.push(IpCidr::new(IpAddress::Ipv4(address), PREFIX_LENGTH)).unwrap();
        }
    });
    network.set_any_ip(true);
    let mut none = SocketSet::new(Vec::new());
    // To a network with no sockets, whatever arrives is refused. So what stays unanswered has not arrived.
    guest.until("the one that is allowed is refused", |sockets| {
        network.poll(SmolInstant::from_millis(1), &mut beyond, &mut none);
        (sockets.get::<Socket<'_>>(allowed).state() == State::Closed).then_some(())
    });
    let states = guest.sockets.iter().filter_map(|(_, socket)| match socket {
        smoltcp::socket::Socket::Tcp(socket) => Some(socket.state()),
        _ => None,
    });
    assert_eq!(states.filter(|state| *state == State::SynSent).count(), refused.len());
}

#[test]
fn a_guarded_guest_does_not_reach_the_hosts_loopback() {
    let listener = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut guest = Guest::guarded_before_an_open_network(Options::default());
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 4096]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(5000).unwrap();
    let socket = guest.sockets.add(socket);
    let query = b"\x12\x34\x01\x00\0\0\0\0\0\0\0\0";
    for (to, payload) in [(GATEWAY, &b"no"[..]), (*DNS.ip(), query)] {
        let to_port = if to == GATEWAY { port } else { DNS.port() };
        guest.socket::<udp::Socket<'_>>(socket).send_slice(payload, (IpAddress::Ipv4(to), to_port)).unwrap();
    }
    guest.until("the query is answered, which was sent last", |sockets| {
        sockets.get_mut::<udp::Socket<'_>>(socket).recv().ok().map(drop)
    });
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.recv(&mut [0; 8]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    guest.end();
}

#[test]
fn either_end_that_goes_ends_the_guard() {
    let (guest, beyond) = Guest::guarded(Options::default());
    drop(beyond);
    guest.network.join().unwrap().unwrap();
    let (guest, _beyond) = Guest::guarded(Options::default());
    guest.end();
}

//! Connections: both directions, both ways to open and all ways to end them.

use super::*;
use crate::net::user::tcp::FLOWS;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};

impl Guest {
    fn tcp_socket(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 256 << 10]);
        self.sockets.add(Socket::new(buffer(), buffer()))
    }

    /// Begins to connect, from the port `local`.
    fn begin(&mut self, to: SocketAddrV4, local: u16) -> SocketHandle {
        let handle = self.tcp_socket();
        let socket = self.sockets.get_mut::<Socket<'_>>(handle);
        socket.connect(self.interface.context(), (IpAddress::Ipv4(*to.ip()), to.port()), local).unwrap();
        handle
    }

    /// Whether it gets a connection.
    fn opens(&mut self, handle: SocketHandle) -> bool {
        self.until("a connection is made or refused", |sockets| {
            match sockets.get::<Socket<'_>>(handle).state() {
                State::Established | State::CloseWait => Some(true),
                State::Closed => Some(false),
                _ => None,
            }
        })
    }

    fn connect(&mut self, to: SocketAddrV4) -> SocketHandle {
        let handle = self.begin(to, 40_000);
        assert!(self.opens(handle));
        handle
    }

    fn send(&mut self, handle: SocketHandle, bytes: &[u8]) {
        let mut sent = 0;
        self.until("bytes are sent", |sockets| {
            sent += sockets.get_mut::<Socket<'_>>(handle).send_slice(&bytes[sent..]).unwrap();
            (sent == bytes.len()).then_some(())
        });
    }

    /// What comes until the other side has ended.
    fn receive_all(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut received = Vec::new();
        self.until("the end of what is sent", |sockets| {
            let socket = sockets.get_mut::<Socket<'_>>(handle);
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
            }
            (!socket.may_recv()).then_some(())
        });
        received
    }

    fn receive_exactly(&mut self, handle: SocketHandle, length: usize) -> Vec<u8> {
        let mut received = Vec::new();
        self.until("so many bytes", |sockets| {
            let socket = sockets.get_mut::<Socket<'_>>(handle);
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
            }
            (received.len() >= length).then_some(())
        });
        received
    }

    fn state(&mut self, handle: SocketHandle) -> State {
        self.socket::<Socket<'_>>(handle).state()
    }
}

/// A server on the host's loopback that does the same with each connection, on a thread each.
fn server(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddrV4 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = as_guest_sees(listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream.unwrap()));
        }
    });
    address
}

fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        stream.write_all(&bytes[..length]).unwrap();
    }
}

#[test]
fn the_guest_ends_first_and_still_gets_what_is_sent_then() {
    const LENGTH: usize = 24 << 20;
    let address = server(|mut stream| {
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        assert!(received == pattern(LENGTH));
        received.reverse();
        stream.write_all(&received).unwrap();
    });
    let mut guest = Guest::start(&on_loopback());
    let connection = guest.connect(address);
    let mut bytes = pattern(LENGTH);
    guest.send(connection, &bytes);
    guest.socket::<Socket<'_>>(connection).close();
    bytes.reverse();
    assert!(guest.receive_all(connection) == bytes);
    guest.end();
}

#[test]
fn the_host_ends_first_and_still_gets_what_is_sent_then() {
    const LENGTH: usize = 24 << 20;
    let (report, reported) = std::sync::mpsc::channel();
    let address = server(move |mut stream| {
        stream.write_all(&pattern(LENGTH)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        report.send(received).unwrap();
    });
    let mut guest = Guest::start(&on_loopback());
    let connection = guest.connect(address);
    assert!(guest.receive_all(connection) == pattern(LENGTH));
    assert_eq!(guest.state(connection), State::CloseWait);
    let bytes = pattern(LENGTH + 1);
    guest.send(connection, &bytes);
    guest.socket::<Socket<'_>>(connection).close();
    guest.until("the guest's last bytes are taken", |sockets| {
        (sockets.get::<Socket<'_>>(connection).state() == State::Closed).then_some(())
    });
    assert!(reported.recv().unwrap() == bytes);
    guest.end();
}

#[test]
fn both_directions_at_once() {
    let address = server(echo);
    let mut guest = Guest::start(&on_loopback());
    let connection = guest.connect(address);
    let bytes = pattern(8 << 20);
    let (mut sent, mut received) = (0, Vec::new());
    guest.until("all comes back", |sockets| {
        let socket = sockets.get_mut::<Socket<'_>>(connection);
        sent += socket.send_slice(&bytes[sent..]).unwrap();
        while socket.can_recv() {
            socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
        }
        (received.len() == bytes.len()).then_some(())
    });
    assert!(received == bytes);
    guest.end();
}

#[test]
fn who_is_refused_by_the_host_is_refused() {
    let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut guest = Guest::start(&on_loopback());
    let connection = guest.begin(as_guest_sees(unused), 40_000);
    assert!(!guest.opens(connection));
    guest.end();
}

/// By default, also where there is somebody who would answer.
#[test]
fn the_hosts_loopback_is_out_of_reach() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    let mut guest = Guest::start(&Options::default());
    for (local, address) in
        (40_000..).zip([[10, 0, 2, 2], [127, 0, 0, 1], [127, 1, 2, 3], [169, 254, 169, 254]])
    {
        let connection = guest.begin(SocketAddrV4::new(address.into(), port), local);
        assert!(!guest.opens(connection), "{address:?}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    guest.end();
}

#[test]
fn other_hosts_are_reached_by_their_own_addresses() {
    // This host's own, for want of others; it is one like any other where it is not loopback.
    let own = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?; // nothing is sent by that
        socket.local_addr()
    });
    let Ok(SocketAddr::V4(own)) = own else {
        eprintln!("this host has no address but loopback: not tested");
        return;
    };
    let listener = TcpListener::bind((*own.ip(), 0)).unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("it is an IPv4 address") };
    std::thread::spawn(move || echo(listener.accept().unwrap().0));
    let mut guest = Guest::start(&Options::default());
    let connection = guest.connect(address);
    guest.send(connection, b"hello");
    assert_eq!(guest.receive_exactly(connection, 5), b"hello");
    guest.end();
}

#[test]
fn a_reset_of_one_side_is_a_reset_to_the_other() {
    let (report, reported) = std::sync::mpsc::channel();
    let address = server(move |mut stream| {
        let mut first = [0];
        stream.read_exact(&mut first).unwrap();
        if first == *b"r" {
            let zero = Some(Duration::ZERO);
            rustix::net::sockopt::set_socket_linger(&stream, zero).unwrap();
            return; // closed so, it is reset
        }
        report.send(stream.read(&mut first).unwrap_err().kind()).unwrap();
    });
    let mut guest = Guest::start(&on_loopback());
    let connection = guest.connect(address);
    guest.send(connection, b"r");
    guest.until("the guest is told", |sockets| {
        (sockets.get::<Socket<'_>>(connection).state() == State::Closed).then_some(())
    });
    let connection = guest.begin(address, 40_001);
    assert!(guest.opens(connection));
    guest.send(connection, b"a");
    guest.until("that has arrived", |sockets| {
        (sockets.get::<Socket<'_>>(connection).send_queue() == 0).then_some(())
    });
    guest.socket::<Socket<'_>>(connection).abort();
    guest.until("the host is told", |_| {
        reported.try_recv().ok().map(|kind| assert_eq!(kind, ErrorKind::ConnectionReset))
    });
    guest.end();
}

#[test]
fn many_connections_at_once_and_one_after_the_other() {
    const AT_ONCE: u16 = 200;
    let address = server(echo);
    let mut guest = Guest::start(&on_loopback());
    let all: Vec<_> = (0..AT_ONCE).map(|n| guest.begin(address, 10_000 + n)).collect();
    for (n, connection) in all.iter().enumerate() {
        assert!(guest.opens(*connection), "connection {n}");
        guest.send(*connection, &pattern(n));
    }
    for (n, connection) in all.iter().enumerate() {
        guest.socket::<Socket<'_>>(*connection).close();
        assert!(guest.receive_all(*connection) == pattern(n));
        guest.sockets.remove(*connection);
    }
    // More than there may be at once: those that have ended do not count.
    for n in 0..FLOWS as u16 * 2 {
        let connection = guest.begin(address, 20_000 + n);
        assert!(guest.opens(connection), "connection {n}");
        guest.socket::<Socket<'_>>(connection).close();
        guest.receive_all(connection);
        guest.sockets.remove(connection);
    }
    guest.end();
}

#[test]
fn a_guest_that_does_not_read_slows_the_sender_down() {
    let (report, reported) = std::sync::mpsc::channel();
    let address = server(move |mut stream| {
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let block = vec![7; 1 << 20];
        let mut sent = 0_u64;
        while let Ok(length) = stream.write(&block) {
            sent += length as u64;
            assert!(sent < 1 << 30, "there is no end to what is taken");
        }
        report.send(sent).unwrap();
    });
    let mut guest = Guest::start(&on_loopback());
    let connection = guest.connect(address);
    let sent = guest.until("the sender is stopped", |_| reported.try_recv().ok());
    let mut received = 0;
    guest.until("what was sent arrives", |sockets| {
        let socket = sockets.get_mut::<Socket<'_>>(connection);
        while socket.can_recv() {
            received += socket.recv(|bytes| (bytes.len(), bytes.len() as u64)).unwrap();
        }
        (!socket.may_recv()).then_some(())
    });
    assert_eq!(received, sent);
    guest.end();
}

fn published(ports: &str) -> Options {
    Options { published: vec![ports.parse().unwrap()], ..Options::default() }
}

#[test]
fn a_published_port_leads_to_the_guest() {
    let mut guest = Guest::start(&published("0:80"));
    let server = guest.tcp_socket();
    guest.socket::<Socket<'_>>(server).listen(80).unwrap();
    let address = guest.published[0];
    let client = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&pattern(5 << 20)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer == pattern(3 << 20));
    });
    guest.until("somebody connects", |sockets| sockets.get::<Socket<'_>>(server).may_send().then_some(()));
    let peer = guest.socket::<Socket<'_>>(server).remote_endpoint().unwrap();
    assert_eq!(peer.addr, IpAddress::Ipv4(GATEWAY));
    assert!(guest.receive_all(server) == pattern(5 << 20));
    guest.send(server, &pattern(3 << 20));
    guest.socket::<Socket<'_>>(server).close();
    guest.until("the client is content", |_| client.is_finished().then_some(()));
    client.join().unwrap();
    guest.end();
}

#[test]
fn a_published_port_nobody_listens_at_in_the_guest_resets() {
    let mut guest = Guest::start(&published("0:80"));
    let address = guest.published[0];
    let client =
        std::thread::spawn(move || TcpStream::connect(address).unwrap().read(&mut [0]).unwrap_err().kind());
    guest.until("the client is told", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), ErrorKind::ConnectionReset);
    guest.end();
}

#[test]
fn a_port_that_is_taken_cannot_be_published() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = UserNetwork::new(&published(&format!("{port}:80"))).err().unwrap();
    assert!(error.to_string().contains(&format!("`127.0.0.1:{port}:80`")), "{error}");
}

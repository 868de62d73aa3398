//! Clients on a network of two: their TCP is smoltcp's, too.

use super::*;
use crate::testing::TestDisk;
use smoltcp::iface::Config;
use smoltcp::phy::{DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

type Cable = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// An end of a cable.
#[derive(Clone, Default)]
struct Port {
    receive: Cable,
    send: Cable,
}

impl Device for Port {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Room;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Room)> {
        Some((Frame(self.receive.borrow_mut().pop_front()?), Room(self.send.clone())))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room> {
        // A device has room for so many.
        (self.send.borrow().len() < 128).then(|| Room(self.send.clone()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

/// Room for a frame.
struct Room(Cable);

impl TxToken for Room {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        self.0.borrow_mut().push_back(frame);
        result
    }
}

fn interface(port: &mut Port, number: u8) -> Interface {
    let address = EthernetAddress([2, 0, 0, 0, 0, number]);
    let mut interface = Interface::new(Config::new(address.into()), port, Instant::ZERO);
    interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(IpAddress::v4(10, 0, 2, number), 24)).unwrap()
    });
    interface
}

/// A server with a disk, and clients at the other end of a cable.
struct Network<'a> {
    server: Server,
    database: Database<&'a mut TestDisk>,
    server_side: (Port, Interface),
    client_side: (Port, Interface),
    clients: SocketSet<'static>,
    time: Instant,
}

impl<'a> Network<'a> {
    fn new(disk: &'a mut TestDisk, memory: usize) -> Self {
        let mut client_port = Port::default();
        let mut server_port = Port { receive: client_port.send.clone(), send: client_port.receive.clone() };
        let server_interface = interface(&mut server_port, 15);
        let client_interface = interface(&mut client_port, 2);
        Self {
            server: Server::new(memory),
            database: Database::open(disk, 1, 16 << 20).unwrap(),
            server_side: (server_port, server_interface),
            client_side: (client_port, client_interface),
            clients: SocketSet::new(Vec::new()),
            time: Instant::ZERO,
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let mut socket = socket();
        socket.abort();
        let port = 40_000 + self.clients.iter().count() as u16;
        socket.connect(self.client_side.1.context(), (IpAddress::v4(10, 0, 2, 15), PORT), port).unwrap();
        self.clients.add(socket)
    }

    fn client(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.clients.get_mut(handle)
    }

    /// Lets a millisecond pass for both sides.
    fn step(&mut self) -> Next {
        self.time += Duration::from_millis(1);
        let (port, interface) = &mut self.client_side;
        interface.poll(self.time, port, &mut self.clients);
        let now = Now { monotonic: self.time, epoch_ms: 1_000_000 + self.time.total_millis() as u64 };
        let (port, interface) = &mut self.server_side;
        self.server.turn(interface, port, &mut self.database, now).unwrap()
    }

    /// Sends all of this from a client, and gives what came back until nothing comes any more.
    fn exchange(&mut self, handle: SocketHandle, mut bytes: &[u8]) -> Vec<u8> {
        let (mut received, mut quiet) = (Vec::new(), 0);
        while quiet < 100 {
            let socket = self.client(handle);
            if socket.can_send() {
                bytes = &bytes[socket.send_slice(bytes).unwrap()..];
            }
            let before = received.len();
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), received.extend_from_slice(bytes))).unwrap();
            }
            quiet = if received.len() == before && bytes.is_empty() { quiet + 1 } else { 0 };
            self.step();
        }
        received
    }
}

#[test]
fn clients_are_served_over_tcp() {
    let mut disk = TestDisk::new(1 << 16);
    let mut network = Network::new(&mut disk, 1 << 20);
    let (first, second) = (network.connect(), network.connect());
    assert_eq!(network.exchange(first, b"SET k 1\r\nINCR k\r\n"), b"+OK\r\n:2\r\n");
    assert_eq!(network.exchange(second, b"GET k\r\nQUIT\r\nGET k\r\n"), b"$1\r\n2\r\n+OK\r\n");
    assert!(!network.client(second).may_recv(), "closed by the server");
    network.client(first).close();
    assert_eq!(network.exchange(first, b""), b"");
    assert!(matches!(network.client(first).state(), tcp::State::TimeWait | tcp::State::Closed));
}

#[test]
fn much_is_sent_both_ways_whole_and_in_order() {
    let mut disk = TestDisk::new(1 << 16);
    let mut network = Network::new(&mut disk, 16 << 20);
    let client = network.connect();
    let value: Vec<u8> = (0..1_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let mut input = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000\r\n".to_vec();
    input.extend_from_slice(&value);
    input.extend_from_slice(b"\r\nGET k\r\nGET k\r\n");
    let expected = [b"+OK\r\n$1000000\r\n", &*value, b"\r\n$1000000\r\n", &value, b"\r\n"].concat();
    assert!(network.exchange(client, &input) == expected);
    let pings = b"PING\r\n".repeat(200_000);
    assert!(network.exchange(client, &pings) == b"+PONG\r\n".repeat(200_000));
}

#[test]
fn all_that_comes_at_once_shares_a_commit() {
    let mut disk = TestDisk::new(1 << 16);
    let mut network = Network::new(&mut disk, 1 << 20);
    let clients: Vec<_> = (0..MOST_CLIENTS).map(|_| network.connect()).collect();
    for handle in &clients {
        assert_eq!(network.exchange(*handle, b""), b"");
    }
    let before = network.database.figures().log.records;
    for (n, handle) in clients.iter().enumerate() {
        network.client(*handle).send_slice(format!("INCR k{}\r\nINCR k\r\n", n % 4).as_bytes()).unwrap();
    }
    assert!(network.exchange(clients[0], b"").starts_with(b":1\r\n"));
    assert_eq!(network.database.figures().log.records, before + 1);
    assert_eq!(network.exchange(clients[0], b"INCRBY k 0\r\n"), format!(":{MOST_CLIENTS}\r\n").into_bytes());
    let refused = network.connect();
    network.exchange(refused, b"");
    assert!(!network.client(refused).is_open(), "there are as many clients as can be");
    network.client(clients[1]).abort();
    network.exchange(clients[0], b"");
    let client = network.connect();
    assert_eq!(network.exchange(client, b"PING\r\n"), b"+PONG\r\n");
}

#[test]
fn of_clients_that_hold_too_much_the_worst_is_let_go() {
    let mut disk = TestDisk::new(1 << 16);
    let mut network = Network::new(&mut disk, 3 << 19);
    let (modest, greedy) = (network.connect(), network.connect());
    assert_eq!(network.exchange(modest, b"PING\r\n"), b"+PONG\r\n");
    network.exchange(greedy, b"*2\r\n$3\r\nGET\r\n$4000000\r\n");
    let chunk = [b'x'; 1 << 15];
    for _ in 0..200 {
        let _ = network.client(greedy).send_slice(&chunk);
        network.step();
    }
    assert!(!network.client(greedy).is_open());
    assert_eq!(network.exchange(modest, b"PING\r\n"), b"+PONG\r\n");
}

#[test]
fn a_server_with_nothing_to_do_waits() {
    let mut disk = TestDisk::new(1 << 16);
    let mut network = Network::new(&mut disk, 1 << 20);
    assert_eq!(network.step(), Next::Wait(None));
    let client = network.connect();
    network.exchange(client, b"PING\r\n");
    assert!(
        matches!(network.step(), Next::Wait(Some(later)) if later > network.time + Duration::from_secs(10))
    );
    network.client(client).send_slice(b"SHUTDOWN\r\n").unwrap();
    assert!((0..10).any(|_| network.step() == Next::Shutdown));
}

//! The web server `httpd`, through the user-mode network, with clients of the host's.

mod common;

use common::*;
use hv_core::devices::{Access, Net, NetLink, SharedFolder};
use hv_core::net::user::{Options, UserNetwork};
use hv_core::{Config, DeviceConfig, Vm};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A port that is free, or was a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the host has a port");
    listener.local_addr().expect("it is bound").port()
}

/// Starts the server, with an archive of its own, this one, or a folder. Gives where it is reached.
fn start_server(ramdisk: Vec<u8>, share: Option<&Path>) -> (Vm, SocketAddr) {
    let port = free_port();
    let published = format!("{port}:80").parse().expect("ports are published so");
    let network = UserNetwork::new(&Options { published: vec![published], ..Options::default() });
    let network = network.expect("the port is free");
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    std::thread::spawn(move || network.serve(&near));
    let (config, console) = config("httpd", &[]);
    let net = Net { link: NetLink::Stream(far), mac: [2, 0, 0, 0, 0, 1], mtu: 65_520 };
    let mut devices = vec![DeviceConfig::Net(net)];
    devices.extend(share.map(|path| {
        let folder = SharedFolder::open(path, "site", Access::ReadOnly);
        DeviceConfig::FileSystem(folder.expect("it can be shared"))
    }));
    let vm = Vm::start(Config { devices, ramdisk, ..config });
    console.wait_for("http://10.0.2.15/\n");
    (vm.expect("the VM starts"), SocketAddr::from(([127, 0, 0, 1], port)))
}

/// A connection to a server.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).expect("the server accepts connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
        Self(BufReader::new(stream))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).expect("the server takes it");
    }

    fn ask(&mut self, target: &str, fields: &str) {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n").as_bytes());
    }

    /// The next answer: its status, and its body.
    fn answer(&mut self) -> (u16, Vec<u8>) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(self.0.read_line(&mut head).expect("an answer comes") > 0, "the server has gone: {head}");
        }
        let length = head.split("Content-Length: ").nth(1).and_then(|rest| rest.split('\r').next());
        let mut body = vec![0; length.map_or(0, |length| length.parse().expect("it is a number"))];
        self.0.read_exact(&mut body).expect("the body comes");
        (head[9..12].parse().expect("a status"), body)
    }

    fn get(&mut self, target: &str) -> (u16, Vec<u8>) {
        self.ask(target, "");
        self.answer()
    }
}

/// An archive with one file of so many random bytes.
fn site(bytes: usize) -> (Vec<u8>, Vec<u8>) {
    let mut file = vec![0; bytes];
    fastrand::Rng::with_seed(5).fill(&mut file);
    let mut header = [0; 512];
    header[..8].copy_from_slice(b"file.bin");
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{bytes:011o}\0").as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = [&header[..], &file].concat();
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    (archive, file)
}

#[test]
fn pages_parts_and_lists_are_served_on_one_connection() {
    let (_vm, server) = start_server(Vec::new(), None);
    let mut client = Client::new(server);
    let (status, page) = client.get("/");
    assert_eq!(status, 200);
    assert!(String::from_utf8_lossy(&page).contains("It works"));
    assert_eq!(client.get("/nothing").0, 404);
    assert_eq!(client.get("/../index.html").0, 404);
    let (_, list) = client.get("/docs/");
    assert!(String::from_utf8_lossy(&list).contains("about.txt"));
    client.ask("/docs/about.txt", "Range: bytes=0-4\r\n");
    assert_eq!(client.answer(), (206, b"httpd".to_vec()));
    for _ in 0..100 {
        client.ask("/", "");
    }
    for _ in 0..100 {
        assert_eq!(client.answer(), (200, page.clone()), "requests that come at once are answered in order");
    }
    client.ask("/", "Connection: close\r\n");
    assert_eq!(client.answer().0, 200);
    assert_eq!(client.0.read(&mut [0; 1]).expect("a good end"), 0, "and then the server goes");
}

#[test]
fn large_files_come_whole_to_several_clients_across_pauses() {
    let (archive, file) = site(10 << 20);
    let (mut vm, server) = start_server(archive, None);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(|| Client::new(server).get("/file.bin"))).collect();
        while !clients.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            vm = vm.pause().expect("it runs").resume();
            std::thread::sleep(Duration::from_millis(5));
        }
        for client in clients {
            let (status, body) = client.join().expect("a client that was served");
            assert!(status == 200 && body == file);
        }
    });
}

#[test]
fn a_shared_folder_is_served_as_it_is_at_the_moment() {
    let outside = tempfile::tempdir().expect("a temporary directory");
    let site = outside.path().join("site");
    std::fs::create_dir_all(site.join("sub")).expect("a directory");
    std::fs::write(outside.path().join("secret"), "secret").expect("a file");
    std::os::unix::fs::symlink("../secret", site.join("link")).expect("a link");
    let (_, file) = self::site(3 << 20);
    std::fs::write(site.join("file.bin"), &file).expect("a file");
    let (_vm, server) = start_server(Vec::new(), Some(&site));
    let mut client = Client::new(server);
    assert!(client.get("/file.bin") == (200, file));
    let (status, list) = client.get("/");
    let list = String::from_utf8_lossy(&list);
    assert!(status == 200 && list.contains("./file.bin") && list.contains("./sub/"), "{list}");
    for outside in ["/link", "/../secret", "/sub/..%2f..%2fsecret", "/new"] {
        assert_eq!(client.get(outside).0, 404, "{outside}");
    }
    std::fs::write(site.join("new"), "new").expect("a file");
    assert_eq!(client.get("/new"), (200, b"new".to_vec()));
}

#[test]
fn many_clients_at_once_are_served() {
    let (_vm, server) = start_server(Vec::new(), None);
    let mut clients: Vec<Client> = (0..100).map(|_| Client::new(server)).collect();
    for round in 0..3 {
        clients.iter_mut().for_each(|client| client.ask("/", ""));
        for client in &mut clients {
            assert_eq!(client.answer().0, 200, "round {round}");
        }
    }
}

#[test]
fn clients_that_send_anything_or_go_at_any_time_do_not_harm_others() {
    let (_vm, server) = start_server(Vec::new(), None);
    let mut random = fastrand::Rng::with_seed(2);
    let good = b"GET /docs/about.txt HTTP/1.1\r\nHost: a\r\n\r\n";
    for _ in 0..150 {
        let mut bytes = good.to_vec();
        bytes.truncate(random.usize(..=good.len()));
        if random.bool() {
            let at = random.usize(..=bytes.len());
            bytes.splice(at..at, std::iter::repeat_with(|| random.u8(..)).take(20).collect::<Vec<u8>>());
        }
        let mut client = Client::new(server);
        let _ = client.0.get_mut().write_all(&bytes);
        let _ = client.0.get_mut().set_nonblocking(true);
        let _ = client.0.read(&mut [0; 100]);
    }
    assert_eq!(Client::new(server).get("/").0, 200);
}

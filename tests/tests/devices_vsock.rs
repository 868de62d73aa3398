//! Sockets between a guest and programs of the host.

mod common;

use common::*;
use hv_core::devices::{ListenError, Vsock, VsockError, connect};
use hv_core::{Config, DeviceConfig, End, Report, Vm};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A directory of sockets that goes with this value.
struct Sockets(PathBuf);

impl Sockets {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hv-vsock-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn path(&self) -> PathBuf {
        self.0.join("guest.sock")
    }

    fn device(&self) -> DeviceConfig {
        let path = self.path();
        let vsock = Vsock::new(&self.path(), 3, move |port| connect(&path, port));
        DeviceConfig::Vsock(vsock.expect("it can be listened on"))
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.0.join(format!("guest.sock_{port}"))).expect("a socket")
    }

    /// Sends back what comes, on connections to port 1000.
    fn echo(&self) {
        let listener = self.listen(1000);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                thread::spawn(move || {
                    // One that has gone wants nothing back.
                    let _ = std::io::copy(&mut &stream, &mut &stream);
                    let _ = stream.shutdown(Shutdown::Write);
                });
            }
        });
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn start(sockets: &Sockets, arguments: &[&str]) -> (Vm, Console) {
    let (config, console) = config("devices", arguments);
    let vm = Vm::start(Config { devices: vec![sockets.device()], ..config }).expect("the VM starts");
    (vm, console)
}

#[track_caller]
fn assert_good(report: &Report, console: &Console) {
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
}

/// Connects to a port of the guest's; the stream, once the guest has agreed.
fn connect_to_guest(path: &Path, port: &str) -> Option<BufReader<UnixStream>> {
    let mut stream = UnixStream::connect(path).expect("the device listens");
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).expect("it reads");
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let host = line.strip_prefix("OK ").and_then(|port| port.trim_end().parse::<u32>().ok());
    assert!(host.is_some(), "{line:?}");
    Some(stream)
}

#[test]
fn a_guest_connects_is_refused_and_closes_one_direction() {
    let sockets = Sockets::new("check");
    sockets.echo();
    let (vm, console) = start(&sockets, &["vsock"]);
    assert_good(&wait(vm), &console);
    assert_eq!(console.text(), "device 0: vsock\ncontext 3\nvsock: good\n");
}

#[test]
fn programs_of_the_host_connect_to_ports_of_the_guest() {
    let sockets = Sockets::new("serve");
    let (vm, console) = start(&sockets, &["vsock-serve"]);
    console.wait_for("listening");
    let nobody = connect_to_guest(&sockets.path(), "2001");
    assert!(nobody.is_none(), "there is nobody at port 2001");
    for bad in ["x", "", "4294967296", "-1", "20000000000000000000000000"] {
        assert!(connect_to_guest(&sockets.path(), bad).is_none(), "{bad}");
    }
    let idle = UnixStream::connect(sockets.path()).expect("it listens");
    let sent: Vec<u8> = (0..300_000_u32).map(|at| (at ^ at >> 8) as u8).collect();
    for sent in [&sent[..], b""] {
        let mut stream = connect_to_guest(&sockets.path(), "2000").expect("the guest agrees");
        stream.get_mut().write_all(sent).expect("it reads");
        stream.get_mut().shutdown(Shutdown::Write).expect("it is open");
        let mut reversed = Vec::new();
        stream.read_to_end(&mut reversed).expect("it is open");
        reversed.reverse();
        assert!(reversed == sent, "{} bytes came back", reversed.len());
    }
    assert_good(&wait(vm), &console);
    drop(idle);
}

#[test]
fn many_connections_lose_nothing_across_pauses() {
    let sockets = Sockets::new("load");
    sockets.echo();
    let (mut vm, console) = start(&sockets, &["vsock-load", "5"]);
    let start = Instant::now();
    let report = loop {
        vm = match vm.pause() {
            Ok(paused) => paused.resume(),
            Err(report) => break report,
        };
        match vm.wait_timeout(Duration::from_millis(5)) {
            Ok(report) => break report,
            Err(running) => vm = running,
        }
        assert!(start.elapsed() < PATIENCE, "{}", console.text());
    };
    assert_good(&report, &console);
}

/// Takes one connection to port 1002, and reads all of it when it is told to.
fn slow_reader(sockets: &Sockets, begin: Receiver<()>) -> thread::JoinHandle<Vec<u8>> {
    let listener = sockets.listen(1002);
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the guest connects");
        begin.recv().expect("it will be told");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("the guest closes it");
        bytes
    })
}

#[test]
fn a_host_that_does_not_read_holds_its_guest_back_and_loses_nothing() {
    let sockets = Sockets::new("slow");
    let (begin, told) = channel();
    let reader = slow_reader(&sockets, told);
    let (vm, console) = start(&sockets, &["vsock-slow"]);
    console.wait_for("full");
    begin.send(()).expect("it waits");
    let read = reader.join().expect("it reads");
    let expected: Vec<u8> = (0..3 << 20).map(|at: u32| (at ^ at >> 8) as u8).collect();
    assert!(read == expected, "{} bytes came", read.len());
    assert_good(&wait(vm), &console);
}

#[test]
fn packets_that_lie_harm_their_guest_alone() {
    let sockets = Sockets::new("hostile");
    sockets.echo();
    let reader = sockets.listen(1002); // accepts nobody
    let (vm, console) = start(&sockets, &["vsock-hostile", "3"]);
    assert_good(&wait(vm), &console);
    assert!(!console.text().contains("\n0 of 60"), "{}", console.text());
    drop(reader);
}

#[test]
fn a_path_is_listened_on_by_one_and_what_was_left_is_replaced() {
    let sockets = Sockets::new("path");
    let open = || {
        let path = sockets.path();
        Vsock::new(&sockets.path(), 3, move |port| connect(&path, port))
    };
    let first = open().expect("it is free");
    assert!(matches!(open(), Err(VsockError::Listen(ListenError::InUse { .. }))));
    drop(first);
    assert!(sockets.path().exists());
    open().expect("nobody listens any more");
    let nowhere = Vsock::new(Path::new("/nowhere/at/all"), 3, |_| unreachable!());
    assert!(matches!(nowhere, Err(VsockError::Listen(ListenError::Listen { .. }))));
    for cid in [0, 1, 2, u32::MAX] {
        let vsock = Vsock::new(&sockets.path(), cid, |_| unreachable!());
        assert!(matches!(vsock, Err(VsockError::Cid { .. })), "{cid}");
    }
}

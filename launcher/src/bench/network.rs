//! Networks: what goes from one guest to another by a switch, and from a guest to the host, beside TCP over the host's loopback.

use crate::bench::{Figure, Phase, guest};
use hv_core::devices::{Net, NetLink};
use hv_core::net::switch::Switch;
use hv_core::{DeviceConfig, Vm};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

pub(super) const STEPS: u32 = 1;

/// Gigabits a second that are wanted between VMs, with large segments.
const AIM: f64 = 5.0;
/// A run that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const LARGE: u16 = 65_535;
const USUAL: u16 = 1500;

/// Microseconds for a MiB at so many gigabits a second.
fn us_a_mib(gigabits: f64) -> f64 {
    8.0 * f64::from(1 << 20) / (gigabits * 1000.0)
}

/// Rows of both: for each MiB, and for each frame of the usual size.
pub(super) fn measure(phase: Phase, quick: bool, directory: &Path) -> Vec<Figure> {
    let mebibytes = if quick { 200 } else { 2000 };
    let host = loopback(phase, mebibytes);
    let host_frame = datagrams(phase, mebibytes);
    let mut figures = vec![host.clone(), host_frame.clone()];
    for mtu in [LARGE, USUAL] {
        for (what, send, receive) in
            [("frames", "rate-send", "rate-receive"), ("TCP", "rate-send-tcp", "rate-receive-tcp")]
        {
            let path = directory.join(format!("{send}-{mtu}"));
            let (gigabits, pieces) = between_guests(&path, (send, receive), mtu, mebibytes);
            let name = format!("{what} from VM to VM by a switch, MTU {mtu}");
            let row =
                Figure::new(&format!("{name}, a MiB"), "us", phase, vec![us_a_mib(gigabits)]).against(&host);
            figures.push(if mtu == LARGE { row.at_most(us_a_mib(AIM)) } else { row });
            if what == "frames" {
                let row = Figure::new(&format!("{name}, a frame"), "us", phase, vec![1e6 / pieces]);
                figures.push(if mtu == USUAL { row.against(&host_frame) } else { row });
            }
        }
    }
    for mtu in [LARGE, USUAL] {
        let us = to_host(mtu, mebibytes);
        figures.push(
            Figure::new(&format!("frames from VM to host, MTU {mtu}, a MiB"), "us", phase, vec![us])
                .against(&host),
        );
    }
    figures
}

/// TCP on the host, from one thread to another.
fn loopback(phase: Phase, mebibytes: usize) -> Figure {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback is there");
    let address = listener.local_addr().expect("it is bound");
    let sender = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(address).expect("it listens");
        let bytes = vec![0; 64 << 10];
        (0..mebibytes * 16).for_each(|_| stream.write_all(&bytes).expect("the other end reads"));
    });
    let (mut stream, _) = listener.accept().expect("it connects");
    let us = drain(&mut stream, mebibytes << 20);
    drop(stream);
    let _ = sender.join(); // what was left of the last MiB is of no use
    Figure::new("TCP over the host's loopback, a MiB", "us", phase, vec![us])
}

/// Datagrams of a frame's usual size on the host, from one thread to another.
fn datagrams(phase: Phase, mebibytes: usize) -> Figure {
    let (near, far) = UnixDatagram::pair().expect("a pair of sockets");
    let frames = (mebibytes << 20) / usize::from(USUAL) / 4;
    let sender = std::thread::spawn(move || {
        let bytes = [0; USUAL as usize];
        (0..frames).for_each(|_| {
            near.send(&bytes).expect("the other end reads");
        });
    });
    let mut buffer = [0; USUAL as usize];
    let start = Instant::now();
    (0..frames).for_each(|_| {
        far.recv(&mut buffer).expect("the other end sends");
    });
    let us = start.elapsed().as_secs_f64() * 1e6 / frames as f64;
    sender.join().expect("it sends, and no more");
    Figure::new("a datagram of 1500 bytes through a pair of sockets", "us", phase, vec![us])
}

/// Reads so many bytes, and says how many microseconds a MiB took.
fn drain(stream: &mut impl Read, bytes: usize) -> f64 {
    let mut buffer = vec![0; 256 << 10];
    let (mut read, mut start) = (0, None);
    while read < bytes {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(some) => read += some,
        }
        start.get_or_insert_with(Instant::now);
    }
    let elapsed = start.map_or(Duration::ZERO, |start| start.elapsed());
    elapsed.as_secs_f64() * 1e6 / (read as f64 / f64::from(1 << 20))
}

fn start(trial: &[&str], link: UnixStream, mac: u8, mtu: u16) -> (Vm, Receiver<(Instant, Vec<u8>)>) {
    let (mut config, output) = guest::config("devices", trial);
    let mac = [2, 0, 0, 0, 0, mac];
    config.devices = vec![DeviceConfig::Net(Net { link: NetLink::Stream(link), mac, mtu })];
    (Vm::start(config).expect("a benchmark guest starts"), output)
}

/// Gigabits and pieces a second, as the receiving guest says.
fn between_guests(path: &Path, (send, receive): (&str, &str), mtu: u16, mebibytes: usize) -> (f64, f64) {
    let mut switch = Switch::new(UnixListener::bind(path).expect("a socket")).expect("a switch");
    let [near, far] = [(); 2].map(|()| UnixStream::connect(path).expect("the switch is there"));
    assert!(switch.accept().expect("the host gives it ports"), "nobody else connects");
    std::thread::spawn(move || switch.serve());
    let (receiver, output) = start(&[receive, &mebibytes.to_string()], near, 1, mtu);
    let (sender, _) = start(&[send, &(mebibytes * 2).to_string()], far, 2, mtu);
    let begun = Instant::now();
    let mut text = String::new();
    let numbers = loop {
        match output.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
            Ok((_, bytes)) => text += &String::from_utf8_lossy(&bytes),
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
                panic!("a benchmark guest received nothing: {text}")
            }
        }
        if let Some(line) = text.lines().find(|line| line.contains("Gbit/s") && line.ends_with("second")) {
            let numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
            break numbers.collect::<Vec<f64>>();
        }
    };
    drop((sender, receiver));
    (numbers[0], numbers[1])
}

/// Microseconds a MiB that come out of a network card.
fn to_host(mtu: u16, mebibytes: usize) -> f64 {
    let (near, mut far) = UnixStream::pair().expect("a pair of sockets");
    far.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    let (sender, _output) = start(&["rate-send", &(mebibytes * 2).to_string()], near, 1, mtu);
    let us = drain(&mut far, mebibytes << 20);
    drop(sender);
    us
}

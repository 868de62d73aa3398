//! Network cards: a guest and a socket of the test's, and two guests with one wire between them.

mod common;

use common::*;
use hv_core::devices::{Net, NetLink};
use hv_core::net::switch::Switch;
use hv_core::{Config, DeviceConfig, End, Vm};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// The type of the frame after which the guest ends.
const LAST: [u8; 2] = [0x88, 0xb6];
const OTHER: [u8; 2] = [0x88, 0xb5];

/// The guest `devices` with a network card, not yet started.
fn guest(arguments: &[&str], wire: UnixStream, mac: u8, mtu: u16) -> (Config, Console) {
    let (config, console) = config("devices", arguments);
    let net = Net { link: NetLink::Stream(wire), mac: [2, 0, 0, 0, 0, mac], mtu };
    (Config { devices: vec![DeviceConfig::Net(net)], ..config }, console)
}

fn start_guest(arguments: &[&str], wire: UnixStream, mac: u8, mtu: u16) -> (Vm, Console) {
    let (config, console) = guest(arguments, wire, mac, mtu);
    (Vm::start(config).expect("the VM starts"), console)
}

/// Waits for a good end.
fn ends_well(vm: Vm, console: &Console) {
    let report = wait(vm);
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
}

fn wire() -> (UnixStream, UnixStream) {
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    near.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    near.set_write_timeout(Some(PATIENCE)).expect("a time-out can be set");
    (near, far)
}

fn frame(number: usize, length: usize, kind: [u8; 2]) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..length).map(|at| (at.wrapping_mul(7) ^ number) as u8).collect();
    frame[12..14].copy_from_slice(&kind);
    frame
}

fn send(wire: &mut UnixStream, frame: &[u8]) {
    let framed = [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
    wire.write_all(&framed).expect("the guest takes it");
}

fn receive(wire: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    wire.read_exact(&mut length).expect("a frame comes");
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    wire.read_exact(&mut frame).expect("the frame comes to its end");
    frame
}

/// Has the guest send frames of these lengths back.
fn echo(mtu: u16, lengths: impl Iterator<Item = usize>) {
    let (mut near, far) = wire();
    let (vm, console) = start_guest(&["net-echo"], far, 1, mtu);
    let lengths: Vec<usize> = lengths.collect();
    let mut writer = near.try_clone().expect("a socket can be had twice");
    let to_send = lengths.clone();
    let sender = std::thread::spawn(move || {
        for (number, length) in to_send.into_iter().enumerate() {
            send(&mut writer, &frame(number, length, OTHER));
        }
        send(&mut writer, &frame(0, 60, LAST));
    });
    for (number, length) in lengths.into_iter().enumerate() {
        assert!(receive(&mut near) == frame(number, length, OTHER), "frame {number}, of {length} bytes");
    }
    assert_eq!(receive(&mut near), frame(0, 60, LAST));
    sender.join().expect("all was sent");
    ends_well(vm, &console);
}

#[test]
fn frames_of_every_length_come_back_as_they_were() {
    echo(1500, 14..=1514);
}

#[test]
fn frames_of_the_greatest_length_do_too_among_short_ones() {
    let mut random = fastrand::Rng::with_seed(3);
    let lengths: Vec<usize> = (0..400)
        .map(|at| match at % 4 {
            0 => 65_549,
            1 => random.usize(14..100),
            2 => random.usize(4000..4200),
            _ => random.usize(14..=65_549),
        })
        .collect();
    echo(65_535, lengths.into_iter());
}

#[test]
fn frames_that_are_too_long_for_the_guest_are_dropped_and_counted() {
    let (mut near, far) = wire();
    let (vm, console) = start_guest(&["net-echo"], far, 1, 1500);
    for length in [1515, 14, 65_549, 60, 9000, 99] {
        send(&mut near, &frame(1, length, OTHER));
    }
    assert_eq!([14, 60, 99], [(); 3].map(|()| receive(&mut near).len()));
    assert_eq!(vm.handle().stats().expect("the guest waits for more").devices[0].dropped, 3);
    send(&mut near, &frame(0, 60, LAST));
    ends_well(vm, &console);
}

#[test]
fn a_burst_between_two_guests_loses_nothing_across_pauses() {
    for mtu in [1500, 65_535] {
        let (near, far) = wire();
        let count = if mtu == 1500 { "20000" } else { "3000" };
        let (mut sender, sent) = start_guest(&["net-send", count], near, 1, mtu);
        let (mut receiver, received) = start_guest(&["net-expect", count], far, 2, mtu);
        let start = Instant::now();
        let report = loop {
            match receiver.pause() {
                Ok(paused) => receiver = paused.resume(),
                Err(report) => break report,
            }
            sender = match sender.pause() {
                Ok(paused) => paused.resume(),
                Err(report) => {
                    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", sent.text());
                    break wait(receiver);
                }
            };
            match receiver.wait_timeout(Duration::from_millis(3)) {
                Ok(report) => break report,
                Err(running) => receiver = running,
            }
            assert!(start.elapsed() < PATIENCE, "{}", received.text());
        };
        assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", received.text());
    }
}

#[test]
fn streams_between_two_guests_are_whole() {
    for mtu in [1500, 65_535] {
        let (near, far) = wire();
        let (server, served) = start_guest(&["net-serve", "12"], near, 1, mtu);
        let (clients, connected) = start_guest(&["net-clients", "12", "500000"], far, 2, mtu);
        ends_well(clients, &connected);
        ends_well(server, &served);
    }
}

#[test]
fn a_peer_that_goes_is_a_link_that_is_down() {
    let (near, far) = wire();
    let (vm, console) = start_guest(&["net-link"], far, 1, 1500);
    console.wait_for("the link is up");
    drop(near);
    ends_well(vm, &console);
}

#[test]
fn a_peer_that_announces_what_cannot_be_is_a_link_that_is_down() {
    for length in [13, 65_550, u32::MAX, 0] {
        let (mut near, far) = wire();
        let (vm, console) = start_guest(&["net-link"], far, 1, 1500);
        console.wait_for("the link is up");
        near.write_all(&length.to_be_bytes()).expect("it takes four bytes");
        ends_well(vm, &console);
    }
}

#[test]
#[ignore = "a measurement: shows what two guests with a switch between them carry"]
fn rates() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (send, receive) in [
        (&["rate-send", "1000000"][..], &["rate-receive", "3000"][..]),
        (&["rate-send-tcp", "2000"], &["rate-receive-tcp"]),
    ] {
        for mtu in [1500, 65_535] {
            let path = directory.path().join(format!("{}-{mtu}", send[0]));
            let mut switch = Switch::new(UnixListener::bind(&path).expect("a socket")).expect("a switch");
            let [near, far] = [(); 2].map(|()| UnixStream::connect(&path).expect("the switch is there"));
            assert!(switch.accept().expect("the host gives it ports"));
            std::thread::spawn(move || switch.serve());
            let (receiver, received) = start_guest(receive, near, 1, mtu);
            let (sender, sent) = start_guest(send, far, 2, mtu);
            ends_well(receiver, &received);
            println!("MTU {mtu}: {}", received.text().lines().nth(1).expect("a rate"));
            drop((sender, sent)); // one that sends frames sends them for ever
        }
    }
}

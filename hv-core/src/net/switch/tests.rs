//! The switch, seen from VMs on it.

use super::*;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::JoinHandle;

const ALL: Address = [0xff; 6];

/// A switch on a thread, which ends when all have left.
struct Running {
    path: std::path::PathBuf,
    /// Keeps it from ending.
    first: Option<UnixStream>,
    thread: JoinHandle<io::Result<()>>,
}

fn start() -> Running {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("hv-switch-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
    let path = std::env::temp_dir().join(name);
    let mut switch = Switch::new(UnixListener::bind(&path).unwrap()).unwrap();
    let first = Some(UnixStream::connect(&path).unwrap());
    assert!(switch.accept().unwrap());
    Running { path, first, thread: std::thread::spawn(move || switch.serve()) }
}

impl Running {
    fn plug_in(&self) -> Vm {
        let socket = UnixStream::connect(&self.path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Vm { socket }
    }

    fn end(mut self) {
        self.first = None;
        self.thread.join().unwrap().unwrap();
        std::fs::remove_file(self.path).unwrap();
    }
}

struct Vm {
    socket: UnixStream,
}

fn address(n: u8) -> Address {
    [2, 0, 0, 0, 0, n]
}

impl Vm {
    fn send(&mut self, to: Address, from: Address, payload: &[u8]) {
        let frame = [&to[..], &from, b"\x88\xb5", payload].concat();
        self.socket.write_all(&[&(frame.len() as u32).to_be_bytes(), &frame[..]].concat()).unwrap();
    }

    /// The next frame.
    fn frame(&mut self) -> Vec<u8> {
        let mut prefix = [0; PREFIX];
        self.socket.read_exact(&mut prefix).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
        self.socket.read_exact(&mut frame).unwrap();
        frame
    }

    /// The payload of the next frame.
    fn receive(&mut self) -> Vec<u8> {
        self.frame().split_off(14)
    }
}

#[test]
fn frames_go_to_all_until_it_is_known_where_to() {
    let switch = start();
    let [mut a, mut b, mut c] = [(); 3].map(|()| switch.plug_in());
    a.send(address(2), address(1), b"to b, from an unknown place");
    assert_eq!(b.receive(), b"to b, from an unknown place");
    assert_eq!(c.receive(), b"to b, from an unknown place");
    b.send(address(1), address(2), b"to a");
    assert_eq!(a.receive(), b"to a");
    a.send(address(2), address(1), b"to b alone");
    a.send(ALL, address(1), b"to all");
    assert_eq!(b.receive(), b"to b alone");
    assert_eq!(b.receive(), b"to all");
    assert_eq!(c.receive(), b"to all", "what is for b or a alone does not come here");
    b.send(ALL, address(2), b"the next that a gets");
    assert_eq!(a.receive(), b"the next that a gets", "nothing comes back to its sender");
    drop((a, b, c));
    switch.end();
}

#[test]
fn runs_of_frames_for_several_receivers_arrive_in_order_and_whole() {
    let switch = start();
    let [mut a, mut b, mut c] = [(); 3].map(|()| switch.plug_in());
    b.send(ALL, address(2), b"here");
    c.send(ALL, address(3), b"here");
    for _ in 0..2 {
        assert_eq!(a.receive(), b"here");
    }
    assert_eq!((b.receive(), c.receive()), (b"here".to_vec(), b"here".to_vec()));
    let payload = |n: u32| [&n.to_be_bytes()[..], &vec![n as u8; (n as usize * 997) % 65_000]].concat();
    let to = |n: u32| if (n / 3).is_multiple_of(2) { 2 } else { 3 };
    let sender = std::thread::spawn(move || {
        for n in 0..2000 {
            a.send(address(to(n)), address(1), &payload(n));
            if n % 8 == 7 {
                a.receive(); // no more than the switch holds is under way
            }
        }
    });
    let receive = |mut vm: Vm, own: u8| {
        std::thread::spawn(move || {
            for n in (0..2000).filter(|n| to(*n) == own) {
                assert!(vm.receive() == payload(n), "frame {n}");
                if n % 8 == 7 {
                    vm.send(address(1), address(own), b"go on");
                }
            }
        })
    };
    let receivers = [receive(b, 2), receive(c, 3)];
    sender.join().unwrap();
    for receiver in receivers {
        receiver.join().unwrap();
    }
    switch.end();
}

#[test]
fn a_vm_that_breaks_the_framing_is_let_go_and_others_go_on() {
    let switch = start();
    let [mut a, mut b] = [(); 2].map(|()| switch.plug_in());
    for hostile in
        [&[0xff; 64][..], &(frames::LONGEST_FRAME as u32 + 1).to_be_bytes(), b"\0\x01\0\x0ethis is 65,550"]
    {
        let mut vm = switch.plug_in();
        vm.socket.write_all(hostile).unwrap();
        assert_eq!(vm.socket.read(&mut [0]).unwrap_or(0), 0, "it was let go");
    }
    for length in 0..14_u32 {
        let short = [&length.to_be_bytes()[..], &vec![0; length as usize]].concat();
        a.socket.write_all(&short).unwrap(); // no frame, and no harm
    }
    a.send(ALL, address(1), b"still here");
    let received = std::iter::repeat_with(|| b.frame()).find(|frame| frame.len() > 14);
    assert_eq!(received.unwrap()[14..], *b"still here");
    drop((a, b));
    switch.end();
}

#[test]
fn a_vm_that_does_not_read_holds_nobody_up() {
    let switch = start();
    let [mut a, mut b, mut deaf] = [(); 3].map(|()| switch.plug_in());
    deaf.send(ALL, address(9), b"hello");
    b.send(ALL, address(2), b"hello");
    for _ in 0..2 {
        a.receive();
    }
    b.receive();
    let big = vec![7; 60_000];
    for n in 0..2000_u32 {
        a.send(address(9), address(1), &big); // 120 MB, more than anything holds
        if n % 10 == 0 {
            a.send(address(2), address(1), &n.to_be_bytes());
            assert_eq!(b.receive(), n.to_be_bytes());
        }
    }
    // What was held for it is whole.
    deaf.receive();
    deaf.receive();
    assert_eq!(deaf.receive(), big);
    drop((a, b, deaf));
    switch.end();
}

#[test]
fn a_vm_fills_only_its_own_share_of_the_table() {
    let mut table = Table::default();
    let now = Instant::now();
    table.learn(address(1), 1, now);
    for n in 0..10_000_u32 {
        let [.., a, b] = n.to_be_bytes();
        table.learn([6, 0, 0, 0, a, b], 2, now);
    }
    assert_eq!(table.seen.len(), ADDRESSES + 1);
    assert_eq!(table.port(address(1), now), Some(1));
    let later = now + AGE + Duration::from_secs(1);
    assert_eq!(table.port(address(1), later), None, "it is too long ago");
    table.learn(address(7), 2, later);
    assert_eq!(table.port(address(7), later), Some(2), "old ones made room");
    table.learn(address(7), 3, later);
    assert_eq!(table.port(address(7), later), Some(3), "it moved");
    table.forget(3);
    assert_eq!(table.port(address(7), later), None);
    assert!(table.counts.values().sum::<usize>() == table.seen.len());
}

#[test]
fn groups_are_not_learned() {
    let mut table = Table::default();
    table.learn(ALL, 1, Instant::now());
    table.learn([1, 0, 0x5e, 0, 0, 1], 1, Instant::now());
    assert!(table.seen.is_empty());
}

//! Drivers that break the rules of their devices, as a hostile guest would.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;
use guest_sdk::frames;
use guest_sdk::hv_abi::device::kind;
use guest_sdk::println;
use guest_sdk::time::{self, Instant};
use pv_drivers::queue::{Buffers, Parts, Queue};
use pv_drivers::virtio_drivers::transport::{DeviceStatus, Transport as _};
use pv_drivers::{Error, Transport};

/// Bytes for the device to read, and room for it to fill.
struct Bytes(Vec<u8>, Vec<u8>);

impl Buffers for Bytes {
    fn parts<'a>(&'a mut self, parts: &mut Parts<'a>) {
        parts.read(&self.0);
        parts.write(&mut self.1);
    }
}

/// Sets up `queues` of the first device of a kind, and hands it requests that `make` makes, many times. Says how often it found
/// that a rule was broken.
fn attack(
    of_kind: u32,
    queues: &[u16],
    random: &mut fastrand::Rng,
    mut make: impl FnMut(u16, &mut fastrand::Rng) -> Bytes,
) -> Result<(), Error> {
    const ROUNDS: u32 = 60;
    let mut broken = 0;
    for _ in 0..ROUNDS {
        let mut transport = Transport::find(of_kind)?;
        transport.negotiate(u64::MAX >> 32 & !(1 << 28 | 1 << 29))?;
        let set_up = |number: &u16| Queue::<Bytes, 64>::new(&mut transport, *number);
        let mut rings: Vec<_> = queues.iter().map(set_up).collect::<Result<_, _>>()?;
        transport.finish_init();
        for _ in 0..200 {
            for (ring, number) in rings.iter_mut().zip(queues) {
                let _ = ring.submit_and_forget(Box::new(make(*number, random))); // full: there is enough
                ring.ring();
                ring.look();
            }
        }
        let deadline = Instant::now() + Duration::from_millis(5);
        while Instant::now() < deadline && !needs_reset(&transport) {
            time::sleep(Duration::from_millis(1));
        }
        broken += u32::from(needs_reset(&transport));
        drop(rings);
    }
    println!("{broken} of {ROUNDS} broke the rules");
    Ok(())
}

/// Sends packets of sockets with fields that lie, and is still served properly afterwards.
pub fn vsock(seed: u64) -> Result<(), Error> {
    let mut random = fastrand::Rng::with_seed(seed);
    attack(kind::VSOCK, &[0, 1], &mut random, |queue, random| match queue {
        0 => Bytes(Vec::new(), vec![0; 44 + random.usize(1..300)]),
        _ => Bytes(packet(random), Vec::new()),
    })?;
    crate::vsock::check()
}

/// Sends messages of ports with fields that lie, to many ports at once, and is still served properly afterwards.
pub fn console(seed: u64) -> Result<(), Error> {
    let mut random = fastrand::Rng::with_seed(seed);
    attack(kind::CONSOLE, &[0, 1, 2, 3, 4, 5, 6, 7], &mut random, |queue, random| match queue {
        2 if random.u8(..) == 0 => Bytes(Vec::new(), vec![0; random.usize(1..20)]),
        2 => Bytes(Vec::new(), vec![0; 100]),
        3 => {
            let (port, event) = (random.u32(..5), random.u16(..9));
            let port = if random.u8(..) < 8 { random.u32(..) } else { port };
            let mut message = [port.to_le_bytes(), (u32::from(event) | 1 << 16).to_le_bytes()].concat();
            message.truncate(if random.u8(..) == 0 { random.usize(1..8) } else { 8 });
            Bytes(message, Vec::new())
        }
        queue if queue % 2 == 0 => Bytes(Vec::new(), vec![0; random.usize(1..500)]),
        _ => Bytes(vec![b'.'; random.usize(1..500)], Vec::new()),
    })?;
    crate::console::check()
}

/// Gives up pages that are not there, and takes back what it never gave. Those that it names are its own to name.
pub fn balloon(seed: u64) -> Result<(), Error> {
    let mut random = fastrand::Rng::with_seed(seed);
    // Pages of its own, which it can do without.
    let spare = frames::allocate(6).expect("there is so much");
    let first = (spare.phys().0 / 4096) as u32;
    attack(kind::BALLOON, &[0, 1, 4], &mut random, |queue, random| match queue {
        4 => Bytes(Vec::new(), vec![0; random.usize(1..5000)]),
        _ => {
            let page = |random: &mut fastrand::Rng| match random.u16(..) {
                0..4 => random.u32(..),
                _ => first + random.u32(..64),
            };
            let pages: Vec<u32> = (0..random.usize(1..50)).map(|_| page(random)).collect();
            let mut bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
            bytes.truncate(if random.u8(..) == 0 { random.usize(1..=bytes.len()) } else { bytes.len() });
            Bytes(bytes, Vec::new())
        }
    })?;
    Ok(())
}

fn needs_reset(transport: &Transport) -> bool {
    transport.get_status().contains(DeviceStatus::DEVICE_NEEDS_RESET)
}

/// A packet that is almost right, or not at all.
fn packet(random: &mut fastrand::Rng) -> Vec<u8> {
    let wild = random.u8(..) == 0;
    let any = |random: &mut fastrand::Rng, usual: &[u32]| match random.u8(..) {
        0..8 => random.u32(..),
        _ => usual[random.usize(..usual.len())],
    };
    let length = random.usize(..2000) * usize::from(random.bool());
    let fields = [
        any(random, &[3]),
        any(random, &[0]),
        any(random, &[2]),
        any(random, &[0]),
        any(random, &[10, 11, 12]),
        any(random, &[1000, 1001, 1002, 10, 11]),
        if wild { random.u32(..) } else { length as u32 },
        u32::from(random.u8(..) > 3) | any(random, &[1, 2, 3, 4, 5, 5, 5, 6, 7]) << 16,
        any(random, &[0, 1, 2, 3]),
        any(random, &[0, 100, 65536, u32::MAX]),
        any(random, &[0, 1, 5000]),
    ];
    let mut bytes: Vec<u8> = fields.iter().flat_map(|field| field.to_le_bytes()).collect();
    bytes.resize(44 + length, 0x5a);
    if wild {
        bytes.truncate(random.usize(1..60));
    }
    bytes
}

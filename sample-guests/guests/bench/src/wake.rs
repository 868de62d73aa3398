//! Events between two vCPUs: one that sleeps, and one that computes.

use crate::{print_all, tsc};
use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use guest_sdk::events::Channel;
use guest_sdk::smp;
use guest_sdk::time::{Duration, Instant, sleep};

/// Measures what its argument names. Whether there is such a measurement.
pub fn measure(what: &str, samples: usize) -> bool {
    match what {
        "ping" => ping(samples),
        "interrupt" => interrupt(samples),
        _ => return false,
    }
    true
}

/// Prints picoseconds for waking the other vCPU, which is blocked, and being woken by it.
fn ping(samples: usize) {
    const ROUNDS: u64 = 5000;
    let there = Channel::allocate_for(1).expect("a free channel");
    let back = Channel::allocate().expect("a free channel");
    smp::start(1, move || {
        loop {
            there.wait();
            back.send().expect("it is open");
        }
    })
    .expect("a second vCPU");
    let batch = |_| {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            there.send().expect("it is open");
            back.wait();
        }
        start.elapsed().as_nanos() as u64 * 1000 / ROUNDS
    };
    batch(0);
    print_all((0..samples).map(batch).collect::<Vec<_>>().into_iter());
}

/// Prints ticks from sending an event until its handler runs on the other vCPU, which makes no calls.
fn interrupt(samples: usize) {
    static READY: AtomicBool = AtomicBool::new(false);
    static CAME: AtomicU64 = AtomicU64::new(0);
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let channel = Channel::allocate_for(1).expect("a free channel");
    smp::start(1, move || {
        channel.on_event(|_| {
            CAME.store(tsc(), SeqCst);
            COUNT.fetch_add(1, SeqCst);
        });
        READY.store(true, SeqCst);
        loop {
            core::hint::spin_loop();
        }
    })
    .expect("a second vCPU");
    while !READY.load(SeqCst) {
        sleep(Duration::from_micros(100));
    }
    let once = |i| {
        sleep(Duration::from_micros(200));
        let sent = tsc();
        channel.send().expect("it is open");
        while COUNT.load(SeqCst) <= i {
            sleep(Duration::from_micros(20));
        }
        CAME.load(Relaxed).saturating_sub(sent)
    };
    print_all((0..samples as u32).map(once).collect::<Vec<_>>().into_iter());
}

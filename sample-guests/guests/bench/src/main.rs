//! The guest's side of `hv bench`: does what its argument names and prints its measurements in nanoseconds.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "a breakpoint, and memory that the host writes")]

extern crate alloc;

mod console;
mod disk;
mod folder;
mod marks;
mod memory;
mod mmu;
mod wake;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::time::{Duration, Instant, sleep, sleep_until};
use guest_sdk::{boot, hypercall, print, println, smp};

guest_sdk::entry!(main);

fn main() -> u8 {
    let mut arguments = boot::arguments();
    let what = arguments.next().unwrap_or("");
    let samples = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(21);
    match what {
        "first" => println!("first"),
        "idle" => idle(),
        "poll" => poll(),
        "null" => batches(samples, 20_000, || {
            hypercall::version();
        }),
        "clock" => batches(samples, 100_000, || {
            core::hint::black_box(Instant::now());
        }),
        "trap" => batches(samples, 2_000, breakpoint),
        "self" => to_self(samples),
        "sleep" => print_all((0..samples).map(|_| lateness(Duration::from_millis(2)))),
        "running" => from_host(samples, core::hint::spin_loop),
        "blocked" => from_host(samples, || {
            hypercall::block(NEVER);
        }),
        "console" => console::measure(samples),
        "disk" => disk::measure(samples, arguments),
        "folder" => folder::measure(samples, arguments),
        _ if memory::measure(what, samples) || wake::measure(what, samples) => {}
        _ if marks::measure(what, samples) => {}
        _ if mmu::measure(what, samples, arguments) => {}
        _ => {
            println!("usage: bench first|idle|poll|null|clock|trap|self|sleep|running|blocked [SAMPLES]");
            println!("       bench ping|interrupt [SAMPLES], with two vCPUs");
            println!("       bench mark [SAMPLES], or known [ROUNDS], to be traced");
            println!("       bench stream|stream-unused|fault|protect|map [SAMPLES]");
            println!(
                "       bench zero-known|zero-cleared-again|zero-used|report|claim|touch-claimed [SAMPLES]"
            );
            println!("       bench console [SAMPLES]");
            println!("       bench disk SAMPLES read|write SIZE DEPTH COUNT random|sequential");
            println!("       bench folder SAMPLES read|write SIZE COUNT random|sequential");
            println!("       bench update SAMPLES BATCH [eager] [used]");
            return 2;
        }
    }
    0
}

fn print_all(samples: impl Iterator<Item = u64>) {
    samples.for_each(|ns| print!("{ns} "));
    println!();
}

/// Prints picoseconds for one `operation`, batch by batch.
fn batches(samples: usize, count: u64, operation: impl Fn()) {
    (0..count / 4).for_each(|_| operation());
    let batch = |_| {
        let start = Instant::now();
        (0..count).for_each(|_| operation());
        start.elapsed().as_nanos() as u64 * 1000 / count
    };
    print_all((0..samples).map(batch).collect::<Vec<_>>().into_iter());
}

fn breakpoint() {
    // SAFETY: the host is told to go on after breakpoints, with all registers as they were.
    unsafe { core::arch::asm!("int3") };
}

/// Polls a channel that never fires.
fn poll() {
    let channel = Channel::allocate().expect("a channel");
    println!("poll");
    loop {
        guest_sdk::events::poll(&[channel], Instant::START + Duration::MAX);
    }
}

/// Says that it is there, then gives its CPUs back for good.
fn idle() {
    for vcpu in 1..smp::count() {
        smp::start(vcpu, forever).expect("it is not started yet");
    }
    println!("idle");
    forever();
}

fn forever() {
    loop {
        hypercall::block(NEVER);
    }
}

/// When the last event came, on the guest's clock.
static CAME: AtomicU64 = AtomicU64::new(0);

/// Prints nanoseconds from sending an event to oneself until its handler runs.
fn to_self(samples: usize) {
    let channel = Channel::allocate().expect("a free channel");
    channel.on_event(|_| CAME.store(Instant::now().as_nanos(), Ordering::Relaxed));
    let once = |_| {
        let sent = Instant::now();
        channel.send().expect("the channel is ours");
        CAME.load(Ordering::Relaxed) - sent.as_nanos()
    };
    print_all((0..samples * 50).map(once).collect::<Vec<_>>().into_iter());
}

fn lateness(duration: Duration) -> u64 {
    let deadline = Instant::now() + duration;
    sleep_until(deadline);
    deadline.elapsed().as_nanos() as u64
}

/// What the host writes before it raises the channel: the time-stamp counter then. And how many events came.
static SENT: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU32 = AtomicU32::new(0);

/// Tells the host its channel and the addresses of [`SENT`] and [`COUNT`], then prints ticks from the host's event to the handler.
fn from_host(samples: usize, wait: impl Fn()) {
    static TICKS: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];
    let channel = Channel::allocate().expect("a free channel");
    channel.on_event(|_| {
        let ticks = tsc() - SENT.load(Ordering::Relaxed);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        TICKS[count as usize % TICKS.len()].store(ticks, Ordering::Relaxed);
    });
    println!("{} {} {}", channel.number(), (&raw const SENT).addr(), (&raw const COUNT).addr());
    while (COUNT.load(Ordering::Relaxed) as usize) < samples {
        wait();
    }
    sleep(Duration::from_millis(1));
    print_all(TICKS.iter().take(samples).map(|ticks| ticks.load(Ordering::Relaxed)));
}

fn tsc() -> u64 {
    // SAFETY: the ABI lets guests read the counter to tell the time.
    unsafe { core::arch::x86_64::_rdtsc() }
}

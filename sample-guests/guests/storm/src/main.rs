//! Sends events between vCPUs in every way there is, and fails if one is lost: `storm SEED SECONDS`. `storm starts SECONDS` starts
//! vCPUs instead ([`starts`]).
//!
//! A *token* is what must not be lost. A vCPU that holds one does something at random, and sends it on over a *lane*: an
//! event channel, and beside it in memory the number of the token's journey, which whoever takes the event checks. In a round
//! with one token nobody is woken by anything but the event that matters, so one lost wake-up is the end of it.
//!
//! Start at [`round`]; [`lanes`] is how tokens go, [`waits`] how vCPUs wait for them.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "other vCPUs' pages, and a program's instructions")]

extern crate alloc;

mod lanes;
mod starts;
mod waits;

use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use fastrand::Rng;
use guest_sdk::events::Channel;
use guest_sdk::smp::{self, PerVcpu};
use guest_sdk::sync::Lock;
use guest_sdk::time::{Duration, Instant, timer};
use guest_sdk::{boot, hypercall, println};
use waits::Program;

guest_sdk::entry!(main, memory = 24 << 20);

/// How long a round lasts, and how long its tokens may be on their way after its end. Nothing takes that long on any host
/// that is not overwhelmed; what is lost stays lost for ever.
const ROUND: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);

/// Tokens that a vCPU holds, and those that its timer will give it.
static HELD: PerVcpu<AtomicU32> = PerVcpu::new([const { AtomicU32::new(0) }; _]);
static TIMED: PerVcpu<AtomicU32> = PerVcpu::new([const { AtomicU32::new(0) }; _]);

/// The round is over: tokens go no further.
static OVER: AtomicBool = AtomicBool::new(false);
/// Tokens that have come to the round's end.
static HOME: AtomicU32 = AtomicU32::new(0);
/// Whether events are sent that carry no token; what they wake, nobody waits for.
static NOISE: AtomicBool = AtomicBool::new(false);
/// Numbers of generators of random numbers.
static SEEDS: AtomicU64 = AtomicU64::new(0);

/// What was done.
struct Count {
    timers: AtomicU64,
    locks: AtomicU64,
    binds: AtomicU64,
    starts: AtomicU64,
}
static COUNT: Count = Count {
    timers: AtomicU64::new(0),
    locks: AtomicU64::new(0),
    binds: AtomicU64::new(0),
    starts: AtomicU64::new(0),
};

/// Two numbers that are the same whenever nobody has the lock.
static LOCKED: [Lock<(u64, u64)>; 3] = [const { Lock::new((0, 0)) }; 3];

fn main() -> u8 {
    if boot::arguments().next() == Some("starts") {
        let seconds = boot::arguments().nth(1).and_then(|seconds| seconds.parse().ok()).unwrap_or(1);
        return u8::from(!starts::storm(Duration::from_secs(seconds)));
    }
    let mut numbers = boot::arguments().map(|argument| argument.parse::<u64>().ok());
    let (Some(Some(seed)), Some(Some(seconds))) = (numbers.next(), numbers.next()) else {
        println!("usage: storm SEED SECONDS, storm starts SECONDS");
        return 2;
    };
    SEEDS.store(seed << 32, Relaxed);
    lanes::open();
    let host = Channel::allocate().expect("a free channel");
    host.on_event(|_| ()); // the host's noise
    println!("{}", host.number());
    let mut random = generator();
    let mut program = Program::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut rounds = 0;
    while rounds == 0 || Instant::now() < end {
        rounds += 1;
        if !round(&mut random, &mut program) {
            println!("lost in round {rounds} of seed {seed}: {} tokens are home", HOME.load(SeqCst));
            lanes::print();
            return 1;
        }
    }
    let [journeys, latest] = lanes::figures();
    println!(
        "{journeys} events in {rounds} rounds, the latest after {latest} us; {} timers, {} locks, {} binds, {} starts",
        COUNT.timers.load(Relaxed),
        COUNT.locks.load(Relaxed),
        COUNT.binds.load(Relaxed),
        COUNT.starts.load(Relaxed)
    );
    0
}

/// A generator of random numbers that no other is like.
fn generator() -> Rng {
    Rng::with_seed(SEEDS.fetch_add(1, Relaxed))
}

/// Sends some tokens around for a while, and then waits for them all. Whether none was lost.
fn round(random: &mut Rng, program: &mut Program) -> bool {
    let most = smp::count();
    let tokens = [1, 1, 2, most.div_ceil(2), most][random.usize(..5)];
    NOISE.store(tokens > 1 && random.bool(), SeqCst);
    HOME.store(0, SeqCst);
    OVER.store(false, SeqCst);
    let start = Instant::now();
    HELD.fetch_add(tokens, SeqCst);
    timer::set(start + ROUND, |_| OVER.store(true, SeqCst));
    work(random, program, u32::MAX, &|| OVER.load(SeqCst));
    timer::set(Instant::now() + PATIENCE, |_| ());
    let end = Instant::now() + PATIENCE;
    let home = || HOME.load(SeqCst) == tokens;
    work(random, program, u32::MAX, &|| home() || Instant::now() >= end);
    timer::clear();
    home()
}

/// Waits for tokens and does something with each, so often, or until `done`.
fn work(random: &mut Rng, program: &mut Program, turns: u32, done: &dyn Fn() -> bool) {
    for _ in 0..turns {
        if done() {
            return;
        }
        if HELD.load(SeqCst) == 0 {
            waits::wait(random, program, &|| HELD.load(SeqCst) > 0 || done());
        } else {
            HELD.fetch_sub(1, SeqCst);
            act(random);
        }
    }
}

/// What a vCPU other than the first does, until it chooses to stop.
fn worker() {
    lanes::listen();
    let (mut random, mut program) = (generator(), Program::new());
    loop {
        let turns = random.u32(1..64);
        work(&mut random, &mut program, turns, &|| false);
        if TIMED.load(SeqCst) == 0 && random.u8(..4) == 0 && lanes::may_stop() {
            return;
        }
    }
}

/// Does something with a token, and sends it on.
fn act(random: &mut Rng) {
    if OVER.load(SeqCst) {
        HOME.fetch_add(1, SeqCst);
        lanes::wake_the_first();
        return;
    }
    match random.u8(..16) {
        0..3 => {
            let mut pair = LOCKED[random.usize(..LOCKED.len())].lock();
            assert_eq!(pair.0, pair.1, "two had the lock");
            pair.0 += 1;
            match random.u8(..4) {
                0 => hypercall::yield_now(),
                1 => (0..random.u32(..20_000)).for_each(|_| core::hint::spin_loop()),
                _ => {}
            }
            pair.1 += 1;
            COUNT.locks.fetch_add(1, Relaxed);
        }
        // Its timer is the first one's way of telling the time.
        3..5 if smp::current() != 0 => {
            TIMED.fetch_add(1, SeqCst);
            timer::set(Instant::now() + Duration::from_micros(random.u64(..3000)), |_| {
                HELD.fetch_add(TIMED.swap(0, SeqCst), SeqCst);
            });
            COUNT.timers.fetch_add(1, Relaxed);
            return;
        }
        5 => lanes::bind(random),
        6 if NOISE.load(Relaxed) => lanes::make_noise(random),
        _ => {}
    }
    lanes::send(random);
}

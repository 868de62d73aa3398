//! Hypercalls with arguments that no honest guest would give.

#![expect(unsafe_code, reason = "raw hypercalls, and memory that someone else writes")]

use crate::{Numbers, hurtful};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use fastrand::Rng;
use guest_sdk::events::vcpu_page;
use guest_sdk::hv_abi::call::{CALLS, MULTICALL_MAX, MulticallEntry, PANIC_TEXT_MAX, PanicReport};
use guest_sdk::hv_abi::mmu::MMU_UPDATE_MAX;
use guest_sdk::hv_abi::vcpu::{EVENT_CHANNELS, EVENT_WORDS};
use guest_sdk::hv_abi::{ABI_VERSION, Call, GuestPhys, Status};
use guest_sdk::time::Instant;
use guest_sdk::{hypercall, memory, println};

const ENTRIES: usize = MULTICALL_MAX as usize;

/// Memory that the host is let write to: entries, and as much again behind them.
struct Batch(UnsafeCell<[MulticallEntry; 2 * ENTRIES]>);

// SAFETY: a guest with one vCPU has one thread, and its upcalls do not touch this.
unsafe impl Sync for Batch {}

static BATCH: Batch = Batch(UnsafeCell::new(
    [MulticallEntry { call: Call(0), status: Status(0), arguments: [0; 5], value: 0, reserved: 0 };
        2 * ENTRIES],
));

/// Memory at the very top, where neither the image nor its heap has anything yet.
const TOP: u64 = 1 << 20;

fn batch() -> &'static mut [MulticallEntry; 2 * ENTRIES] {
    // SAFETY: one thread, and no caller keeps the reference across another call of this function.
    unsafe { &mut *BATCH.0.get() }
}

fn phys<T>(value: &T) -> u64 {
    memory::phys_of(core::slice::from_ref(value)).expect("the image is in memory").0
}

fn call(call: Call, arguments: [u64; 5]) -> Result<u64, Status> {
    // SAFETY: what the host writes, it writes to `BATCH` or above everything else: `random` and the others see to that.
    unsafe { hypercall::any(call, arguments) }
}

/// `count` calls; each must give a status that the ABI knows. Ends with a shutdown or a panic.
pub fn random([seed, count, _]: Numbers) {
    let mut random = Rng::with_seed(seed);
    for _ in 0..count {
        let number = number(&mut random);
        let arguments = arguments(&mut random, number);
        if let Err(Status(status)) = call(number, arguments) {
            assert!((1..=8).contains(&status), "{number:?}{arguments:x?} gave status {status}");
        }
        aside(&mut random);
    }
    if random.bool() {
        let report = PanicReport { line: random.u32(..), column: random.u32(..), ..PanicReport::default() };
        let _ = call(Call::PANIC, [phys(&report), 0, 0, 0, 0]);
    }
}

fn number(random: &mut Rng) -> Call {
    match random.u8(..10) {
        0 => Call(random.u32(..)),
        1 => Call(random.u32(..40)),
        _ => CALLS[random.usize(..CALLS.len())].call,
    }
}

/// Anything, but what would end this run early or make the host write over this guest.
fn arguments(random: &mut Rng, call: Call) -> [u64; 5] {
    let mut arguments = [0; 5];
    let had = call.description().map_or(5, |description| description.arguments.len());
    arguments[..had].fill_with(|| hurtful(random));
    if random.u8(..16) == 0 {
        arguments[random.usize(..5)] = hurtful(random);
    }
    let memory = guest_sdk::boot::info().memory_size;
    match call {
        Call::SHUTDOWN => arguments[0] = arguments[0].max(256),
        Call::PANIC => arguments[0] = panic_report(random),
        // It waits for an event that does not come, but for one in sixteen no longer than a moment.
        Call::POLL if random.u8(..16) != 0 => arguments[1] %= 1 << 20,
        Call::POLL => arguments[1] = guest_sdk::time::Instant::now().as_nanos() + random.u64(..50_000),
        Call::MULTICALL => {
            arguments[0] = match random.u8(..4) {
                0 => memory - random.u64(..TOP),
                1 => memory.wrapping_add(hurtful(random) & !(1 << 63)),
                _ => entries(random),
            };
            if random.u8(..4) != 0 {
                arguments[1] %= MULTICALL_MAX + 2;
            }
        }
        Call::MMU_UPDATE => {
            arguments[0] = updates(random);
            if random.u8(..4) != 0 {
                arguments[1..3].copy_from_slice(&[random.u64(..40), random.u64(..3)]);
            }
        }
        _ => {}
    }
    arguments
}

/// Updates of entries at the very top of memory, and outside; and where they are. What they write is no P of anything but
/// the top either, for it may be found there and taken for a P.
fn updates(random: &mut Rng) -> u64 {
    // As many as a call can take; those that are not filled in are misaligned.
    static UPDATES: [[AtomicU64; 4]; MMU_UPDATE_MAX as usize] =
        [const { [AtomicU64::new(1), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0)] };
            MMU_UPDATE_MAX as usize];
    let memory = guest_sdk::boot::info().memory_size;
    for [entry, new, _, status] in &UPDATES[..32] {
        let at = match random.u8(..8) {
            0 => random.u64(..64) | 1, // misaligned
            1 => memory.wrapping_add(hurtful(random) & !(1 << 63)),
            2 => memory - random.u64(..TOP),
            _ => (memory - random.u64(..TOP)) & !7,
        };
        entry.store(at, SeqCst);
        let top = (memory - random.u64(..TOP)) & !0xfff;
        new.store(if random.bool() { hurtful(random) | 1 << 62 } else { top | random.u64(..512) }, SeqCst);
        status.store(u64::from(random.u8(..8) == 0) << 63, SeqCst);
    }
    match random.u8(..4) {
        0 => memory - random.u64(..TOP),
        1 => memory.wrapping_add(hurtful(random) & !(1 << 63)),
        _ => phys(&UPDATES),
    }
}

/// Fills the batch with calls of all kinds, and gives a place in it, aligned or not.
fn entries(random: &mut Rng) -> u64 {
    let batch = batch();
    for entry in &mut batch[..ENTRIES] {
        entry.call = number(random);
        // A multicall in a multicall is refused before it is looked at.
        entry.arguments.fill_with(|| if random.bool() { hurtful(random) } else { 0 });
        match entry.call {
            Call::SHUTDOWN => entry.arguments[0] |= 256,
            Call::MMU_UPDATE => entry.arguments[0] = updates(random),
            _ => {}
        }
        entry.reserved = u64::from(random.u8(..8) == 0) * random.u64(..);
    }
    let offset = if random.u8(..4) == 0 { random.u64(..64) } else { random.u64(..64) * 64 };
    phys(&batch[0]) + offset
}

/// A report with something wrong in it, or no report.
fn panic_report(random: &mut Rng) -> u64 {
    static REPORT: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];
    let memory = guest_sdk::boot::info().memory_size;
    let outside = memory.wrapping_add(random.u64(..1 << 40));
    let wrong = [[outside, 1, 0, 0], [0, PANIC_TEXT_MAX + 1, 0, 0], [0, 1, outside, 1], [0, 0, 0, u64::MAX]];
    let report = wrong[random.usize(..4)];
    REPORT.iter().zip(report).for_each(|(word, value)| word.store(value, SeqCst));
    match random.u8(..4) {
        0 => memory - random.u64(1..40),
        1 => hurtful(random) | 1, // misaligned
        _ => phys(&REPORT),
    }
}

/// What happens between two calls: masks change, a block, nothing.
fn aside(random: &mut Rng) {
    match random.u8(..64) {
        0 => vcpu_page().masked[random.usize(..EVENT_WORDS)].store(random.u64(..), SeqCst),
        1 => vcpu_page().pending[random.usize(..EVENT_WORDS)].store(random.u64(..), SeqCst),
        2 => drop(hypercall::block(Instant::now().as_nanos() + random.u64(..20_000))),
        3 => drop(hypercall::block(random.u64(..1 << 20))),
        _ => {}
    }
}

const CAME_TO_THE_END: u8 = 3;

/// A channel that may change between two values, one good and one past the end, with each answer right for one.
///
/// The host's test finds the words by the address that is printed, and keeps changing them: a second thread.
pub fn changed_meanwhile([count, ..]: Numbers) {
    let channel = hypercall::event_allocate(0).expect("a channel");
    let batch = batch();
    println!("entry {}", phys(&batch[0]));
    for i in 0..count {
        // Someone else writes the first entry's call: VERSION or SHUTDOWN; and the second's channel: good or not.
        batch[1] = MulticallEntry { call: Call::EVENT_SEND, ..MulticallEntry::default() };
        batch[1].arguments[0] = if i % 2 == 0 { channel.into() } else { EVENT_CHANNELS.into() };
        assert_eq!(call(Call::MULTICALL, [phys(&batch[0]), 2, 0, 0, 0]), Ok(2));
        // SAFETY: reads of plain memory that lives; volatile, since someone else writes it.
        let [first, second] = [0, 1].map(|i| unsafe { (&raw const batch[i]).read_volatile() });
        match (first.status, first.value) {
            (Status::SUCCESS, value) => assert_eq!(value, ABI_VERSION.into()),
            (status, value) => assert_eq!((status, value), (Status::NOT_IN_MULTICALL, 0)),
        }
        assert!(matches!(second.status, Status::SUCCESS | Status::OUT_OF_RANGE), "{:?}", second.status);
    }
    guest_sdk::process::exit(CAME_TO_THE_END); // another code than a shutdown by the entry would have
}

/// Panics until one gets through, with a length that someone else changes between a good and a bad one.
pub fn panic_changed_meanwhile([count, ..]: Numbers) {
    static TEXT: [u8; 16] = *b"changed in time.";
    static LENGTH: [AtomicU32; 10] = [const { AtomicU32::new(0) }; 10];
    let set = |field: usize, value: u64| {
        LENGTH[field].store(value as u32, SeqCst);
        LENGTH[field + 1].store((value >> 32) as u32, SeqCst);
    };
    let GuestPhys(text) = memory::phys_of(&TEXT).expect("the image is in memory");
    set(0, text);
    set(2, u64::MAX);
    println!("length {}", phys(&LENGTH) + 8);
    for _ in 0..count {
        let report = phys(&LENGTH);
        assert_eq!(report % 8, 0, "aligned, or this tests nothing");
        let status = call(Call::PANIC, [report, 0, 0, 0, 0]);
        assert_eq!(status, Err(Status::OUT_OF_RANGE));
    }
}

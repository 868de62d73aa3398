//! The conformance suite of the ABI: tests, each in a VM of its own, of what a guest can see, and acts for scenarios.
//!
//! It is written against `hv-abi` and `guest-sdk` only. `cargo run -p conformance` runs it; by hand, `hv run
//! conformance -- N` runs test N. Calls are made raw where the SDK would not let a wrong one be made.
//!
//! A clause that only the host can judge (what is on the console, how the VM ends) has a scenario in the runner,
//! `tests/src/scenarios`, which boots this image to do what its first argument says: [`acts`].

#![no_std]
#![no_main]

extern crate alloc;

mod acts;
mod boot;
mod calls;
mod cost;
mod cpu;
mod device_calls;
mod device_faults;
mod devices;
mod digest;
mod entries;
mod events;
mod first;
mod kernel_space;
mod mmu;
mod mmu_calls;
mod mmu_random;
mod multicall;
mod pages;
mod poll;
mod probe;
mod program;
mod registers;
mod ring;
mod rules;
mod smp;
mod timer;
mod trace;
mod typed;
mod upcalls;
mod user;
mod user_calls;
mod user_entry;
mod user_faults;
mod user_xstate;
mod vcpu;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::{Call, GuestPhys, Status};
use guest_sdk::time::{Duration, Instant};

guest_sdk::entry!(main);

fn main() {
    if !acts::perform() {
        guest_sdk::testing::main();
    }
}

/// Makes a call with any arguments; those that are not given are zero.
#[expect(unsafe_code, reason = "a raw hypercall")]
fn raw<const N: usize>(call: Call, arguments: [u64; N]) -> Result<u64, Status> {
    let mut all = [0; 5];
    all[..N].copy_from_slice(&arguments);
    // SAFETY: `any` asks that what the call makes the host write be the caller's to have written. The tests name only
    // memory that they own, or that no guest has.
    unsafe { guest_sdk::hypercall::any(call, all) }
}

/// As the hypercall, of entries in tables of the tests' own, or in none.
#[expect(unsafe_code, reason = "page-table entries by address")]
fn mmu_update(updates: &mut [guest_sdk::hv_abi::mmu::MmuUpdate], flags: u64) -> Result<(), Status> {
    // SAFETY: the tests name entries of tables that they own, of memory that no guest has, or of the kernel's own root for
    // addresses that only they use.
    unsafe { guest_sdk::hypercall::mmu_update(updates, flags) }
}

/// Where something of the image, its stack or its heap is in guest-physical memory.
fn phys<T>(value: &T) -> u64 {
    guest_sdk::memory::phys_of(core::slice::from_ref(value)).expect("it is in guest memory").0
}

/// Bytes of guest-physical memory, in the direct map.
#[expect(unsafe_code, reason = "the direct map")]
fn direct(start: GuestPhys, length: u64) -> &'static [u8] {
    let info = guest_sdk::boot::info();
    assert!(
        start.0.checked_add(length).is_some_and(|end| end <= info.memory_size),
        "{start:?} + {length:#x}"
    );
    let at = core::ptr::with_exposed_provenance((info.direct_map + start.0) as usize);
    // SAFETY: a slice needs memory that is there, and that nothing writes while the slice lives.
    // 1. There: it is inside guest memory, all of which the direct map has.
    // 2. Unwritten: the callers look at what the host filled, and drop the slice before anything else happens.
    unsafe { core::slice::from_raw_parts(at, length as usize) }
}

/// Bytes of guest memory.
fn memory_size() -> u64 {
    guest_sdk::boot::info().memory_size
}

/// Ranges of `length` bytes that are not wholly in guest memory.
fn outside(length: u64) -> [u64; 6] {
    let size = memory_size();
    [size, size - length + 8, size - 8, 1 << 63, u64::MAX - 7, (u64::MAX - length + 1) & !7]
}

/// So much later than now.
fn after(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds)
}

/// Nanoseconds until the timer next fires, in a storm.
static GAP: AtomicU64 = AtomicU64::new(FIRST_GAP);
const FIRST_GAP: u64 = 20_000;

/// Sets the timer to fire soon: in 20 us at first, and ever later, so that a guest on a host of any speed gets on with what is
/// interrupted.
fn timer_soon() {
    let gap = GAP.load(SeqCst);
    guest_sdk::hypercall::timer_set(Instant::now().as_nanos() + gap);
    GAP.store((gap + gap / 256).min(2_000_000), SeqCst);
}

/// How often the timer has interrupted, in [`in_a_storm`].
static INTERRUPTIONS: AtomicU32 = AtomicU32::new(0);

/// Makes the timer interrupt what `section` does, again and again.
fn in_a_storm(section: impl FnOnce()) {
    Channel::TIMER.on_event(|_| {
        let count = INTERRUPTIONS.fetch_add(1, SeqCst);
        core::hint::black_box([count as u8; 256]); // uses the extended state itself
        timer_soon();
    });
    GAP.store((GAP.load(SeqCst) / 2).max(FIRST_GAP), SeqCst);
    timer_soon();
    section();
    guest_sdk::time::timer::clear();
}

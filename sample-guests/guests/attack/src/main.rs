//! Attacks the hypervisor in the way that its arguments name; `tests/tests/attacks` sends it.
//!
//! Every way is hostile by intent and repeatable by its seed. Most end the VM, which is what they are for: the tests
//! look at how it ended, and at everybody else.

#![no_std]
#![no_main]

extern crate alloc;

mod calls;
mod free;
mod hide;
mod jump;
mod neighbour;
mod pages;
mod rings;
mod state;
mod system_calls;
mod tables;
mod user;
mod vcpus;

use guest_sdk::println;

guest_sdk::entry!(main);

/// The numbers after the name of a way; what they mean is the way's.
type Numbers = [u64; 3];

/// A way to attack: its name, its numbers, what it does, and the function.
type Way = (&'static str, &'static str, &'static str, fn(Numbers));

const WAYS: &[Way] = &[
    ("calls", "SEED COUNT", "hypercalls with random arguments", calls::random),
    ("shared", "COUNT", "calls whose arguments someone else changes meanwhile", calls::changed_meanwhile),
    ("panic", "COUNT", "panics whose report someone else changes meanwhile", calls::panic_changed_meanwhile),
    ("jump", "SEED OFFSET", "jumps into the hypercall page's mapping with random registers", jump::anywhere),
    ("gadget", "SEED INDEX NUMBER", "jumps to the engine's own system call instructions", jump::gadget),
    ("syscall", "METHOD NUMBER", "makes a host system call", system_calls::make),
    ("state", "SEED TRAP", "traps with random flags, segments and stack", state::trap),
    ("pages", "SEED HOW", "overwrites the vCPU's pages while it calls and traps", pages::overwrite),
    ("forge", "SEED", "publishes states that are not true", pages::forge),
    ("hide", "HOW", "never stops when it is asked to", hide::hide),
    ("victim", "SEED", "calls, traps and sleeps, while someone else writes to its pages", pages::victim),
    ("user", "WAY FIRST COUNT", "programs that attack, one after the other: 0 to 7", user::attack),
    ("tables", "SEED COUNT", "page tables of its own that lead anywhere", tables::kernel),
    ("spread", "ROOTS ENTERED ENDS", "programs whose pages lie far from each other", tables::spread),
    (
        "vcpus",
        "SEED",
        "vCPUs that write to each other's pages, start, stop and send, while one makes calls",
        vcpus::storm,
    ),
    ("rings", "SEED COUNT", "devices: rings, registers and resets of any kind, by all vCPUs", rings::attack),
    (
        "flood",
        "HOW",
        "devices: doorbells, configurations, acknowledgements or resets without end",
        rings::flood,
    ),
    (
        "settle",
        "HOW",
        "devices that have nothing to do: broken, stopped, reset or ready; then sleeps",
        rings::settle,
    ),
    ("free", "SEED COUNT", "reports pages as free that are in use", free::report),
    ("checksum", "", "computes one checksum over and over, beside the others", neighbour::checksum),
    ("touch", "", "makes the host spend all the memory that it can", neighbour::touch),
];

fn main() -> u8 {
    let mut arguments = guest_sdk::boot::arguments();
    let name = arguments.next().unwrap_or("");
    let mut number = || arguments.next().and_then(|number| number.parse().ok()).unwrap_or(0);
    let numbers = [number(), number(), number()];
    let Some((_, _, _, way)) = WAYS.iter().find(|way| way.0 == name) else {
        println!("usage: attack WAY NUMBERS");
        WAYS.iter().for_each(|(name, numbers, about, _)| println!("  {name:<9} {numbers:<18} {about}"));
        return 2;
    };
    way(numbers);
    0
}

/// A number that is likely to hurt: an edge of something, or anything.
fn hurtful(random: &mut fastrand::Rng) -> u64 {
    use guest_sdk::hv_abi::address::{DIRECT_MAP, HYPERCALL_PAGE, VCPU_PAGES};
    let memory = guest_sdk::boot::info().memory_size;
    let base = match random.u8(..12) {
        0 => return random.u64(..),
        1 => return random.u64(..1024),
        2 => 0,
        3 => memory,
        4 => random.u64(..memory),
        5 => DIRECT_MAP + random.u64(..memory),
        6 => DIRECT_MAP + memory,
        7 => HYPERCALL_PAGE + random.u64(..0x2000),
        8 => VCPU_PAGES + random.u64(..0x2_0000),
        9 => 1 << random.u8(..64),
        10 => [64 << 10, 4096, 512, 128, 16][random.usize(..5)],
        _ => u64::MAX,
    };
    let near = match random.u8(..4) {
        0 => 0,
        1 => random.u64(..9),
        2 => random.u64(..5000),
        _ => random.u64(..513) * 8,
    };
    if random.bool() { base.wrapping_add(near) } else { base.wrapping_sub(near) }
}

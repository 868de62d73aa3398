//! Writes to the pages that vCPU and monitor share: at random, and with states that are not true.
//!
//! Where they are is the engine's business and no part of the ABI; a hostile guest knows it all the same.

#![expect(unsafe_code, reason = "writing where the ABI forbids it")]

use crate::{Numbers, hurtful};
use core::arch::asm;
use fastrand::Rng;
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::address::{HYPERCALL_PAGE, VCPU_PAGES, VCPU_STRIDE};
use guest_sdk::hv_abi::user::GATE;
use guest_sdk::hypercall;
use guest_sdk::time::Instant;

/// vCPU 0's page, hand-over page and signal stack: first address and bytes.
const WRITABLE: [(u64, u64); 3] =
    [(VCPU_PAGES, 0x1000), (VCPU_PAGES + 0x2000, 0x1000), (VCPU_PAGES + 0x1_0000, 0x1_0000)];

/// Offsets in the hand-over page of words that mean something, and in the vCPU page.
const HANDOVER: u64 = VCPU_PAGES + 0x2000;
const TURN: u64 = HANDOVER + 256;
const HOST_SLEEPS: u64 = HANDOVER + 64;
const STOP: u64 = HANDOVER + 76;
const FRAME: u64 = HANDOVER + 144;
const SIGINFO: u64 = HANDOVER + 152;
const SIGNAL: u64 = HANDOVER + 160;
const RUN_STATE: u64 = VCPU_PAGES + 16;

fn store32(address: u64, value: u32) {
    // SAFETY: not met: the ABI forbids it; the pages are mapped and writable, so it happens.
    unsafe { core::ptr::with_exposed_provenance_mut::<u32>(address as usize).write_volatile(value) };
}

fn store64(address: u64, value: u64) {
    // SAFETY: as above.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(address as usize).write_volatile(value) };
}

/// Something honest that needs those pages.
fn activity(random: &mut Rng, channel: Option<Channel>) {
    let Some(channel) = channel else { return activity_of_a_program(random) };
    match random.u8(..6) {
        0 => drop(hypercall::version()),
        1 => drop(channel.send()),
        2 => drop(hypercall::block(Instant::now().as_nanos() + random.u64(..50_000))),
        3 => hypercall::timer_set(Instant::now().as_nanos() + random.u64(..100_000)),
        // SAFETY: a breakpoint changes nothing; the test lets the guest go on behind it.
        4 => unsafe { asm!("int3") },
        _ => (0..random.u32(..2000)).for_each(|_| core::hint::spin_loop()),
    }
}

/// The same for a program.
fn activity_of_a_program(random: &mut Rng) {
    match random.u8(..6) {
        0..3 => crate::system_calls::make([0, random.u64(..400), 0]),
        // SAFETY: the gate keeps all registers but the result.
        3 => unsafe { asm!("call {0}", in(reg) GATE, inout("rax") 1_u64 => _, out("rcx") _, out("r11") _) },
        4 => {
            let page = core::ptr::with_exposed_provenance::<u8>(random.usize(0x40..1 << 20) * 0x1_0000);
            // SAFETY: a load of a page that the kernel gives on demand, or ends this for.
            core::hint::black_box(unsafe { page.read_volatile() });
        }
        _ => (0..random.u32(..2000)).for_each(|_| core::hint::spin_loop()),
    }
}

/// A channel whose events do nothing; programs have none.
fn channel() -> Option<Channel> {
    if crate::user::in_user() {
        return None;
    }
    let channel = Channel::allocate().expect("a channel");
    channel.on_event(|_| {});
    Some(channel)
}

/// Writes at random places, without end: bytes (`how` 0), words that mean something in those that matter (1), or
/// between two activities only now and then (2).
pub fn overwrite([seed, how, _]: Numbers) {
    let mut random = Rng::with_seed(seed);
    let channel = channel();
    loop {
        for _ in 0..random.u32(..if how == 2 { 2 } else { 20 }) {
            let (start, length) = WRITABLE[random.usize(..3)];
            match how {
                0 => store32(start + random.u64(..length / 4) * 4, random.u32(..)),
                _ => store64(start + random.u64(..length.min(256) / 8) * 8, hurtful(&mut random)),
            }
        }
        activity(&mut random, channel);
    }
}

/// States that are published without being true, while the vCPU runs on.
pub fn forge([seed, ..]: Numbers) {
    let mut random = Rng::with_seed(seed);
    let stack = VCPU_PAGES + VCPU_STRIDE - 0x1_0000;
    loop {
        match random.u8(..10) {
            0 => store32(TURN, random.u32(..4)),
            1 => store32(TURN, random.u32(..)),
            2 => store32(HOST_SLEEPS, random.u32(..2)),
            3 => store32(STOP, 0),
            4 => store32(RUN_STATE, random.u32(..4)),
            5 => store64(SIGINFO, stack + random.u64(..0x1_0000) / 8 * 8),
            6 => store64(FRAME, stack + 0x1_0000 - random.u64(..1024)),
            7 => store64(FRAME, hurtful(&mut random)),
            8 => {
                // A stop, or a trap, at a context of the guest's own making.
                store64(FRAME, stack + 0x4000);
                store32(SIGNAL, [0, 5, 11, 31, 99][random.usize(..5)]);
                store64(stack + 0x4000 + random.u64(..29) * 8, hurtful(&mut random));
                store32(TURN, 2);
            }
            _ => {
                store32(TURN + 4, random.u32(..30)); // a call's number
                store64(TURN + 8 + random.u64(..5) * 8, hurtful(&mut random));
                store32(HANDOVER, random.u32(..2)); // in `block`
                store32(TURN, 1);
            }
        }
        (0..random.u32(..200)).for_each(|_| core::hint::spin_loop());
        if random.u8(..50) == 0 {
            // SAFETY: changes nothing but what the stub does with the forged pages, which is the point.
            unsafe {
                asm!("call {0}", in(reg) HYPERCALL_PAGE, in("rdi") 0, in("rsi") 0, clobber_abi("sysv64"));
            }
        }
    }
}

/// An honest guest with hostile neighbours in its own pages: the test writes there at the same time.
pub fn victim([seed, ..]: Numbers) {
    let mut random = Rng::with_seed(seed);
    let channel = channel();
    loop {
        activity(&mut random, channel);
    }
}

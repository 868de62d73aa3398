//! Several vCPUs of one hostile guest: each writes to the pages of all, and to the pages between programs and their kernel,
//! while others start, stop, send events, run programs and make calls with random arguments.

#![expect(unsafe_code, reason = "writing where the ABI forbids it")]

use crate::{Numbers, calls, hurtful, user};
use fastrand::Rng;
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::Call;
use guest_sdk::hv_abi::address::{SLOT_255, VCPU_PAGES, VCPU_STRIDE};
use guest_sdk::time::Instant;
use guest_sdk::{hypercall, smp};

/// Where the engine has the pages that it shares with programs, in the guest kernel's sandbox.
const LINKS: u64 = SLOT_255 + 0x100_0000;
/// What there is of them for each vCPU.
const PROGRAMS: u64 = 64;

/// Until the host ends it.
pub fn storm([seed, ..]: Numbers) {
    for vcpu in 1..smp::count() {
        let _ = smp::start(vcpu, move || hostile(seed.wrapping_mul(64) + u64::from(vcpu)));
    }
    match seed % 3 {
        0 => calls::random([seed, 1 << 20, 0]),
        1 => user::attack([seed / 3 % 8, seed, 50]),
        _ => hostile(seed),
    }
}

fn hostile(seed: u64) {
    let mut random = Rng::with_seed(seed);
    let channel = Channel::allocate_for(random.u32(..smp::count()));
    loop {
        match random.u8(..10) {
            0..4 => scribble(&mut random),
            4 => drop(channel.map(Channel::send)),
            5 => drop(hypercall::block(Instant::now().as_nanos() + random.u64(..50_000))),
            6 => drop(smp::start(random.u32(..smp::count()), move || hostile(seed + 1000))),
            7 => {
                // SAFETY: not met: it starts wherever that is, which is what it is for.
                let _ = unsafe { hypercall::vcpu_start(random.u32(..smp::count()), hurtful(&mut random), 0) };
            }
            8 if random.u8(..8) == 0 => drop(hypercall::vcpu_stop()),
            _ => {
                let vcpu = random.u64(..u64::from(smp::count()));
                // SAFETY: neither call makes the host write guest memory.
                let _ = unsafe { hypercall::any(Call::YIELD_TO, [vcpu, 0, 0, 0, 0]) };
            }
        }
    }
}

/// One store to a page of some vCPU, or to one between a program and its kernel.
fn scribble(random: &mut Rng) {
    let vcpu = random.u64(..u64::from(smp::count()));
    let area = VCPU_PAGES + vcpu * VCPU_STRIDE;
    let word = random.u64(..512) * 8;
    let at = match random.u8(..8) {
        0 => area + random.u64(..24) * 8,
        1 => area + 0x2000 + word,
        2..4 => area + 0x2000 + random.u64(..64) * 8,
        4 => area + 0x1_0000 + random.u64(..0x2000) * 8,
        _ => LINKS + random.u64(..PROGRAMS * u64::from(smp::count())) * 4096 + random.u64(..64) * 8,
    };
    let value = if random.bool() { random.u64(..8) } else { hurtful(random) };
    // SAFETY: not met: the ABI forbids it; the pages are mapped and writable, so it happens.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(at as usize).write_volatile(value) };
}

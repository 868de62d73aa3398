//! Hiding from the host's request to stop.

#![expect(unsafe_code, reason = "keeping the engine's code from doing what it is for")]

use crate::Numbers;
use crate::jump::ROOM;
use core::arch::asm;
use guest_sdk::hv_abi::address::{HYPERCALL_PAGE, VCPU_PAGES, entry};
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::println;

const HANDOVER: usize = 0x2000;

/// Each `how` is another hiding place.
pub fn hide([how, ..]: Numbers) {
    let room = &raw mut ROOM;
    if !crate::user::in_user() {
        println!("hiding");
    }
    // SAFETY: not met: GS base must be the vCPU page at an entry, the stack the guest's, and so on. The point.
    unsafe {
        match how {
            // Asleep in `block`, with another page for the vCPU's.
            0 => asm!("wrgsbase {}", "call {}", in(reg) room, in(reg) HYPERCALL_PAGE + entry::BLOCK,
                in("rdi") NEVER, options(noreturn)),
            // In a call that spins, and is never answered: nobody looks at that page.
            1 => {
                let spin = room.cast::<u8>().add(HANDOVER + 72).cast::<u32>();
                spin.write_volatile(u32::MAX);
                asm!("wrgsbase {}", "call {}", in(reg) room, in(reg) HYPERCALL_PAGE, in("rdi") 0, options(noreturn))
            }
            // Running, and taking the request back each time.
            2 => loop {
                core::ptr::with_exposed_provenance_mut::<u32>(VCPU_PAGES as usize + HANDOVER + 76)
                    .write_volatile(0);
            },
            // Always in the sequence that the host's signal starts again.
            3 => {
                asm!("2: call {0}", "jmp 2b", in(reg) HYPERCALL_PAGE, in("rdi") 0xffff, in("rsi") 0, options(noreturn))
            }
            // On the stack that signals land on, and running.
            4 => asm!("mov rsp, {}", "2: jmp 2b", in(reg) VCPU_PAGES + 0x1_f000, options(noreturn)),
            // As 4, where there is no room for one.
            _ => asm!("mov rsp, {}", "2: jmp 2b", in(reg) VCPU_PAGES + 0x1_0100, options(noreturn)),
        }
    }
}

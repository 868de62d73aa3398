//! The image's first instructions, before the SDK's: they look at what the ABI promises of them, and go on to the SDK.

#![expect(unsafe_code, reason = "the first instructions, and what the host gave them")]

use crate::after;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use guest_sdk::events::{Channel, vcpu_page};
use guest_sdk::hv_abi::address::{DIRECT_MAP, VCPU_PAGES};
use guest_sdk::hv_abi::boot::{BootInfo, MAGIC, MemoryRegion, region};
use guest_sdk::hv_abi::vcpu::{VcpuPage, upcall};
use guest_sdk::hypercall::block;

/// What was found at the first instruction.
#[repr(C)]
struct First {
    rdi: AtomicU64,
    rflags: AtomicU64,
    mxcsr: AtomicU32,
    x87: AtomicU32,
    /// How often the entry point was executed.
    times: AtomicU32,
    upcall: AtomicU32,
    /// All words of `pending`, and of `masked`, one over the other.
    pending: AtomicU64,
    masked: AtomicU64,
    /// 1 if GS base is vCPU 0's page.
    gs_is_vcpu_0: AtomicU64,
    /// Bytes of regions with the flag `ZERO`, if the command line asked for a look, and how many of them are not zero.
    zero_bytes: AtomicU64,
    not_zero: AtomicU64,
}

#[unsafe(no_mangle)]
static hv_conformance_found: First = First {
    rdi: AtomicU64::new(0),
    rflags: AtomicU64::new(0),
    mxcsr: AtomicU32::new(0),
    x87: AtomicU32::new(0),
    times: AtomicU32::new(0),
    upcall: AtomicU32::new(0),
    pending: AtomicU64::new(0),
    masked: AtomicU64::new(0),
    gs_is_vcpu_0: AtomicU64::new(0),
    zero_bytes: AtomicU64::new(0),
    not_zero: AtomicU64::new(0),
};
use hv_conformance_found as FOUND;

// `build.rs` makes this the entry point. RSP is undefined at entry, so the image's stack comes first.
global_asm!(
    ".globl hv_conformance_first",
    "hv_conformance_first:",
    "mov [rip + hv_conformance_found], rdi",
    "lea rsp, [rip + __hv_stack_top]",
    "pushfq",
    "pop qword ptr [rip + hv_conformance_found + 8]",
    "stmxcsr [rip + hv_conformance_found + 16]",
    "fnstcw [rip + hv_conformance_found + 20]",
    "inc dword ptr [rip + hv_conformance_found + 24]",
    "cld",
    "xor ebp, ebp",
    "call {look}",
    "mov rdi, [rip + hv_conformance_found]",
    "jmp _start",
    look = sym look,
);

/// The command line that asks for a look at memory.
pub const ZEROS: &str = "zeros";

/// Looks at the vCPU's page and, if it is asked to, at memory, before the SDK writes to them.
extern "C" fn look() {
    let page = core::ptr::with_exposed_provenance::<VcpuPage>(VCPU_PAGES as usize);
    // SAFETY: the ABI maps vCPU 0's page there for as long as the guest runs; all that changes in it are atomics.
    let page = unsafe { &*page };
    FOUND.upcall.store(page.upcall.load(SeqCst), Relaxed);
    FOUND.pending.store(page.pending.iter().fold(0, |all, word| all | word.load(SeqCst)), Relaxed);
    FOUND.masked.store(page.masked.iter().fold(u64::MAX, |all, word| all & word.load(SeqCst)), Relaxed);

    // A mark that is written at the page's V must be found through GS.
    const MARK: u64 = 0x1234_5678_9abc_def0;
    page.upcall_entry.store(MARK, SeqCst);
    let through_gs: u64;
    // SAFETY: reads a field of the page that GS base points to; nothing is changed.
    unsafe {
        asm!("mov {}, gs:[{}]", out(reg) through_gs, const core::mem::offset_of!(VcpuPage, upcall_entry),
             options(nostack, readonly, preserves_flags));
    }
    page.upcall_entry.store(0, SeqCst);
    FOUND.gs_is_vcpu_0.store((through_gs == MARK).into(), Relaxed);

    let info = core::ptr::with_exposed_provenance::<BootInfo>(FOUND.rdi.load(Relaxed) as usize);
    // SAFETY: RDI at entry is the boot information, which nobody has changed yet.
    let info = unsafe { &*info };
    let at = |start: u64| core::ptr::with_exposed_provenance::<u8>((info.direct_map + start) as usize);
    // SAFETY: the host has put the command line there, and nobody has changed it yet.
    let line = unsafe {
        core::slice::from_raw_parts(at(info.command_line.start.0), info.command_line.length as usize)
    };
    if line == ZEROS.as_bytes() {
        let table = at(info.memory_map.start.0).cast::<MemoryRegion>();
        // SAFETY: the host has put the memory map there, and nobody has changed it yet.
        let map = unsafe { core::slice::from_raw_parts(table, info.memory_map.length as usize) };
        for run in map.iter().filter(|run| run.flags & region::ZERO != 0) {
            // SAFETY: the memory map is of guest memory, all of which the direct map has; nobody writes to it yet.
            let bytes = unsafe { core::slice::from_raw_parts(at(run.start.0), run.length as usize) };
            let not_zero = bytes.iter().filter(|byte| **byte != 0).count() as u64;
            FOUND.zero_bytes.fetch_add(run.length, Relaxed);
            FOUND.not_zero.fetch_add(not_zero, Relaxed);
        }
    }
}

/// For the scenario of the memory map's flag: fails if a byte that should have been zero was not.
pub fn report_zeros() {
    let (bytes, not_zero) = (FOUND.zero_bytes.load(Relaxed), FOUND.not_zero.load(Relaxed));
    assert_eq!(not_zero, 0, "bytes that are not zero, of {bytes} that are said to be");
}

guest_sdk::tests! {
    "KERNEL-001" fn the_entry_point_is_executed_first_and_once_on_vcpu_0() {
        assert_eq!(FOUND.times.load(Relaxed), 1);
        assert_eq!(vcpu_page().vcpu.load(SeqCst), 0);
    }

    "KERNEL-002" fn rdi_is_the_boot_information_in_the_direct_map() {
        let rdi = FOUND.rdi.load(Relaxed);
        let info = guest_sdk::boot::info();
        assert!((DIRECT_MAP..DIRECT_MAP + info.memory_size).contains(&rdi), "{rdi:#x}");
        assert_eq!((info as *const BootInfo as u64, info.magic), (rdi, MAGIC));
    }

    "KERNEL-003" fn flags_and_control_words_are_as_a_function_expects_them() {
        const DF: u64 = 1 << 10;
        assert_eq!(FOUND.rflags.load(Relaxed) & DF, 0);
        assert_eq!((FOUND.mxcsr.load(Relaxed), FOUND.x87.load(Relaxed)), (0x1f80, 0x37f));
    }

    "KERNEL-004" fn gs_base_is_the_vcpus_page() {
        assert_eq!(FOUND.gs_is_vcpu_0.load(Relaxed), 1);
    }

    "KERNEL-005 VCPU-002" fn all_is_masked_and_nothing_pending() {
        assert_eq!(FOUND.upcall.load(Relaxed), upcall::MASKED);
        assert_eq!(FOUND.pending.load(Relaxed), 0);
        assert_eq!(FOUND.masked.load(Relaxed), u64::MAX);
    }

    "KERNEL-005" fn no_timer_is_set() {
        let end = after(20);
        while !block(end.as_nanos()) {}
        assert!(!Channel::TIMER.take(), "a timer that nobody has set");
    }
}

//! The engine's part that is in the guest: what is behind the hypercall page where guest kernels run in ring 0.
//!
//! It is compiled by itself, linked to slot 255 of every address space of the guest (`ring0.ld`), and depends on nothing. The
//! entries and traps are assembly (`entry.s`, `traps.s`); what they need to decide is here, called on a stack of the engine's,
//! with interrupts off: a page-table update ([`tables`]), and whether a program may be entered ([`enter`]).
//!
//! Nothing here protects the host: KVM does. The guest kernel is in ring 0, too, and may do with all of this what it likes; it
//! must be right for an honest one, and keep programs from it and from each other.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "ring 0: its own registers, and memory by its address")]

mod enter;
#[allow(dead_code, reason = "a part of it is for the monitor")]
mod layout;
#[allow(dead_code, reason = "a part of it is for the monitor")]
mod tables;

use core::sync::atomic::Ordering::Relaxed;
use layout::{EnginePage, SHARED, Shared, area};
use tables::Tables;

core::arch::global_asm!(
    include_str!("entry.s"),
    include_str!("traps.s"),
    update = sym update,
    flush = sym flush,
    prepare = sym prepare,
    ENTER = const layout::ENTER,
    SHARED = const SHARED,
    SHARED_ASK = const core::mem::offset_of!(Shared, ask),
    STACK_MASK = const layout::VCPU_STRIDE - 1,
    SLOT_255 = const layout::SLOT_255,
    E_NUMBER = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, number),
    E_STATUS = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, status),
    E_ARGUMENTS = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, arguments),
    E_VALUE = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, value),
    E_RSP = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, rsp),
    E_RBP = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, rbp),
    E_USER_ROOT = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, user_root),
    E_KERNEL_CR3 = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, kernel_cr3),
    E_USER_CR3 = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, user_cr3),
    E_CONTEXT = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, context),
    E_XSTATE = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, xstate),
    E_XSTATE_MASK = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, xstate_mask),
    E_HAS_XSAVEOPT = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, has_xsaveopt),
    E_FLUSH_WANTED = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, flush_wanted),
    E_FLUSH_DONE = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, flush_done),
    E_MXCSR = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, mxcsr),
    E_CONTROL = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, control),
    E_KEPT = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, kept),
    E_STACK_END = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, stack_end),
    E_SCRATCH = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, scratch),
    E_TRAP = const area::ENGINE as usize + core::mem::offset_of!(EnginePage, trap),
    PORT_CALL = const layout::port::CALL,
    PORT_BLOCK = const layout::port::BLOCK,
    PORT_ENTER = const layout::port::ENTER,
    PORT_TRAP = const layout::port::TRAP,
    PORT_PROBE = const layout::port::PROBE,
    KERNEL_CODE = const layout::selector::KERNEL_CODE,
    KERNEL_DATA = const layout::selector::KERNEL_DATA,
    USER_CODE = const layout::selector::USER_CODE,
    USER_DATA = const layout::selector::USER_DATA,
    GATE_VECTOR = const layout::vector::GATE,
    GATE = const layout::GATE,
    GATE_BEHIND = const layout::GATE + 2,
    V_UPCALL = const 0,
    V_UPCALL_ENTRY = const 8,
    V_RUN_STATE = const 16,
    PENDING = const 1,
    MASKED = const 0x100,
    NOT_MASKED = const !0x100_i32,
    RUNNING = const 0,
    BLOCKED = const 1,
    CALL_MMU_UPDATE = const 18,
    CALL_MMU_FLUSH = const 19,
    BAD_ARGUMENT = const 2,
    TRAP_SYSCALL = const 1,
    TRAP_PAGE_FAULT = const 2,
    TRAP_EXCEPTION = const 3,
    TRAP_INTERRUPTED = const 4,
    TRAP_KILLED = const 5,
    USER_FLAGS = const 0x24_0dd5,
    FIXED_FLAGS = const 0x202,
    TF = const 0x100,
    C_RAX = const 0,
    C_RBX = const 8,
    C_RCX = const 16,
    C_RDX = const 24,
    C_RSI = const 32,
    C_RDI = const 40,
    C_RBP = const 48,
    C_RSP = const 56,
    C_R8 = const 64,
    C_RIP = const 128,
    C_RFLAGS = const 136,
    C_FS_BASE = const 144,
    C_XSTATE_VALID = const 160,
    C_TRAP = const 164,
    C_ACCESS = const 168,
    C_VECTOR = const 172,
    C_ADDRESS = const 176,
);

/// What an assembly entry is told.
const DONE: u32 = 0;
const ASK: u32 = 1;

fn shared() -> &'static Shared {
    // SAFETY: the monitor maps a `Shared` there in every address space, for as long as the guest runs; all of it is atomics.
    unsafe { &*(SHARED as *const Shared) }
}

fn tables() -> Tables<'static> {
    Tables {
        shared: shared(),
        direct_map: layout::DIRECT_MAP,
        frames: layout::FRAMES,
        pages: layout::SPACES,
        kernel_table: layout::KERNEL_TABLE,
    }
}

/// V of this vCPU's page.
fn area() -> u64 {
    let base: u64;
    // SAFETY: reads GS base, which is this vCPU's page in ring 0; the engine demands FSGSBASE.
    unsafe { core::arch::asm!("rdgsbase {}", out(reg) base, options(nomem, nostack, preserves_flags)) };
    base
}

fn page() -> &'static EnginePage {
    // SAFETY: the monitor maps an `EnginePage` there for each vCPU, for as long as the guest runs; all of it is atomics.
    unsafe { &*((area() + area::ENGINE) as *const EnginePage) }
}

/// Forgets all translations of the address space that is in use.
fn forget_translations() {
    // SAFETY: loads what is loaded already.
    unsafe { core::arch::asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack, preserves_flags)) };
}

/// `MMU_UPDATE` with these arguments. `ASK`: it is for the monitor.
extern "C" fn update(updates: u64, count: u64, flags: u64) -> u32 {
    if flags != 0 && (flags != tables::EAGER || shared().several.load(Relaxed) != 0) {
        return ASK;
    }
    // SAFETY: the batch of this vCPU is its own, and its code in ring 0 is not entered twice.
    let batch = unsafe { &mut *((area() + area::BATCH) as *mut tables::Batch) };
    match tables().update(batch, updates, count) {
        Some(changed) => {
            if changed {
                forget_translations(); // of the guest kernel's; a program's are forgotten when it is entered
            }
            DONE
        }
        None => ASK,
    }
}

/// `MMU_FLUSH` with these arguments. `ASK`: it is for the monitor.
extern "C" fn flush(root: u64, start: u64, length: u64) -> u32 {
    if shared().several.load(Relaxed) != 0 || !tables().may_flush(root, start, length) {
        return ASK;
    }
    forget_translations();
    DONE
}

/// Readies a program to be entered: see [`enter::prepare`].
extern "C" fn prepare(root: u64, context: u64, asked: u32) -> u32 {
    // SAFETY: the vCPU page begins with the word of upcalls, which is an atomic.
    let upcall = unsafe { &*(area() as *const core::sync::atomic::AtomicU32) };
    enter::prepare(&tables(), page(), upcall, root, context, asked != 0) as u32
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // SAFETY: an undefined instruction: the monitor is told as of any exception in ring 0, and ends the VM.
    unsafe { core::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}

//! The stub's code as bytes, and the addresses in it that filters and handlers need.

#![expect(unsafe_code, reason = "the stub is assembly, and its symbols are addresses")]

use super::layout::*;
use crate::engine::process::handover::{
    CALL_STATUS, CALL_VALUE, ENTERABLE, Enterable, Handover, PARK, TRAP_COUNTERS, TURN_CALL, TURN_DEAD,
    TURN_ENTER_USER, TURN_NOTIFY, TURN_SYSCALL, TURN_TRAP, TURN_USER_TRAP, USER_WORDS,
};
use core::mem::offset_of;
use hv_abi::address::{DIRECT_MAP, SLOT_255, VCPU_PAGES, VCPU_STRIDE};
use hv_abi::clock::ClockPage;
use hv_abi::user::{GATE, LOWEST_USER, RFLAGS, RFLAGS_FIXED, UserContext, trap};
use hv_abi::vcpu::{VcpuPage, run_state, upcall};

/// A spinning vCPU looks at its processor whenever the turns left are a multiple of 64.
pub(super) const SPIN_LOOK_MASK: u32 = 63;

/// How long a guest kernel sleeps for a program at most: one that has damaged its hand-over page may not wake it.
const LOOK_AGAIN_NS: u32 = 20_000_000;

core::arch::global_asm!(
    // In this order: where a signal finds a thread is told by the order of labels.
    include_str!("stub/calls.s"),
    include_str!("stub/user.s"),
    include_str!("stub/signals.s"),
    include_str!("stub/mapping.s"),
    ENTRY_BLOCK = const hv_abi::address::entry::BLOCK,
    ENTRY_UPCALL_RETURN = const hv_abi::address::entry::UPCALL_RETURN,
    ENTRY_ENTER_USER = const hv_abi::address::entry::ENTER_USER,
    CONTROL_BASE = const CONTROL_BASE,
    CONTROL_SIZE = const CONTROL_SIZE,
    CONTROL_FD = const descriptor::CONTROL,
    CLOCK = const CLOCK,
    HANDOVER = const HANDOVER,
    STACK = const STACK,
    STACK_SIZE = const STACK_SIZE,
    USER_CS = const USER_CS,
    USER_SS = const USER_SS,
    H_TURN = const offset_of!(Handover, turn),
    H_NUMBER = const offset_of!(Handover, number),
    H_ARGUMENTS = const H_ARGUMENTS,
    H_STATUS = const H_ARGUMENTS + CALL_STATUS * 8,
    H_VALUE = const H_ARGUMENTS + CALL_VALUE * 8,
    H_HOST_SLEEPS = const offset_of!(Handover, host_sleeps),
    H_CALLER_SLEEPS = const offset_of!(Handover, caller_sleeps),
    H_SPIN = const offset_of!(Handover, spin),
    H_STOP = const offset_of!(Handover, stop),
    H_IS_DEAD = const offset_of!(Handover, is_dead),
    H_IN_BLOCK = const offset_of!(Handover, in_block),
    H_RSP = const offset_of!(Handover, rsp),
    H_RBP = const offset_of!(Handover, rbp),
    H_FRAME = const offset_of!(Handover, frame),
    H_SIGINFO = const offset_of!(Handover, siginfo),
    H_SIGNAL = const offset_of!(Handover, signal),
    H_FS_BASE = const Handover::WORDS + (USER_WORDS - 1) * 8,
    H_USER = const Handover::WORDS,
    H_IS_USER = const offset_of!(Handover, is_user),
    H_TRAPS = const offset_of!(Handover, traps),
    H_LOOK_AFTER = const offset_of!(Handover, look_after),
    TRAPS_MASK = const TRAP_COUNTERS - 1,
    H_ENTERABLE = const Handover::ENTERABLE,
    ENTERABLE_MASK = const ENTERABLE - 1,
    ENTERABLE_SHIFT = const size_of::<Enterable>().ilog2(),
    E_ROOT = const offset_of!(Enterable, root),
    E_CONTEXT = const offset_of!(Enterable, context),
    E_XSTATE = const offset_of!(Enterable, xstate),
    E_LINK = const offset_of!(Enterable, link),
    H_DIRECT_ROOT = const offset_of!(Handover, direct_root),
    H_TOGETHER_LEFT = const offset_of!(Handover, together_left),
    H_DIRECT = const offset_of!(Handover, direct),
    C_RIP = const offset_of!(UserContext, rip),
    C_RFLAGS = const offset_of!(UserContext, rflags),
    C_FS_BASE = const offset_of!(UserContext, fs_base),
    C_XSTATE = const offset_of!(UserContext, xstate),
    C_XSTATE_VALID = const offset_of!(UserContext, xstate_valid),
    C_RESERVED = const offset_of!(UserContext, reserved),
    USER_FLAGS = const !(RFLAGS | RFLAGS_FIXED) as i64,
    FIXED_FLAGS = const RFLAGS_FIXED,
    ALL_FLAGS = const RFLAGS | RFLAGS_FIXED,
    LOOK_AGAIN_NS = const LOOK_AGAIN_NS,
    LOWEST_USER = const LOWEST_USER,
    USER_LENGTH = const SLOT_255 - LOWEST_USER,
    SLOT_255 = const SLOT_255,
    DIRECT_MAP = const DIRECT_MAP,
    USER_SYSCALL = const trap::SYSCALL,
    USER_SYSCALL_HIGH = const (trap::SYSCALL as u64) << 32,
    FLAG_TF = const 1 << 8,
    FLAG_AC = const 1 << 18,
    SIGSYS = const libc::SIGSYS,
    ARCH = const super::filter::AUDIT_ARCH_X86_64,
    H_SPUN = const offset_of!(Handover, spun),
    H_CPU = const offset_of!(Handover, cpu),
    H_HOST_CPU = const offset_of!(Handover, host_cpu),
    SPIN_LOOK = const SPIN_LOOK_MASK,
    H_TIMEOUT = const offset_of!(Handover, timeout),
    TURN_CALL = const TURN_CALL,
    TURN_TRAP = const TURN_TRAP,
    TURN_ENTER_USER = const TURN_ENTER_USER,
    TURN_SYSCALL = const TURN_SYSCALL,
    TURN_DEAD = const TURN_DEAD,
    TURN_USER_TRAP = const TURN_USER_TRAP,
    TURN_NOTIFY = const TURN_NOTIFY,
    PARK = const PARK as i32,
    CALL_EVENT_SEND = const hv_abi::Call::EVENT_SEND.0,
    EVENT_CHANNELS = const hv_abi::vcpu::EVENT_CHANNELS,
    BINDINGS = const VCPU_PAGES + BINDINGS,
    UNBOUND = const crate::events::UNBOUND,
    VCPU_PAGES = const VCPU_PAGES,
    STRIDE_SHIFT = const VCPU_STRIDE.ilog2(),
    H_LOOKS = const offset_of!(Handover, looks),
    H_POLLS = const offset_of!(Handover, polls),
    V_VCPU = const offset_of!(VcpuPage, vcpu),
    V_PENDING = const offset_of!(VcpuPage, pending),
    V_MASKED = const offset_of!(VcpuPage, masked),
    UPCALL_PENDING_BIT = const upcall::PENDING.ilog2(),
    V_UPCALL = const offset_of!(VcpuPage, upcall),
    V_UPCALL_ENTRY = const offset_of!(VcpuPage, upcall_entry),
    V_RUN_STATE = const offset_of!(VcpuPage, run_state),
    UPCALL_PENDING = const upcall::PENDING,
    UPCALL_MASKED = const upcall::MASKED,
    NOT_MASKED = const !(upcall::MASKED as i32),
    RUN_RUNNING = const run_state::RUNNING,
    RUN_BLOCKED = const run_state::BLOCKED,
    WOKEN_BY_DEADLINE = const hv_abi::call::woken_by::DEADLINE,
    C_SEQUENCE = const offset_of!(ClockPage, sequence),
    C_TSC_BASE = const offset_of!(ClockPage, tsc_base),
    C_SCALE = const offset_of!(ClockPage, scale),
    C_NS_BASE = const offset_of!(ClockPage, ns_base),
    UC_R8 = const ucontext::R8,
    UC_RSP = const ucontext::RSP,
    UC_RIP = const ucontext::RIP,
    UC_EFLAGS = const ucontext::EFLAGS,
    UC_FPSTATE = const ucontext::FPSTATE,
    UC_SELECTORS = const ucontext::SELECTORS,
    K_SEQUENCE = const offset_of!(Control, sequence),
    NUMBERS = const BATCH_NUMBERS,
    K_COUNT = const offset_of!(Control, count),
    K_COMMANDS = const offset_of!(Control, commands),
    K_THREAD_COUNT = const offset_of!(Control, thread_count),
    K_THREAD_COMMANDS = const offset_of!(Control, thread_commands),
    COMMAND_SIZE = const size_of::<Command>(),
    REPORT_OFFSET = const REPORT_OFFSET,
    R_DONE = const offset_of!(Report, done),
    R_ERRNO = const offset_of!(Report, errno),
    R_LEFT = const offset_of!(Report, left),
    FUTEX_WAIT = const libc::FUTEX_WAIT,
    FUTEX_WAKE = const libc::FUTEX_WAKE,
    WAKE_ALL = const i32::MAX,
    SYS_FUTEX = const libc::SYS_futex,
    SYS_MMAP = const libc::SYS_mmap,
    SYS_CLONE = const libc::SYS_clone,
    SYS_PWRITE = const libc::SYS_pwrite64,
    PROT_READ = const libc::PROT_READ,
    MAP_SHARED_FIXED = const libc::MAP_SHARED | libc::MAP_FIXED,
);

/// Declares the stub's labels and a function for each that gives its address in a sandbox.
macro_rules! labels {
    ($($(#[$doc:meta])* $function:ident = $symbol:ident;)+) => {
        unsafe extern "C" {
            static hv_stub_begin: u8;
            static hv_stub_end: u8;
            $(static $symbol: u8;)+
        }
        $($(#[$doc])* pub(super) fn $function() -> u64 { in_sandbox(&raw const $symbol) })+
    };
}

labels! {
    /// First instruction of a sandbox process.
    start = hv_stub_start;
    /// Handler of the signals that a guest's own instructions raise.
    trap = hv_stub_trap;
    /// Handler of the monitor's signal.
    kick = hv_stub_kick;
    /// Behind the one instruction that makes the monitor's commands.
    command = hv_stub_command;
    pwrite_1 = hv_stub_pwrite_1;
    pwrite_2 = hv_stub_pwrite_2;
    pwrite_3 = hv_stub_pwrite_3;
    mapping_futex_1 = hv_stub_mapping_futex_1;
    mapping_futex_2 = hv_stub_mapping_futex_2;
    futex_1 = hv_stub_futex_1;
    futex_2 = hv_stub_futex_2;
    futex_3 = hv_stub_futex_3;
    futex_4 = hv_stub_futex_4;
    futex_5 = hv_stub_futex_5;
    futex_6 = hv_stub_futex_6;
    futex_7 = hv_stub_futex_7;
    futex_8 = hv_stub_futex_8;
    futex_9 = hv_stub_futex_9;
    futex_10 = hv_stub_futex_10;
    gate = hv_stub_gate;
    /// Where trampolines of rewritten system calls go on.
    rewritten = hv_stub_rewritten;
}

/// Where the byte at `label` of the stub is in a sandbox.
fn in_sandbox(label: *const u8) -> u64 {
    STUB_BASE + (label.addr() - (&raw const hv_stub_begin).addr()) as u64
}

/// What is at V `GATE` of a user address space: `jmp [rip]`, and where to; and at [`GATE_REWRITTEN`] where trampolines
/// jump to.
pub(super) fn gate_code() -> [u8; 24] {
    const REWRITTEN: usize = (GATE_REWRITTEN - GATE) as usize;
    let mut code = [0; REWRITTEN + 8];
    code[..2].copy_from_slice(&[0xff, 0x25]);
    code[6..14].copy_from_slice(&gate().to_le_bytes());
    code[REWRITTEN..].copy_from_slice(&rewritten().to_le_bytes());
    code
}

/// The stub's code.
pub(super) fn code() -> &'static [u8] {
    let begin = &raw const hv_stub_begin;
    let length = (&raw const hv_stub_end).addr() - begin.addr();
    // SAFETY: `from_raw_parts` needs initialised memory that lives and is not written. Both symbols are in one
    // read-only section of this program, in this order (stub/calls.s, stub/mapping.s), and so are the bytes between them.
    unsafe { core::slice::from_raw_parts(begin, length) }
}

/// Whether an address of a sandbox is in the stub.
pub(crate) fn contains(address: u64) -> bool {
    (STUB_BASE..STUB_BASE + code().len() as u64).contains(&address)
}

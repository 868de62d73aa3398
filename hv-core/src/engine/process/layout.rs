//! Where everything is in PML4 slot 255 of a sandbox, and the structures that the stub and the monitor share.
//!
//! The stub's assembly is given every offset from here, so that there is one definition.

use crate::engine::process::handover::Handover;
use hv_abi::address::{CLOCK_PAGE, MAX_VCPUS, SLOT_255, VCPU_PAGES, VCPU_STRIDE};
use hv_abi::user::{GATE, LOWEST_USER};

/// Where the stub is mapped; its first page is the hypercall page.
pub(super) const STUB_BASE: u64 = SLOT_255;

/// Where the control pages are mapped, read-only.
pub(super) const CONTROL_BASE: u64 = SLOT_255 + 0x10_0000;

/// Where the guest kernel's sandbox has the hand-over pages of its programs: the file of links.
pub(super) const LINKS_BASE: u64 = SLOT_255 + 0x100_0000;
const _: () = assert!(VCPU_PAGES + MAX_VCPUS as u64 * VCPU_STRIDE <= LINKS_BASE);

/// Sandboxes for user address spaces that a VM has at once, at the most.
pub(super) const MOST_SPACES: u32 = 64;

/// First address behind everything of the hypervisor's in slot 255.
pub(super) const SLOT_255_USED_END: u64 = LINKS_BASE + links_size(MAX_VCPUS);

/// Bytes of the file of links: a page for each sandbox and vCPU.
pub(super) const fn links_size(vcpus: u32) -> u64 {
    MOST_SPACES as u64 * vcpus as u64 * 4096
}

/// Offset in it of one sandbox's page for one vCPU.
pub(super) const fn link_offset(vcpus: u32, slot: u32, vcpu: u32) -> u64 {
    (slot as u64 * vcpus as u64 + vcpu as u64) * 4096
}

/// Where the low jump table is mapped, in user address spaces: behind the gate's page.
pub(super) const TABLE: u64 = GATE + 4096;
/// Bytes of it; it is at the beginning of its file.
pub(super) const TABLE_SIZE: u64 = LOWEST_USER - TABLE;
/// Offset in that file of the copies of pages.
pub(super) const COPIES_OFFSET: u64 = TABLE_SIZE;
/// Copies that a VM has at once, at the most.
pub(super) const MOST_COPIES: u64 = 256;
/// Pages for them: one more, for one that takes the place of another.
pub(super) const COPY_PAGES: u64 = MOST_COPIES + 1;
/// Bytes of the file.
pub(super) const REWRITTEN_SIZE: u64 = COPIES_OFFSET + COPY_PAGES * 4096;

/// V of the word, in the gate's page, that has the address of the stub's entry for rewritten system calls.
pub(super) const GATE_REWRITTEN: u64 = GATE + 16;

/// Offset of the clock page in a vCPU's area.
pub(super) const CLOCK: u64 = CLOCK_PAGE;
/// Offset of the hand-over page in a vCPU's area.
pub(super) const HANDOVER: u64 = 0x2000;
/// Offset, in the area of vCPU 0, of the page that says which vCPU each event channel is bound to; the guest kernel's
/// sandbox has it, and has it for all its vCPUs there.
pub(super) const BINDINGS: u64 = 0x3000;
/// Offset of the signal stack in a vCPU's area.
pub(super) const STACK: u64 = 0x1_0000;
/// Bytes of a signal stack; its address is a multiple of them. A frame with AMX state is about 11 KiB, and the
/// monitor's signal can nest.
pub(super) const STACK_SIZE: u64 = 0x1_0000;
const _: () = assert!(STACK + STACK_SIZE == VCPU_STRIDE && VCPU_PAGES.is_multiple_of(STACK_SIZE));

/// Address of a vCPU's area in a sandbox.
pub(super) const fn vcpu_area(vcpu: u32) -> u64 {
    VCPU_PAGES + vcpu as u64 * VCPU_STRIDE
}

/// Bytes of the exchange file for one vCPU: hand-over page, signal stack, and in a user address space a page where
/// the guest kernel has its vCPU page.
pub(super) const EXCHANGE_STRIDE: u64 = EXCHANGE_NO_PAGE + 0x1000;
/// Offset of the signal stack there.
pub(super) const EXCHANGE_STACK: u64 = 0x1000;
/// Offset of the page that stands for the vCPU page.
pub(super) const EXCHANGE_NO_PAGE: u64 = EXCHANGE_STACK + STACK_SIZE;

/// Offset in the signal stack at which the monitor builds a vCPU's first context: far enough from both ends for
/// signal frames.
pub(super) const FIRST_CONTEXT: u64 = 0xc000;
/// Offset in the signal stack of the first context's extended state; 64-byte aligned.
pub(super) const FIRST_XSTATE: u64 = 0xd000;

/// Descriptors of a sandbox.
pub(super) mod descriptor {
    /// Guest memory.
    pub(in super::super) const GUEST_MEMORY: i32 = 3;
    /// Control pages: commands and reports. Never mapped writable.
    pub(in super::super) const CONTROL: i32 = 4;
    /// vCPU pages and the clock page of the VM.
    pub(in super::super) const VCPU_PAGES: i32 = 5;
    /// Hand-over pages and signal stacks.
    pub(in super::super) const EXCHANGE: i32 = 6;
    /// Hand-over pages between the VM's user programs and their guest kernel.
    pub(in super::super) const LINKS: i32 = 7;
    /// The low jump table, and copies of pages with rewritten system calls. Never mapped writable.
    pub(in super::super) const REWRITTEN: i32 = 8;
}

/// One system call for the mapping thread to make.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Command {
    /// Number of the system call.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}
const _: () = assert!(size_of::<Command>() == 56);

impl Command {
    pub(super) const fn new(number: i64, arguments: [u64; 6]) -> Self {
        Self { number: number as u64, arguments }
    }
}

/// Batches are numbered below this, again and again: a mapping thread has so many numbers to report.
pub(super) const BATCH_NUMBERS: u32 = 256;
/// Commands in one batch, at the most.
pub(super) const MAX_COMMANDS: usize = 72;
/// Commands by which a vCPU thread sets itself up, at the most.
pub(super) const MAX_THREAD_COMMANDS: usize = 8;

/// What a `rt_sigaction` is given: the kernel's structure, not libc's.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct KernelSigaction {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// Instructions in a filter, at the most.
pub(super) const MAX_FILTER: usize = 128;

/// The command page and its data, written by the monitor and read-only in the sandbox.
#[repr(C, align(4096))]
pub(super) struct Control {
    /// Raised by the monitor when a batch is ready; the mapping thread sleeps on it.
    pub sequence: core::sync::atomic::AtomicU32,
    /// Commands in the batch.
    pub count: u32,
    pub commands: [Command; MAX_COMMANDS],
    /// Commands of a new vCPU thread.
    pub thread_count: u64,
    pub thread_commands: [Command; MAX_THREAD_COMMANDS],
    /// Handlers of the traps and of the monitor's signal.
    pub trap_action: KernelSigaction,
    pub kick_action: KernelSigaction,
    /// All signals, and those that a vCPU thread blocks: masks for `rt_sigprocmask`.
    pub all_signals: u64,
    pub vcpu_blocked: u64,
    /// A `stack_t` for the new vCPU thread.
    pub signal_stack: [u64; 3],
    pub mapping_filter: Filter,
    pub vcpu_filter: Filter,
}

/// A `sock_fprog` and its program.
#[repr(C)]
pub(super) struct Filter {
    pub length: u64,
    /// Address of `program` in the sandbox.
    pub address: u64,
    pub program: [u64; MAX_FILTER],
}

/// Offset of the report page in the control file.
pub(super) const REPORT_OFFSET: u64 = size_of::<Control>() as u64;
/// Offset in it of the page that user address spaces have at their gate.
pub(super) const GATE_OFFSET: u64 = REPORT_OFFSET + 4096;
/// Bytes of the control file.
pub(super) const CONTROL_SIZE: u64 = GATE_OFFSET + 4096;

/// What the mapping thread reports, by `pwrite`.
#[repr(C)]
pub(crate) struct Report {
    /// Sequence number of the last batch that is finished.
    pub done: core::sync::atomic::AtomicU32,
    /// Error number of the command that failed, if one did.
    pub errno: core::sync::atomic::AtomicU32,
    /// How many commands came after that one.
    pub left: core::sync::atomic::AtomicU32,
}

/// Address in the sandbox of something in [`Control`].
pub(super) const fn control_address(offset: usize) -> u64 {
    CONTROL_BASE + offset as u64
}

/// Offsets in the kernel's x86-64 `ucontext`, counted from its start.
pub(super) mod ucontext {
    /// R8, first of the sixteen general registers in the kernel's order.
    pub(in super::super) const R8: u64 = 40;
    /// RSP.
    pub(in super::super) const RSP: u64 = 160;
    /// RIP.
    pub(in super::super) const RIP: u64 = 168;
    /// RFLAGS.
    pub(in super::super) const EFLAGS: u64 = 176;
    /// CS, GS, FS, SS, 16 bits each.
    pub(in super::super) const SELECTORS: u64 = 184;
    /// Page-fault error code.
    pub(in super::super) const ERR: u64 = 192;
    /// Exception vector.
    pub(in super::super) const TRAPNO: u64 = 200;
    /// Address of a page fault.
    pub(in super::super) const CR2: u64 = 216;
    /// Pointer to the extended state.
    pub(in super::super) const FPSTATE: u64 = 224;
    /// Bytes that the monitor reads.
    pub(in super::super) const SIZE: usize = 232;
}

/// Offset of the hand-over page's fields, for the stub.
pub(super) const H_ARGUMENTS: usize = Handover::WORDS;

/// The one code selector and the one stack selector of 64-bit user mode.
pub(super) const USER_CS: u64 = 0x33;
pub(super) const USER_SS: u64 = 0x2b;

/// Signal by which the monitor gets a vCPU thread's attention.
pub(super) const KICK_SIGNAL: i32 = libc::SIGUSR1;

/// Signals by which a terminal or a shell stops a job: a sandbox stops with its monitor.
const JOB_SIGNALS: [i32; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// What a vCPU thread blocks: everything but what it handles and what stops it with its monitor. Ctrl-C above all is for
/// the monitor, whose process group it is in.
pub(super) fn vcpu_blocked() -> u64 {
    let open = TRAP_SIGNALS.iter().chain(&JOB_SIGNALS).chain(&[KICK_SIGNAL]);
    open.fold(u64::MAX, |blocked, signal| blocked & !(1 << (signal - 1)))
}

/// Signals that a guest's own instructions raise.
pub(super) const TRAP_SIGNALS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

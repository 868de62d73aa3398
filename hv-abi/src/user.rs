//! User mode: what a guest kernel gives to `ENTER_USER` to run a program, and gets back at its trap.

use crate::GuestPhys;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// V of the gate in every user address space: a program that calls it has trapped as if by `SYSCALL`, without a trap.
pub const GATE: u64 = 0x1_0000;

/// First V that a user program can map; what is between [`GATE`] and here is the hypervisor's.
pub const LOWEST_USER: u64 = 0x2_0000;

/// A program's registers, in guest memory, 64-byte aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct UserContext {
    /// In and out, like all registers here.
    pub rax: u64,
    /// RBX.
    pub rbx: u64,
    /// RCX.
    pub rcx: u64,
    /// RDX.
    pub rdx: u64,
    /// RSI.
    pub rsi: u64,
    /// RDI.
    pub rdi: u64,
    /// RBP.
    pub rbp: u64,
    /// Any value.
    pub rsp: u64,
    /// R8 to R15, in order.
    pub r8_to_r15: [u64; 8],
    /// Always an address of the original program.
    pub rip: u64,
    /// [`RFLAGS`] are the program's.
    pub rflags: u64,
    /// FS base.
    pub fs_base: u64,
    /// In: an `XSAVE` area in standard format, `BootInfo::xstate_size` bytes, 64-byte aligned.
    pub xstate: GuestPhys,
    /// In and out: 1 if the area holds the program's extended state, 0 if the engine does.
    pub xstate_valid: u32,
    /// Out: one of [`trap`].
    pub trap: u32,
    /// Out, for a page fault: one of [`access`].
    pub access: u32,
    /// Out, for an exception: x86 vector number.
    pub vector: u32,
    /// Out, for a page fault: V that was accessed.
    pub address: u64,
    /// In: zero.
    pub reserved: [u64; 9],
}
const _: () = assert!(size_of::<UserContext>() == 256);
const _: () = assert!(core::mem::offset_of!(UserContext, rip) == 128);
const _: () = assert!(core::mem::offset_of!(UserContext, xstate_valid) == 160);
const _: () = assert!(core::mem::offset_of!(UserContext, address) == 176);

/// Flags that are the program's: CF, PF, AF, ZF, SF, TF, DF, OF, AC, ID. IF and bit 1 read as 1 and are ignored; all
/// others must be zero.
pub const RFLAGS: u64 = 0x24_0dd5;

/// Flags that are always read as 1 and need not be: bit 1 and IF.
pub const RFLAGS_FIXED: u64 = 0x202;

/// Why a program came back.
pub mod trap {
    /// It made a system call.
    pub const SYSCALL: u32 = 1;
    /// Its page tables do not allow what it did.
    pub const PAGE_FAULT: u32 = 2;
    /// Any other exception.
    pub const EXCEPTION: u32 = 3;
    /// Nothing happened to it; the guest kernel is wanted.
    pub const INTERRUPTED: u32 = 4;
    /// The engine had to give it up.
    pub const KILLED: u32 = 5;
}

/// What a page fault wanted.
pub mod access {
    /// To read data.
    pub const READ: u32 = 0;
    /// To write data.
    pub const WRITE: u32 = 1;
    /// To fetch an instruction.
    pub const EXECUTE: u32 = 2;
}

//! What the monitor and its code in ring 0 of the guest share: where everything is, and the pages that both look at.
//!
//! This file is compiled twice, into the monitor and into `ring0`, which depends on no crate; what it repeats of `hv-abi` is
//! compared with that where the monitor takes it in. To the monitor, all that the guest can write here is a claim: ring 0 is the
//! guest kernel's, too.
//!
//! Start at [`EnginePage`] and [`Shared`].

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// V of PML4 slot 255, where the hypercall page is.
pub(crate) const SLOT_255: u64 = 0x7f80_0000_0000;
/// V of vCPU 0's page, and from one to the next.
pub(crate) const VCPU_PAGES: u64 = SLOT_255 + 0x20_0000;
pub(crate) const VCPU_STRIDE: u64 = 0x2_0000;
/// V of the direct map, and where what the guest kernel's own root translates begins.
pub(crate) const DIRECT_MAP: u64 = 0x1000_0000_0000;
pub(crate) const KERNEL_SPACE: u64 = DIRECT_MAP + (512 << 30);
/// V of the gate in user address spaces, and the first V behind it that is the program's.
pub(crate) const GATE: u64 = 0x1_0000;
pub(crate) const LOWEST_USER: u64 = 0x2_0000;

/// V of the table of interrupt gates.
pub(crate) const IDT: u64 = SLOT_255 + 0x10_0000;
/// V of the guest kernel's table of the highest level.
pub(crate) const KERNEL_TABLE: u64 = SLOT_255 + 0x1f_0000;
/// V of [`Shared`].
pub(crate) const SHARED: u64 = SLOT_255 + 0x11_0000;
/// V of one byte for each frame of guest memory: bits of [`frame`].
pub(crate) const FRAMES: u64 = SLOT_255 + 0x1_0000_0000;
/// V of the pages of [`Space`]s, [`SPACE_PAGES`] for each.
pub(crate) const SPACES: u64 = SLOT_255 + 0x2_0000_0000;

/// From a vCPU's page to what else there is of it.
pub(crate) mod area {
    pub(crate) const CLOCK: u64 = 0x1000;
    /// [`EnginePage`](super::EnginePage).
    pub(crate) const ENGINE: u64 = 0x2000;
    /// Task state, and behind it segment descriptors.
    pub(crate) const TASK: u64 = 0x3000;
    pub(crate) const SEGMENTS: u64 = TASK + 0x100;
    /// Ends of stacks: of calls, of exceptions, of the monitor's interrupt, and of what cannot be gone on from.
    pub(crate) const STACK_END: u64 = 0x8000;
    pub(crate) const TRAP_END: u64 = 0xa000;
    pub(crate) const UPCALL_END: u64 = 0xb000;
    pub(crate) const FATAL_END: u64 = 0xc000;
    /// Copies of what `MMU_UPDATE` is given.
    pub(crate) const BATCH: u64 = 0x1_0000;
    pub(crate) const END: u64 = 0x1_4000;
}

/// Selectors. What `SYSCALL` and `SYSRET` want: data behind code, and the other way round.
pub(crate) mod selector {
    pub(crate) const KERNEL_CODE: u64 = 0x10;
    pub(crate) const KERNEL_DATA: u64 = 0x18;
    /// `SYSRET` adds 8 and 16 to it. There is no segment there.
    pub(crate) const USER_BASE: u64 = 0x23;
    pub(crate) const USER_DATA: u64 = 0x2b;
    pub(crate) const USER_CODE: u64 = 0x33;
    pub(crate) const TASK: u64 = 0x40;
}

/// Vectors behind those of the processor.
pub(crate) mod vector {
    /// The monitor's: an event, or translations to forget.
    pub(crate) const UPCALL: u64 = 0x20;
    /// The gate's.
    pub(crate) const GATE: u64 = 0x21;
}

/// Ports: by writing to one, ring 0 leaves the guest.
pub(crate) mod port {
    /// A call, in [`EnginePage::number`](super::EnginePage::number) and its arguments.
    pub(crate) const CALL: u16 = 0x6800;
    /// `BLOCK`, until the first argument.
    pub(crate) const BLOCK: u16 = 0x6801;
    /// `ENTER_USER` with the first two arguments.
    pub(crate) const ENTER: u16 = 0x6802;
    /// An exception of the guest kernel's, in [`EnginePage::trap`](super::EnginePage::trap).
    pub(crate) const TRAP: u16 = 0x6803;
    /// The end of a probe.
    pub(crate) const PROBE: u16 = 0x6804;
}

/// What the monitor answers to [`port::ENTER`] instead of a status: the program is to be entered.
pub(crate) const ENTER: u32 = u32::MAX;

/// Bits of a frame's byte at [`FRAMES`].
pub(crate) mod frame {
    /// Entries of it are copied to a [`Space`](super::Space)'s pages.
    pub(crate) const SOURCE: u8 = 1;
    /// It is a root for programs.
    pub(crate) const ROOT: u8 = 2;
    /// It is the guest kernel's own root.
    pub(crate) const KERNEL_ROOT: u8 = 4;
}

/// What one vCPU's code in ring 0 works with, at [`area::ENGINE`].
#[repr(C)]
pub(crate) struct EnginePage {
    /// A crossing: the call, or 0, and how it ended.
    pub(crate) number: AtomicU32,
    pub(crate) status: AtomicU32,
    pub(crate) arguments: [AtomicU64; 5],
    pub(crate) value: AtomicU64,
    /// The guest kernel's at the crossing.
    pub(crate) rsp: AtomicU64,
    pub(crate) rbp: AtomicU64,
    /// The root of the program that runs; 0 in the guest kernel.
    pub(crate) user_root: AtomicU64,
    /// The guest kernel's address space, and the program's.
    pub(crate) kernel_cr3: AtomicU64,
    pub(crate) user_cr3: AtomicU64,
    /// V of the program's context, and of the area of its extended state.
    pub(crate) context: AtomicU64,
    pub(crate) xstate: AtomicU64,
    /// Components of extended state, the bytes of an area with all of them, and whether there is `XSAVEOPT`.
    pub(crate) xstate_mask: AtomicU64,
    pub(crate) xstate_size: AtomicU64,
    pub(crate) has_xsaveopt: AtomicU32,
    /// Translations are to be forgotten when these differ: the monitor raises the first, ring 0 follows.
    pub(crate) flush_wanted: AtomicU32,
    pub(crate) flush_done: AtomicU32,
    /// The guest kernel's MXCSR and x87 control word while a program runs.
    pub(crate) mxcsr: AtomicU32,
    pub(crate) control: AtomicU32,
    pub(crate) reserved: u32,
    /// The same of its registers that a call preserves: RBX, RBP, RSP, R12 to R15, FS base.
    pub(crate) kept: [AtomicU64; 8],
    /// V of the end of the stack for calls.
    pub(crate) stack_end: AtomicU64,
    /// Registers on their way.
    pub(crate) scratch: [AtomicU64; 3],
    /// An exception of the guest kernel's: RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15, RIP, RFLAGS, FS base, and then
    /// the vector, its error code, CR2 and CS.
    pub(crate) trap: [AtomicU64; 23],
}
const _: () = assert!(size_of::<EnginePage>() <= PAGE as usize);

/// Programs' address spaces that are ready to be entered.
pub(crate) const SPACES_MAX: usize = 256;
/// A root is in one of so many places, from its hash on.
pub(crate) const SPACE_WAYS: usize = 16;
/// Its own pages: the root's, and for the first 2 MiB, where the gate is, a table of each level below.
pub(crate) const SPACE_PAGES: u64 = 4;

/// A user root, ready to be entered: its upper tables are copies, with the hypervisor's part in them.
#[repr(C)]
pub(crate) struct Space {
    /// P; 0 if there is none.
    pub(crate) root: AtomicU64,
    /// Machine address of the copy of the root.
    pub(crate) cr3: AtomicU64,
    /// Frames that were copied, of each level from the root on; 0 if there is none.
    pub(crate) sources: [AtomicU64; 4],
    /// One of them has changed since.
    pub(crate) stale: AtomicU32,
    pub(crate) reserved: u32,
}

/// What all vCPUs' code in ring 0 works with.
#[repr(C)]
pub(crate) struct Shared {
    /// Bytes of guest memory.
    pub(crate) memory: AtomicU64,
    /// What slot 255 and the gate's page are in a user address space: entries.
    pub(crate) slot_255: AtomicU64,
    pub(crate) gate: AtomicU64,
    /// The monitor is to see every change of page tables, and every entry.
    pub(crate) ask: AtomicU32,
    /// More than one vCPU is started.
    pub(crate) several: AtomicU32,
    /// Held while a space's pages are copied.
    pub(crate) lock: AtomicU32,
    pub(crate) reserved: u32,
    pub(crate) spaces: [Space; SPACES_MAX],
}

/// Pages of [`Shared`].
pub(crate) const SHARED_PAGES: u64 = (size_of::<Shared>() as u64).div_ceil(PAGE);

/// What `ring0` begins with, behind the hypercall page's entries: where the monitor finds the rest of it.
#[repr(C)]
pub(crate) struct Header {
    pub(crate) syscall: u64,
    pub(crate) syscall_end: u64,
    /// The first vector's code; the others follow at [`VECTOR_BYTES`], 32 of them.
    pub(crate) vectors: u64,
    pub(crate) upcall: u64,
    pub(crate) upcall_end: u64,
    pub(crate) gate: u64,
    pub(crate) probe: u64,
    /// The page of code at [`GATE`].
    pub(crate) gate_page: u64,
}
/// From the hypercall page to [`Header`].
pub(crate) const HEADER: u64 = 0x100;
pub(crate) const VECTOR_BYTES: u64 = 16;

/// Where in its places a root is looked for first.
pub(crate) fn hash(root: u64) -> usize {
    (root / PAGE).wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 40
}

/// A frame's byte.
pub(crate) type FrameBits = AtomicU8;

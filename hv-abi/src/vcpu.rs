//! The vCPU page: what a vCPU and the host tell each other without crossing.
//!
//! # Events and upcalls
//!
//! An event channel that fires sets its bit in `pending`. Unless its bit in `masked` is set, the host then sets
//! [`upcall::PENDING`] in `upcall`, and, unless [`upcall::MASKED`] is set there, enters the guest kernel at
//! `upcall_entry` with [`upcall::MASKED`] set and RSP at an [`UpcallFrame`]. The guest clears
//! [`upcall::PENDING`], *then* takes bits from `pending`, and leaves through the hypercall page's
//! [`UPCALL_RETURN`](crate::address::entry::UPCALL_RETURN), which unmasks, looks for new events and returns as
//! one sequence, so that none is lost between.
//!
//! Every field may be written by the guest, so to the host each is a claim.

use core::sync::atomic::{AtomicU32, AtomicU64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Event channels in a VM, numbered from 0.
pub const EVENT_CHANNELS: u32 = 512;

/// 64-bit words in a set of event channels.
pub const EVENT_WORDS: usize = EVENT_CHANNELS as usize / 64;

/// The channel by which each vCPU's own timer fires. It is always open and bound to every vCPU.
pub const TIMER_CHANNEL: u32 = 0;

/// The channel by which a change of the balloon's target fires. It is always open and bound to vCPU 0.
pub const BALLOON_CHANNEL: u32 = 1;

/// The channel by which the console's input fires. It is always open and bound to vCPU 0.
pub const CONSOLE_CHANNEL: u32 = 3;

/// First channel that [`EVENT_ALLOCATE`](crate::Call::EVENT_ALLOCATE) hands out; those below are fixed.
pub const FIRST_DYNAMIC_CHANNEL: u32 = 16;

/// Bits of [`VcpuPage::upcall`].
pub mod upcall {
    /// An unmasked channel has fired. The host sets it, the guest clears it.
    pub const PENDING: u32 = 1 << 0;
    /// No upcall is wanted. The guest sets and clears it; the host sets it when it makes an upcall.
    pub const MASKED: u32 = 1 << 8;
}

/// Values of [`VcpuPage::run_state`].
pub mod run_state {
    /// The vCPU has a host CPU, or waits for one.
    pub const RUNNING: u32 = 0;
    /// The vCPU gave its CPU back with `block`.
    pub const BLOCKED: u32 = 1;
    /// The hypervisor has stopped the vCPU.
    pub const STOPPED: u32 = 2;
}

/// [`VcpuPage::processor`] of a vCPU of which nothing is known.
pub const NO_PROCESSOR: u32 = u32::MAX;

/// One vCPU's page; only its beginning is used. GS base points here in the guest kernel.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VcpuPage {
    /// Bits of [`upcall`]. Starts as [`upcall::MASKED`].
    pub upcall: AtomicU32,
    /// This vCPU's number. The host writes it once.
    pub vcpu: AtomicU32,
    /// Where upcalls enter the guest kernel; guest-virtual. The guest sets it before it unmasks.
    pub upcall_entry: AtomicU64,
    /// One of [`run_state`].
    pub run_state: AtomicU32,
    /// 1 while the hypervisor keeps this vCPU from running: a hint for locks, which should stop spinning.
    pub preempted: AtomicU32,
    /// Nanoseconds for which this vCPU wanted to run and could not. The host adds to it.
    pub steal_ns: AtomicU64,
    /// The engine's.
    pub engine0: u32,
    /// Host processor that this vCPU runs on or last ran on, or [`NO_PROCESSOR`]: a hint for locks. A holder that last ran
    /// where the waiter runs now does not run.
    pub processor: AtomicU32,
    /// The engine's.
    pub engine1: [u64; 3],
    /// Channels that have fired.
    pub pending: [AtomicU64; EVENT_WORDS],
    /// Channels that must not cause an upcall or end a `block`. All bits are set at start.
    pub masked: [AtomicU64; EVENT_WORDS],
    /// Not 0 while somebody watches: the guest may write [records](crate::trace). The host sets it.
    pub trace: AtomicU32,
    /// Zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<VcpuPage>() == 200 && core::mem::offset_of!(VcpuPage, trace) == 192);
const _: () = assert!(core::mem::offset_of!(VcpuPage, upcall_entry) == 8);
const _: () = assert!(core::mem::offset_of!(VcpuPage, engine0) == 32);
const _: () = assert!(core::mem::offset_of!(VcpuPage, processor) == 36);
const _: () = assert!(core::mem::offset_of!(VcpuPage, pending) == 64);
const _: () = assert!(core::mem::offset_of!(VcpuPage, masked) == 128);

/// What an upcall leaves on the guest kernel's stack, below the interrupted code's red zone: RSP at entry is its
/// address, 16-byte aligned after its 40 bytes. All other registers are as they were interrupted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UpcallFrame {
    /// Where the interrupted code goes on.
    pub rip: u64,
    /// The engine's; a guest leaves it alone.
    pub engine0: u64,
    /// Flags of the interrupted code.
    pub rflags: u64,
    /// Stack pointer of the interrupted code.
    pub rsp: u64,
    /// The engine's; a guest leaves it alone.
    pub engine1: u64,
}
const _: () = assert!(size_of::<UpcallFrame>() == 40 && core::mem::offset_of!(UpcallFrame, rsp) == 24);

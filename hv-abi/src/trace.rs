//! Tracing: what a guest kernel tells a host that watches it, without crossing.
//!
//! While [`VcpuPage::trace`](crate::vcpu::VcpuPage::trace) is not 0, a guest that likes to may write records to a ring in its own
//! memory, one for each vCPU, which it names by [`TRACE_RING`](crate::Call::TRACE_RING): marks of its own, and crossings that
//! the host does not see, since the engine serves them without it. Whoever writes one takes its place by raising
//! [`TraceRing::head`] in one atomic step, fills it, and stores its sequence number last; so an upcall, or another vCPU, may
//! write to the same ring in between. The host copies each record once, and takes its bytes for a claim.

use core::sync::atomic::{AtomicU32, AtomicU64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most records that a ring has room for.
pub const TRACE_RECORDS_MAX: u64 = 65536;

/// Bytes of a record's name.
pub const TRACE_NAME_MAX: usize = 32;

/// Values of [`TraceRecord::kind`]. The host leaves records of other kinds out.
pub mod kind {
    /// Something of the guest's own happened, at `begin`.
    pub const MARK: u32 = 1;
    /// Something of the guest's own took from `begin` to `end`.
    pub const SPAN: u32 = 2;
    /// An entry of the hypercall page, or an upcall, took from `begin` to `end`.
    pub const CROSSING: u32 = 3;
}

/// The beginning of a ring, 64-byte aligned. As many [`TraceRecord`]s follow as `TRACE_RING` was told.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C, align(64))]
pub struct TraceRing {
    /// Records that were begun so far, modulo 2^32; record n has place n modulo the ring's size. The guest raises it.
    pub head: AtomicU32,
    /// Records that the host has taken so far, modulo 2^32. The host stores it.
    pub tail: AtomicU32,
    /// Records for which there was no room. The guest raises it.
    pub dropped: AtomicU64,
    /// Zero.
    pub reserved: [u64; 6],
}
const _: () = assert!(size_of::<TraceRing>() == 64 && core::mem::offset_of!(TraceRing, dropped) == 8);

/// One record of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
pub struct TraceRecord {
    /// The number of the record plus 1, modulo 2^32. The guest stores it last.
    pub sequence: u32,
    /// One of [`kind`].
    pub kind: u32,
    /// The time-stamp counter where it began.
    pub begin: u64,
    /// And where it ended; of a mark, the same.
    pub end: u64,
    /// Whatever the guest wants to tell with it.
    pub value: u64,
    /// What it is: UTF-8, up to the first zero. What is not printable is shown replaced.
    pub name: [u8; TRACE_NAME_MAX],
}
const _: () = assert!(size_of::<TraceRecord>() == 64 && core::mem::offset_of!(TraceRecord, name) == 32);

//! Memory knowledge: which pages the guest says are free, and takes back.

use crate::GuestPhys;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most runs that one `PAGES_REPORT` or `PAGES_CLAIM` takes.
pub const PAGE_RUNS_MAX: u64 = 512;

/// Consecutive pages, 8-byte aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PageRun {
    /// In: the first page, page-aligned.
    pub start: GuestPhys,
    /// In: how many pages; 0 is allowed.
    pub count: u64,
}
const _: () = assert!(size_of::<PageRun>() == 16 && core::mem::offset_of!(PageRun, count) == 8);

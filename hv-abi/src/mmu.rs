//! Page tables: x86-64 four-level tables in guest memory, changed by hypercall.
//!
//! The guest owns the tables and they are authoritative; an engine keeps at most a cache of them. A table that a root
//! reaches is written by [`MMU_UPDATE`](crate::Call::MMU_UPDATE) only, so that the engine knows what changes.

use crate::{GuestPhys, Status};
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The most roots that a VM can have at once.
pub const ROOTS_MAX: u64 = 65536;

/// The most entries that one `MMU_UPDATE` takes.
pub const MMU_UPDATE_MAX: u64 = 512;

/// Flag of `MMU_UPDATE`: the changes are in force, on all vCPUs, before the call returns.
pub const EAGER: u64 = 1;

/// One change of a page-table entry, 8-byte aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MmuUpdate {
    /// In: the entry, 8-byte aligned.
    pub entry: GuestPhys,
    /// In: its new value, an [`Entry`].
    pub new: u64,
    /// Out: the value that it replaced.
    pub old: u64,
    /// Out: how it ended.
    pub status: Status,
    /// In: zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<MmuUpdate>() == 32 && core::mem::offset_of!(MmuUpdate, status) == 24);

/// A page-table entry. If [`PRESENT`](Entry::PRESENT) is clear, all other bits are the guest's.
#[derive(Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Entry(u64);
const _: () = assert!(size_of::<Entry>() == 8);

bitflags! {
    impl Entry: u64 {
        /// It maps something.
        const PRESENT = 1 << 0;
        /// What it maps may be written.
        const WRITE = 1 << 1;
        /// What it maps is for user mode.
        const USER = 1 << 2;
        /// It was used; meaningless without the feature `MMU_AD`.
        const ACCESSED = 1 << 5;
        /// It was written through; meaningless without the feature `MMU_AD`.
        const DIRTY = 1 << 6;
        /// At the second-lowest level: a page of 2 MiB.
        const LARGE = 1 << 7;
        /// What it maps is not executed.
        const NO_EXECUTE = 1 << 63;
        const _ = !0;
    }
}

impl Entry {
    /// Bits 12 to 51: where the table or page is.
    pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    /// Bits that must be zero in an entry that is present: 3, 4, 8, 59 to 62.
    pub const MUST_BE_ZERO: u64 = 0x7800_0000_0000_0118;

    /// Bits that are the guest's own: 9 to 11, 52 to 58.
    pub const GUEST_S: u64 = 0x07f0_0000_0000_0e00;

    /// An entry for a table or page at `phys`.
    pub const fn new(phys: GuestPhys, flags: Self) -> Self {
        Self(phys.0 & Self::ADDRESS | flags.bits())
    }

    /// Where the table or page is.
    pub const fn phys(self) -> GuestPhys {
        GuestPhys(self.0 & Self::ADDRESS)
    }
}

impl core::fmt::Debug for Entry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

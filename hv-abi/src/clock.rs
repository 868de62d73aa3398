//! The clock page: time without a hypercall.
//!
//! The page is read-only in every address space of the VM. Time is read under a sequence counter, from the
//! processor's time-stamp counter:
//!
//! ```text
//! repeat
//!     s   = sequence                       (acquire; odd: try again)
//!     now = ns_base + ((rdtsc - tsc_base) * scale >> 32)
//! until sequence == s
//! ```
//!
//! The clock is monotonic, starts at 0 when the VM is first started, and stands still while the VM is saved.

use core::sync::atomic::{AtomicU32, AtomicU64};
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

/// What the clock page begins with. The host writes it, the guest reads it.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ClockPage {
    /// Odd while the host is changing the fields below.
    pub sequence: AtomicU32,
    /// Zero.
    pub reserved: u32,
    /// Value of the time-stamp counter at which the clock showed `ns_base`.
    pub tsc_base: AtomicU64,
    /// Nanoseconds since the VM was started, at `tsc_base`.
    pub ns_base: AtomicU64,
    /// Nanoseconds per tick of the time-stamp counter, times 2^32.
    pub scale: AtomicU64,
    /// Nanoseconds since 1970-01-01 00:00:00 UTC at which the clock showed 0.
    pub wall_base: AtomicU64,
    /// Changes whenever the VM was restored or cloned; whoever keeps random state re-seeds then.
    pub generation: AtomicU64,
}
const _: () = assert!(size_of::<ClockPage>() == 48 && core::mem::offset_of!(ClockPage, scale) == 24);

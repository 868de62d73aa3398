//! What of the guest's memory the host may look at: what the guest has handed over since the last call.

use super::state::{misuse, vm};
use hv_abi::GuestPhys;
use std::vec::Vec;

#[derive(Debug)]
struct Range {
    start: u64,
    length: u64,
    writable: bool,
}

/// Memory that is lent for the next call.
#[derive(Debug, Default)]
pub(super) struct Lent(Vec<Range>);

/// Lends the host `length` bytes from `start` for the next call; to be written, too, if `writable`. The provenance of
/// the memory must have been exposed.
pub(crate) fn lend(start: u64, length: u64, writable: bool) -> GuestPhys {
    vm().host.borrow_mut().lent.0.push(Range { start, length, writable });
    GuestPhys(start)
}

impl Lent {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Where a table of `count` values is, all lent in one piece, aligned, and writable if it has to be. Panics
    /// otherwise. Says nothing about whether the memory is still there.
    pub(super) fn check_table<T>(&self, what: &str, start: GuestPhys, count: u64, writable: bool) -> *mut T {
        let length = count * size_of::<T>() as u64;
        if !start.0.is_multiple_of(align_of::<T>() as u64) {
            misuse!("{what} at {start:?} is not aligned to {} bytes", align_of::<T>());
        }
        let inside = |r: &&Range| r.start <= start.0 && start.0 - r.start <= r.length;
        let holds = |r: &&Range| inside(r) && length <= r.length - (start.0 - r.start);
        if !self.0.iter().any(|r| holds(&r) && (r.writable || !writable)) {
            let how = match (self.0.iter().find(holds), self.0.iter().find(inside)) {
                (Some(_), _) => "was lent for reading only: get its address by memory::phys_of_mut",
                (None, Some(_)) => "is longer than what was lent there",
                (None, None) => {
                    "was not lent for this call: get its address by memory::phys_of, for each call anew"
                }
            };
            misuse!("{what}, {length} bytes at {start:?}, {how}");
        }
        core::ptr::with_exposed_provenance_mut(start.0 as usize)
    }
}

//! Pages that the guest has reported as free.

use super::lent::Lent;
use super::state::misuse;
use hv_abi::boot::region;
use hv_abi::pages::{PAGE_RUNS_MAX, PageRun};
use hv_abi::{GuestPhys, PAGE_SIZE, Status};
use std::collections::BTreeSet;
use std::vec::Vec;

/// What the host knows of them.
#[derive(Debug, Default)]
pub(super) struct Pages {
    /// The address of each.
    pub reported: BTreeSet<u64>,
    /// How many of them the balloon holds.
    pub held: u64,
    /// How many it should.
    pub target: u64,
}

impl Pages {
    /// # Safety
    ///
    /// The runs are initialised and still there, and the pages nobody's.
    pub(super) unsafe fn report(&mut self, lent: &Lent, runs: GuestPhys, count: u64) -> Result<u64, Status> {
        // SAFETY: as this function's caller says.
        for page in unsafe { pages(lent, "PAGES_REPORT's runs", runs, count) } {
            // SAFETY: a page of the usable memory that `boot` has made, which is as long as the thread's VM; nobody's, as
            // the caller says.
            unsafe { at(page).write_bytes(0, 1) };
            self.reported.insert(page);
        }
        Ok(count)
    }

    /// # Safety
    ///
    /// The runs are initialised and still there.
    pub(super) unsafe fn claim(&mut self, lent: &Lent, runs: GuestPhys, count: u64) -> Result<u64, Status> {
        // SAFETY: as this function's caller says.
        let mut pages = unsafe { pages(lent, "PAGES_CLAIM's runs", runs, count) };
        pages.retain(|page| self.reported.contains(page));
        if (self.reported.len() - pages.len()) < self.held as usize {
            return Err(Status::BUSY);
        }
        for page in pages {
            // SAFETY: as in `report`; the page is the host's at the moment.
            if unsafe { at(page).read() } != [0; PAGE_SIZE as usize] {
                misuse!("the page at {page:#x} was written between PAGES_REPORT and PAGES_CLAIM");
            }
            self.reported.remove(&page);
        }
        Ok(count)
    }

    pub(super) fn hold(&mut self, pages: u64) -> u64 {
        if pages > self.reported.len() as u64 {
            misuse!("BALLOON of {pages} pages: {} are reported", self.reported.len());
        }
        self.held = pages;
        self.target
    }
}

fn at(page: u64) -> *mut [u8; PAGE_SIZE as usize] {
    core::ptr::with_exposed_provenance_mut(page as usize)
}

/// The pages of some runs, each once, all of which must be usable memory.
///
/// # Safety
///
/// The runs are initialised and still there.
unsafe fn pages(lent: &Lent, what: &str, runs: GuestPhys, count: u64) -> Vec<u64> {
    if count > PAGE_RUNS_MAX {
        misuse!("{what} are {count}: at most {PAGE_RUNS_MAX}");
    }
    if count == 0 {
        return Vec::new();
    }
    let table = lent.check_table::<PageRun>(what, runs, count, false);
    // SAFETY: readable and aligned, as `check_table` found; initialised and still there, as the caller says; the guest waits.
    let runs = unsafe { core::slice::from_raw_parts(table, count as usize) };
    let usable = || crate::memory::map().iter().filter(|run| run.kind == region::USABLE);
    let mut all = BTreeSet::new();
    for PageRun { start: GuestPhys(start), count } in runs {
        let end =
            count.checked_mul(PAGE_SIZE).and_then(|length| start.checked_add(length)).unwrap_or(u64::MAX);
        let inside = |region: &hv_abi::boot::MemoryRegion| {
            region.start.0 <= *start && end <= region.start.0 + region.length
        };
        if !start.is_multiple_of(PAGE_SIZE) || !usable().any(inside) {
            misuse!("{what} have {count} pages at {start:#x}, which are not pages of usable memory");
        }
        all.extend((*start..end).step_by(PAGE_SIZE as usize));
    }
    all.into_iter().collect()
}

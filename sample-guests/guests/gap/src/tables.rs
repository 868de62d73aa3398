//! Changes of page tables.
//!
//! A host that traps stores to page tables gets one trap for each entry. A kernel that makes a call for each entry has as many
//! crossings; but it knows that it is about to change five hundred, and can say so in one call.

#![expect(unsafe_code, reason = "page tables")]

use alloc::vec::Vec;
use guest_sdk::frames::{self, Frame};
use guest_sdk::hv_abi::mmu::{Entry, MMU_UPDATE_MAX, MmuUpdate};
use guest_sdk::hv_abi::{GuestPhys, PAGE_SIZE};
use guest_sdk::time::Instant;
use guest_sdk::{hypercall, println};

/// Entries of a table.
const ENTRIES: u64 = 512;

/// One call for each entry.
pub fn single(passes: u64) {
    measure(passes, 1);
}

/// One call for the whole table.
pub fn batch(passes: u64) {
    measure(passes, MMU_UPDATE_MAX as usize);
}

/// Changes all entries of a live table, so often; prints nanoseconds for all changes, and how many there were.
fn measure(passes: u64, batch: usize) {
    let pages = frames::allocate(ENTRIES.ilog2()).expect("there is memory");
    let tables: [Frame; 4] = [(); 4].map(|()| frames::allocate_zeroed(0).expect("there is memory"));
    // Linked by plain stores: until there is a root, they are memory like any other.
    for [upper, lower] in tables.array_windows() {
        let entry = Entry::new(lower.phys(), Entry::PRESENT | Entry::WRITE | Entry::USER);
        upper.write_at(8, &entry.bits().to_le_bytes());
    }
    hypercall::root_create(tables[0].phys()).expect("the host has user mode");

    let mut passed = 0;
    for pass in 0..passes {
        let rights = if pass % 2 == 0 { Entry::WRITE } else { Entry::empty() };
        let mut updates = updates(tables[3].phys(), pages.phys(), rights);
        let start = Instant::now();
        for batch in updates.chunks_mut(batch) {
            // SAFETY: the entries are in a page that is a page table and nothing else, under a root of this function's own,
            // which keeps table and pages for good.
            unsafe { hypercall::mmu_update(batch, 0) }.expect("a good batch");
        }
        passed += start.elapsed().as_nanos();
        assert!(updates.iter().all(|update| update.status.is_success()), "the host refuses an entry");
    }
    println!("{passed} {}", passes * ENTRIES);
    crate::rest(); // with the tables, which are live
}

/// Changes of all entries of `table`, which maps consecutive pages from `start` on.
fn updates(table: GuestPhys, start: GuestPhys, rights: Entry) -> Vec<MmuUpdate> {
    let flags = Entry::PRESENT | Entry::USER | Entry::NO_EXECUTE | rights;
    let update = |i| MmuUpdate {
        entry: GuestPhys(table.0 + i * 8),
        new: Entry::new(GuestPhys(start.0 + i * PAGE_SIZE), flags).bits(),
        ..MmuUpdate::default()
    };
    (0..ENTRIES).map(update).collect()
}

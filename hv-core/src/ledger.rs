//! A debugging aid: what live page tables should hold, to find stores to them that bypassed `MMU_UPDATE`.
//!
//! A guest that forgets a call works until something else makes the engine look at the table, and then fails far from the
//! mistake. So a copy of each live table is kept, changed by `MMU_UPDATE` alone, and compared with guest memory at each call
//! that has to do with its root, and at each entry of a program that goes by the monitor.
//!
//! What is copied is what was seen under a root. A table that an update unlinks is forgotten, with all below it, and seen
//! again if another table still leads to it: then what was stored meanwhile is not noticed.
//!
//! Start at [`Ledger::check`].

use crate::memory::GuestMemory;
use crate::mmu::{ENTRIES, Leaf, leaf, span};
use core::fmt;
use hv_abi::mmu::Entry;
use hv_abi::{GuestPhys, PAGE_SIZE};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use zerocopy::IntoBytes;

/// An entry of a live page table that is not what `MMU_UPDATE` made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bypass {
    /// P of the root under which it was seen.
    pub root: u64,
    /// P of the entry.
    pub entry: u64,
    /// 4 in a root, 1 in a table of pages.
    pub level: u32,
    /// First V that it translates there.
    pub virt: u64,
    /// What it should hold.
    pub expected: u64,
    /// What it holds.
    pub found: u64,
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { root, entry, level, virt, expected, found } = self;
        write!(
            f,
            "the page-table entry at P {entry:#x} (level {level}, for V {virt:#x} under the root at P {root:#x}) is \
             {found:#x}, where the last MMU_UPDATE left {expected:#x}: a live table is changed by MMU_UPDATE only, by \
             guest_sdk's AddressSpace and Area, and is not reported as free"
        )
    }
}

/// A table as it should be, and where it was seen first.
struct Table {
    entries: [u64; ENTRIES as usize],
    root: u64,
    base: u64,
}

/// Where a table is seen.
#[derive(Clone, Copy)]
struct Place {
    root: u64,
    table: u64,
    level: u32,
    base: u64,
}

/// All live tables that were seen, by their P and level.
#[derive(Default)]
pub(crate) struct Ledger {
    tables: Mutex<BTreeMap<(u64, u32), Table>>,
    alone: Mutex<()>,
}

impl Ledger {
    /// Keeps other vCPUs from changing tables: held from before an entry is exchanged until the ledger knows, and over each
    /// comparison.
    pub(crate) fn alone(&self) -> MutexGuard<'_, ()> {
        self.alone.lock().expect("no thread panics with the lock held")
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(u64, u32), Table>> {
        self.tables.lock().expect("no thread panics with the lock held")
    }

    /// One that has seen the guest kernel's own root, if it has one.
    pub(crate) fn new(memory: &GuestMemory, kernel: Option<u64>) -> Self {
        let ledger = Self::default();
        if let Some(root) = kernel {
            ledger.check(memory, root).expect("what is seen first is as it should be");
        }
        ledger
    }

    /// Compares all tables under a root, and notes those that were not seen before.
    pub(crate) fn check(&self, memory: &GuestMemory, root: u64) -> Result<(), Bypass> {
        let place = Place { root, table: root, level: 4, base: 0 };
        visit(&mut self.lock(), memory, place, &mut BTreeSet::new())
    }

    /// As [`check`](Self::check), for all roots that were seen.
    pub(crate) fn check_all(&self, memory: &GuestMemory) -> Result<(), Bypass> {
        let roots: Vec<u64> =
            self.lock().keys().filter(|(_, level)| *level == 4).map(|(root, _)| *root).collect();
        roots.into_iter().try_for_each(|root| self.check(memory, root))
    }

    /// `MMU_UPDATE` has found `old` in an entry, and left `new`.
    pub(crate) fn exchanged(
        &self,
        memory: &GuestMemory,
        at: GuestPhys,
        old: u64,
        new: u64,
    ) -> Result<(), Bypass> {
        let mut tables = self.lock();
        let (page, index) = (at.0 - at.0 % PAGE_SIZE, at.0 % PAGE_SIZE / 8);
        for level in 1..=4 {
            let Some(table) = tables.get_mut(&(page, level)) else { continue };
            let expected = std::mem::replace(&mut table.entries[index as usize], new);
            let (root, base) = (table.root, table.base + index * span(level));
            if !alike(expected, old) {
                return Err(Bypass { root, entry: at.0, level, virt: base, expected, found: old });
            }
            if let Leaf::Table { table } = leaf(memory, Entry::from_bits_retain(old), level) {
                forget(&mut tables, memory, table, level - 1);
            }
            if let Leaf::Table { table } = leaf(memory, Entry::from_bits_retain(new), level) {
                let below = Place { root, table, level: level - 1, base };
                visit(&mut tables, memory, below, &mut BTreeSet::new())?;
            }
        }
        Ok(())
    }

    /// A root is one no more.
    pub(crate) fn forget(&self, memory: &GuestMemory, root: u64) {
        forget(&mut self.lock(), memory, root, 4);
    }
}

/// Whether two values of an entry differ by no more than what a processor that walks the table sets.
fn alike(expected: u64, found: u64) -> bool {
    let set_by_the_processor = Entry::ACCESSED | Entry::DIRTY;
    (expected ^ found) & !set_by_the_processor.bits() == 0
}

/// Compares or notes a table and what it leads to; `seen` keeps it from going round.
fn visit(
    tables: &mut BTreeMap<(u64, u32), Table>,
    memory: &GuestMemory,
    place: Place,
    seen: &mut BTreeSet<(u64, u32)>,
) -> Result<(), Bypass> {
    let Place { root, table, level, base } = place;
    let mut entries = [0; ENTRIES as usize];
    if !seen.insert((table, level)) || memory.read_bytes(GuestPhys(table), entries.as_mut_bytes()).is_err() {
        return Ok(());
    }
    let known = tables.entry((table, level)).or_insert(Table { entries, root, base });
    let pairs = (0..).zip(known.entries.iter().zip(&entries));
    if let Some((index, (expected, found))) =
        pairs.into_iter().find(|(_, (expected, found))| !alike(**expected, **found))
    {
        let (entry, virt) = (table + index * 8, base + index * span(level));
        return Err(Bypass { root, entry, level, virt, expected: *expected, found: *found });
    }
    for (index, entry) in (0..).zip(entries) {
        if let Leaf::Table { table } = leaf(memory, Entry::from_bits_retain(entry), level) {
            visit(
                tables,
                memory,
                Place { root, table, level: level - 1, base: base + index * span(level) },
                seen,
            )?;
        }
    }
    Ok(())
}

/// Forgets a table and what it led to.
fn forget(tables: &mut BTreeMap<(u64, u32), Table>, memory: &GuestMemory, table: u64, level: u32) {
    let Some(known) = tables.remove(&(table, level)) else { return };
    for entry in known.entries {
        if let Leaf::Table { table } = leaf(memory, Entry::from_bits_retain(entry), level) {
            forget(tables, memory, table, level - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USABLE: u64 = 7;

    /// A root at 0x1000 whose tables at 0x2000, 0x3000 and 0x4000 lead to a page; the root leads to itself, too.
    fn memory() -> GuestMemory {
        let memory = GuestMemory::new(64 << 12).unwrap();
        for (at, to) in
            [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000), (0x4010, 0x9000), (0x1008, 0x1000)]
        {
            memory.write(GuestPhys(at), &(to | USABLE)).unwrap();
        }
        memory
    }

    fn update(ledger: &Ledger, memory: &GuestMemory, at: u64, new: u64) -> Result<(), Bypass> {
        let old = memory.exchange(GuestPhys(at), new).unwrap();
        ledger.exchanged(memory, GuestPhys(at), old, new)
    }

    #[test]
    fn a_store_to_a_live_table_is_told_with_place_and_values() {
        let (memory, ledger) = (memory(), Ledger::default());
        assert_eq!(ledger.check(&memory, 0x1000), Ok(()));
        memory.write(GuestPhys(0x4010), &(0xa000 | USABLE)).unwrap();
        let bypass = Bypass {
            root: 0x1000,
            entry: 0x4010,
            level: 1,
            virt: 0x2000,
            expected: 0x9000 | USABLE,
            found: 0xa000 | USABLE,
        };
        assert_eq!(ledger.check(&memory, 0x1000), Err(bypass));
        assert_eq!(ledger.check_all(&memory), Err(bypass));
        assert_eq!(update(&ledger, &memory, 0x4010, 0), Err(bypass), "the update finds it, too");
    }

    #[test]
    fn updates_and_stores_to_tables_that_are_not_live_are_right() {
        let (memory, ledger) = (memory(), Ledger::default());
        assert_eq!(ledger.check(&memory, 0x1000), Ok(()));
        // Changed; unlinked, changed by a store, linked again, and changed by an update.
        assert_eq!(update(&ledger, &memory, 0x4010, 0xa000 | USABLE), Ok(()));
        assert_eq!(update(&ledger, &memory, 0x2000, 0), Ok(()));
        memory.write(GuestPhys(0x4020), &(0xb000 | USABLE)).unwrap();
        assert_eq!(update(&ledger, &memory, 0x2000, 0x3000 | USABLE), Ok(()));
        assert_eq!(update(&ledger, &memory, 0x4020, 0), Ok(()));
        assert_eq!(ledger.check(&memory, 0x1000), Ok(()));
        // From the moment that it was linked, it is live.
        memory.write(GuestPhys(0x4020), &1_u64).unwrap();
        assert!(ledger.check(&memory, 0x1000).is_err());
        // No root, no live table.
        ledger.forget(&memory, 0x1000);
        assert!(ledger.lock().is_empty());
        assert_eq!(ledger.check_all(&memory), Ok(()));
    }
}

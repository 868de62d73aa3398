//! Page tables: x86-64 four-level tables in frames, and the changes of them that the host is still to be told.
//!
//! A table that the root does not reach yet is written by plain stores; linking it is one change. From then on the host is
//! told of every change, by `MMU_UPDATE`. So what is mapped into new tables costs no call of its own.
//!
//! Tables are never unlinked: they go with the address space. That keeps the rule simple by which an entry of level 2 is a
//! large page: it is one if something is mapped there and there is no table.

#![expect(unsafe_code, reason = "entries of page tables by address")]

use super::LARGE_PAGE;
use crate::frames::{self, Frame, OutOfMemory};
use crate::hypercall;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use hv_abi::mmu::{Entry, MMU_UPDATE_MAX, MmuUpdate};
use hv_abi::{GuestPhys, PAGE_SIZE, Status};

/// What an entry for a table allows: all, so that the page's entry decides.
const TABLE: Entry = Entry::PRESENT.union(Entry::WRITE).union(Entry::USER);

const ROOT_LEVEL: u32 = 4;

/// Bytes of V that one entry of a table covers. Level 1 is the lowest.
const fn span(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

/// A table's level, and the first V that it translates.
type Place = (u32, u64);

/// Where the table of a level is that translates `virt`.
const fn place(level: u32, virt: u64) -> Place {
    (level, virt - virt % span(level + 1))
}

struct Table {
    frame: Frame,
    /// Whether the host may look at it, so that it has to be told of changes.
    live: bool,
}

/// The tables of an address space.
pub(super) struct Tables {
    tables: BTreeMap<Place, Table>,
    /// Tables that become live with the changes in `queue`.
    fresh: Vec<Place>,
    queue: Vec<MmuUpdate>,
}

impl Tables {
    /// A root, and nothing below it.
    pub(super) fn new() -> Result<Self, Status> {
        let frame = frames::allocate_zeroed(0).map_err(|OutOfMemory| Status::NO_SPACE)?;
        hypercall::root_create(frame.phys())?;
        let root = Table { frame, live: true };
        Ok(Self { tables: [((ROOT_LEVEL, 0), root)].into(), fresh: Vec::new(), queue: Vec::new() })
    }

    /// Where the root is.
    pub(super) fn root(&self) -> GuestPhys {
        self.tables[&(ROOT_LEVEL, 0)].frame.phys()
    }

    /// Whether pages around `virt` are mapped one by one, if at all.
    pub(super) fn has_lowest(&self, virt: u64) -> bool {
        self.tables.contains_key(&place(1, virt))
    }

    /// Makes the tables above a large page at `virt`.
    pub(super) fn make_for_large(&mut self, virt: u64) -> Result<(), OutOfMemory> {
        self.make(place(2, virt), None)
    }

    /// Makes the tables for a page at `virt`. If the lowest one is new and takes the place of a large page, `before` is what
    /// its first entry has to be, for the same to be mapped as before.
    pub(super) fn make_for_small(&mut self, virt: u64, before: Option<Entry>) -> Result<(), OutOfMemory> {
        self.make(place(1, virt), before)
    }

    fn make(&mut self, at: Place, before: Option<Entry>) -> Result<(), OutOfMemory> {
        if self.tables.contains_key(&at) {
            return Ok(());
        }
        let (level, base) = at;
        self.make(place(level + 1, base), None)?;
        let frame = frames::allocate_zeroed(0)?;
        if let Some(first) = before {
            for i in 0..512 {
                let entry = first.bits() + i * PAGE_SIZE;
                frame.write_at(i as usize * 8, &entry.to_le_bytes());
            }
        }
        let entry = Entry::new(frame.phys(), TABLE);
        self.tables.insert(at, Table { frame, live: false });
        self.fresh.push(at);
        self.set(level + 1, base, entry);
        Ok(())
    }

    /// Changes the entry for the page at `virt`, whose tables are there.
    pub(super) fn set_small(&mut self, virt: u64, entry: Entry) {
        self.set(1, virt, entry);
    }

    /// Changes the entry for the large page at `virt`, whose tables are there.
    pub(super) fn set_large(&mut self, virt: u64, entry: Entry) {
        debug_assert!(virt.is_multiple_of(LARGE_PAGE) && !self.has_lowest(virt));
        self.set(2, virt, entry);
    }

    fn set(&mut self, level: u32, virt: u64, entry: Entry) {
        let table = &self.tables[&place(level, virt)];
        let offset = virt / span(level) % 512 * 8;
        if !table.live {
            return table.frame.write_at(offset as usize, &entry.bits().to_le_bytes());
        }
        let at = GuestPhys(table.frame.phys().0 + offset);
        self.queue.push(MmuUpdate { entry: at, new: entry.bits(), ..MmuUpdate::default() });
        if self.queue.len() as u64 == MMU_UPDATE_MAX {
            self.send();
        }
    }

    /// Tells the host of all changes. They are in force when the root is next entered, or flushed.
    ///
    /// # Panics
    ///
    /// Panics if the host refuses one, which it has no reason to.
    pub(super) fn send(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        // SAFETY: entries are put in the queue for tables of this space only, whose frames it owns; its root is a program's.
        unsafe { hypercall::mmu_update(&mut self.queue, 0) }.expect("a batch of page-table entries");
        let refused = self.queue.iter().find(|update| !update.status.is_success());
        assert!(refused.is_none(), "the host refuses a page-table entry: {refused:?}");
        self.queue.clear();
        for at in self.fresh.drain(..) {
            self.tables.get_mut(&at).expect("tables stay").live = true;
        }
    }

    /// Tells the host of all changes and brings them into force.
    pub(super) fn flush(&mut self) {
        self.send();
        hypercall::mmu_flush(self.root(), 0, 0).expect("the root is one");
    }

    /// Ends the use of the root. If the host refuses, it may look at the tables yet, so they are never freed.
    pub(super) fn destroy(&mut self) -> Result<(), Status> {
        let result = hypercall::root_destroy(self.root());
        if result.is_err() {
            core::mem::forget(core::mem::take(&mut self.tables));
        }
        result
    }

    /// The entry that translates `virt` in the tables as they are in memory, and its level. For tests.
    #[cfg(test)]
    pub(super) fn walk(&self, virt: u64) -> Option<(Entry, u32)> {
        let mut table = self.root();
        for level in [4, 3, 2, 1] {
            let frame = &self.tables.values().find(|t| t.frame.phys() == table)?.frame;
            let mut word = [0; 8];
            frame.read_at((virt / span(level) % 512 * 8) as usize, &mut word);
            let entry = Entry::from_bits_retain(u64::from_le_bytes(word));
            if !entry.contains(Entry::PRESENT) {
                return None;
            }
            if level == 1 || entry.contains(Entry::LARGE) {
                return Some((entry, level));
            }
            table = entry.phys();
        }
        None
    }
}

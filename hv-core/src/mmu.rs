//! Page tables: the ABI's rules for entries and roots, and what the guest's tables say at the moment.
//!
//! The tables are in guest memory, and hostile: a walk reads each entry once and trusts none. What an engine keeps
//! beside them is its own affair; it hears of every change through [`Control`](crate::engine::Control).
//!
//! Start at [`walk`], and [`Roots`].

use crate::memory::GuestMemory;
use hv_abi::address::{KERNEL_SPACE, SLOT_255};
use hv_abi::mmu::{Entry, ROOTS_MAX};
use hv_abi::{GuestPhys, PAGE_SIZE, Status};
use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::sync::{Mutex, MutexGuard};

/// Bytes of a large page.
pub(crate) const LARGE_PAGE: u64 = 2 << 20;

/// Entries in a table.
pub(crate) const ENTRIES: u64 = 512;

/// What the guest kernel's own root translates; a V elsewhere reads as absent there.
pub(crate) const KERNEL: Range<u64> = KERNEL_SPACE..SLOT_255;

/// The entries of a user root that are the guest's.
const USER_SLOTS: Range<u64> = 0..SLOT_255 / span(4);
/// The entries of the guest kernel's root that are.
const KERNEL_SLOTS: Range<u64> = KERNEL.start / span(4)..KERNEL.end / span(4);

/// Bytes of V that one entry of a table covers. Level 1 is the lowest.
pub(crate) const fn span(level: u32) -> u64 {
    PAGE_SIZE << (9 * (level - 1))
}

/// Where a V ends up, and what may be done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    /// First byte of the page, and its size.
    pub phys: u64,
    pub size: u64,
    pub rights: Rights,
}

/// What a translation allows; reading always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    pub write: bool,
    pub execute: bool,
    pub user: bool,
}

impl Rights {
    const ALL: Self = Self { write: true, execute: true, user: true };

    /// These, as far as `entry` allows, too.
    pub(crate) fn and(self, entry: Entry) -> Self {
        Self {
            write: self.write && entry.contains(Entry::WRITE),
            execute: self.execute && !entry.contains(Entry::NO_EXECUTE),
            user: self.user && entry.contains(Entry::USER),
        }
    }
}

/// One table that a walk came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The table's page.
    pub table: u64,
    /// 4 for a root, 1 for a table of pages.
    pub level: u32,
    /// First V that it translates.
    pub base: u64,
    /// Rights above it.
    pub rights: Rights,
}

/// Translates a V by the tables under `root`, and tells `seen` of each table on the way, also if it leads nowhere.
pub(crate) fn walk(
    memory: &GuestMemory,
    root: u64,
    virt: u64,
    mut seen: impl FnMut(Step),
) -> Option<Translation> {
    let mut step = Step { table: root, level: 4, base: 0, rights: Rights::ALL };
    loop {
        seen(step);
        let index = (virt / span(step.level)) % ENTRIES;
        let entry = entry(memory, step.table, index)?;
        let rights = step.rights.and(entry);
        let base = step.base + index * span(step.level);
        match leaf(memory, entry, step.level) {
            Leaf::Page { phys, size } => return Some(Translation { phys, size, rights }),
            Leaf::Table { table } => step = Step { table, level: step.level - 1, base, rights },
            Leaf::Absent => return None,
        }
    }
}

/// Tells `seen` of each page that the tables under `root` translate in `range`, with its V, in the order of V. Ends when so many
/// tables were read, for tables can be linked in circles, or when `seen` has had enough.
pub(crate) fn each_page(
    memory: &GuestMemory,
    root: u64,
    range: &Range<u64>,
    tables: usize,
    seen: &mut dyn FnMut(u64, Translation) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let first = Step { table: root, level: 4, base: 0, rights: Rights::ALL };
    Pages { memory, range, tables, seen }.beneath(first)
}

/// A walk through all tables; four deep.
struct Pages<'a> {
    memory: &'a GuestMemory,
    range: &'a Range<u64>,
    /// How many more may be read.
    tables: usize,
    seen: &'a mut dyn FnMut(u64, Translation) -> ControlFlow<()>,
}

impl Pages<'_> {
    fn beneath(&mut self, step: Step) -> ControlFlow<()> {
        let Some(left) = self.tables.checked_sub(1) else { return ControlFlow::Break(()) };
        self.tables = left;
        for index in 0..ENTRIES {
            let base = step.base + index * span(step.level);
            if base + span(step.level) <= self.range.start || base >= self.range.end {
                continue;
            }
            let Some(entry) = entry(self.memory, step.table, index) else { break };
            let rights = step.rights.and(entry);
            match leaf(self.memory, entry, step.level) {
                Leaf::Page { phys, size } => (self.seen)(base, Translation { phys, size, rights })?,
                Leaf::Table { table } => {
                    self.beneath(Step { table, level: step.level - 1, base, rights })?;
                }
                Leaf::Absent => {}
            }
        }
        ControlFlow::Continue(())
    }
}

/// Reads one entry of a table. `None` if the table is not in guest memory.
fn entry(memory: &GuestMemory, table: u64, index: u64) -> Option<Entry> {
    memory.read(GuestPhys(table + index * 8)).ok()
}

/// What an entry of a table at some level leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    Page { phys: u64, size: u64 },
    Table { table: u64 },
    Absent,
}

/// An entry that breaks a rule reads as absent, as does a page that is not wholly in guest memory.
pub(crate) fn leaf(memory: &GuestMemory, entry: Entry, level: u32) -> Leaf {
    if !entry.contains(Entry::PRESENT) || check(memory, entry).is_err() {
        return Leaf::Absent;
    }
    let phys = entry.phys().0;
    match (level, entry.contains(Entry::LARGE)) {
        (1, false) => Leaf::Page { phys, size: PAGE_SIZE },
        (2, true) => Leaf::Page { phys, size: LARGE_PAGE },
        (_, false) => Leaf::Table { table: phys },
        (_, true) => Leaf::Absent,
    }
}

/// The rules for a new value that hold whatever table it is in.
fn check(memory: &GuestMemory, entry: Entry) -> Result<(), Status> {
    if !entry.contains(Entry::PRESENT) {
        return Ok(());
    }
    let large = entry.contains(Entry::LARGE);
    let size = if large { LARGE_PAGE } else { PAGE_SIZE };
    if entry.bits() & Entry::MUST_BE_ZERO != 0 || !entry.phys().0.is_multiple_of(size) {
        return Err(Status::BAD_ARGUMENT);
    }
    if !memory.contains(entry.phys(), size) {
        return Err(Status::BAD_ADDRESS);
    }
    Ok(())
}

/// The pages that are roots.
#[derive(Debug, Default)]
pub(crate) struct Roots {
    /// The guest kernel's own, if it has one.
    kernel: Option<u64>,
    /// Those that programs are entered under.
    users: Mutex<BTreeSet<u64>>,
}

impl Roots {
    /// The guest kernel's own root, and no other yet.
    pub(crate) fn new(kernel: Option<u64>) -> Self {
        Self { kernel, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.users.lock().expect("no thread panics with the lock held")
    }

    /// Makes a page a root. P 0 is none, so that 0 can mean none.
    pub(crate) fn create(&self, memory: &GuestMemory, table: u64) -> Result<(), Status> {
        if table == 0 || !table.is_multiple_of(PAGE_SIZE) || !memory.contains(GuestPhys(table), PAGE_SIZE) {
            return Err(Status::BAD_ADDRESS);
        }
        for slot in USER_SLOTS.end..ENTRIES {
            let entry = entry(memory, table, slot).ok_or(Status::BAD_ADDRESS)?;
            if entry.bits() != 0 {
                return Err(Status::BAD_ARGUMENT);
            }
        }
        if self.is_kernel(table) {
            return Err(Status::BUSY);
        }
        let mut roots = self.lock();
        if roots.len() as u64 >= ROOTS_MAX {
            return Err(Status::NO_SPACE);
        }
        if roots.insert(table) { Ok(()) } else { Err(Status::BUSY) }
    }

    /// Ends the use of a root.
    pub(crate) fn destroy(&self, table: u64) -> Result<(), Status> {
        if self.lock().remove(&table) { Ok(()) } else { Err(Status::NOT_FOUND) }
    }

    /// Whether programs can be entered under it.
    pub(crate) fn is_user(&self, table: u64) -> bool {
        self.lock().contains(&table)
    }

    pub(crate) fn is_kernel(&self, table: u64) -> bool {
        self.kernel == Some(table)
    }

    /// The guest kernel's own root.
    pub(crate) fn kernel(&self) -> Option<u64> {
        self.kernel
    }

    /// The entries that are the guest's in a table, if that is a root.
    fn slots(&self, table: u64) -> Range<u64> {
        match table {
            _ if self.is_kernel(table) => KERNEL_SLOTS,
            _ if self.is_user(table) => USER_SLOTS,
            _ => 0..ENTRIES,
        }
    }

    /// Exchanges an entry by the rules; gives the old value.
    pub(crate) fn exchange(&self, memory: &GuestMemory, at: GuestPhys, new: u64) -> Result<u64, Status> {
        if !at.0.is_multiple_of(8) || !memory.contains(at, 8) {
            return Err(Status::BAD_ADDRESS);
        }
        check(memory, Entry::from_bits_retain(new))?;
        let slot = at.0 % PAGE_SIZE / 8;
        if !self.slots(at.0 - at.0 % PAGE_SIZE).contains(&slot) {
            return Err(Status::BAD_ARGUMENT);
        }
        memory.exchange(at, new).map_err(|_| Status::BAD_ADDRESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USABLE: Entry = Entry::PRESENT.union(Entry::WRITE).union(Entry::USER);

    /// A root at 0x1000 with tables at 0x2000, 0x3000, 0x4000 that lead to V 0x40_0000's page.
    fn memory(last: Entry) -> GuestMemory {
        let memory = GuestMemory::new(8 << 20).unwrap();
        let link = |table: u64, index: u64, to: u64| {
            memory.write(GuestPhys(table + index * 8), &Entry::new(GuestPhys(to), USABLE)).unwrap();
        };
        link(0x1000, 0, 0x2000);
        link(0x2000, 0, 0x3000);
        link(0x3000, 2, 0x4000);
        memory.write(GuestPhys(0x4000), &last).unwrap();
        memory
    }

    fn translate(last: Entry) -> Option<Translation> {
        walk(&memory(last), 0x1000, 0x40_0123, |_| {})
    }

    #[test]
    fn a_walk_gathers_rights_and_tells_its_tables() {
        let memory = memory(Entry::new(GuestPhys(0x7000), USABLE | Entry::NO_EXECUTE));
        let mut tables = Vec::new();
        let found = walk(&memory, 0x1000, 0x40_0123, |step| tables.push((step.table, step.level, step.base)));
        let rights = Rights { write: true, execute: false, user: true };
        assert_eq!(found, Some(Translation { phys: 0x7000, size: PAGE_SIZE, rights }));
        assert_eq!(tables, [(0x1000, 4, 0), (0x2000, 3, 0), (0x3000, 2, 0), (0x4000, 1, 0x40_0000)]);
        let mut tables = 0;
        assert_eq!(walk(&memory, 0x1000, 1 << 40, |_| tables += 1), None);
        assert_eq!(tables, 1, "the root alone");
    }

    #[test]
    fn entries_that_break_a_rule_read_as_absent() {
        assert!(translate(Entry::new(GuestPhys(0x7000), USABLE)).is_some());
        for bit in [3, 4, 8, 59, 60, 61, 62] {
            let entry = Entry::from_bits_retain(1 << bit) | Entry::new(GuestPhys(0x7000), USABLE);
            assert_eq!(translate(entry), None, "bit {bit}");
        }
        assert_eq!(translate(Entry::new(GuestPhys(8 << 20), USABLE)), None, "behind the end of memory");
        assert_eq!(
            translate(Entry::new(GuestPhys(0x20_0000), USABLE | Entry::LARGE)),
            None,
            "large, at level 1"
        );
        assert_eq!(translate(Entry::new(GuestPhys(0x7000), USABLE - Entry::PRESENT)), None);
    }

    #[test]
    fn large_pages_are_aligned_and_wholly_in_memory() {
        let memory = memory(Entry::empty());
        let set = |entry: Entry| memory.write(GuestPhys(0x3000 + 16), &entry).unwrap();
        let found = || walk(&memory, 0x1000, 0x40_0123, |_| {});
        set(Entry::new(GuestPhys(6 << 20), USABLE | Entry::LARGE));
        assert_eq!(found().map(|t| (t.phys, t.size)), Some((6 << 20, LARGE_PAGE)));
        set(Entry::new(GuestPhys(0x7000), USABLE | Entry::LARGE));
        assert_eq!(found(), None);
        set(Entry::new(GuestPhys(8 << 20), USABLE | Entry::LARGE));
        assert_eq!(found(), None);
    }

    #[test]
    fn roots_are_pages_with_an_empty_upper_half() {
        let memory = memory(Entry::empty());
        let roots = Roots::default();
        assert_eq!(roots.create(&memory, 0x1000), Ok(()));
        assert_eq!(roots.create(&memory, 0x1000), Err(Status::BUSY));
        for table in [0, 0x1008, u64::MAX - 4095] {
            assert_eq!(roots.create(&memory, table), Err(Status::BAD_ADDRESS), "{table:#x}");
        }
        assert_eq!(roots.create(&memory, 8 << 20), Err(Status::BAD_ADDRESS));
        memory.write(GuestPhys(0x5000 + 255 * 8), &1_u64).unwrap();
        assert_eq!(roots.create(&memory, 0x5000), Err(Status::BAD_ARGUMENT));
        assert_eq!(roots.destroy(0x1000), Ok(()));
        assert_eq!(roots.destroy(0x1000), Err(Status::NOT_FOUND));
    }

    #[test]
    fn an_exchange_is_checked_and_gives_the_old_value() {
        let memory = memory(Entry::empty());
        let roots = Roots::default();
        roots.create(&memory, 0x1000).unwrap();
        let set = |at, new| roots.exchange(&memory, GuestPhys(at), new);
        assert_eq!(set(0x4000, 0x7007), Ok(0));
        assert_eq!(set(0x4000, 0xfff0), Ok(0x7007), "not present: the guest's own");
        assert_eq!(set(0x4004, 0x7007), Err(Status::BAD_ADDRESS));
        assert_eq!(set(8 << 20, 0x7007), Err(Status::BAD_ADDRESS));
        assert_eq!(set(0x4000, 0x7007 | 1 << 8), Err(Status::BAD_ARGUMENT));
        assert_eq!(set(0x4000, (8 << 20) | 7), Err(Status::BAD_ADDRESS));
        assert_eq!(set(0x1000 + 255 * 8, 0x7007), Err(Status::BAD_ARGUMENT));
        assert_eq!(set(0x2000 + 255 * 8, 0x7007), Ok(0));
    }
}

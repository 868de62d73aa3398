//! Shadow mappings of one guest address space: which parts of its sandbox mirror which entries of its page tables.
//!
//! It is a cache, like a TLB. A fault or a new entry adds to it, a changed entry takes away, and when it holds too much
//! (`users` sees to that) it is emptied: the host's mappings and page tables for a guest stay bounded. Changes are gathered
//! and made in the sandbox, in one batch, before the program next runs.

use super::layout::{Command, descriptor};
use super::mapper;
use crate::mmu::{Rights, Translation, span};
use hv_abi::PAGE_SIZE;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Host mappings that a sandbox may have, at the most; far below `vm.max_map_count`.
const MOST_RUNS: usize = 16 << 10;
/// Bytes that the host spends on a mapping, about, in its kernel and in the monitor.
const RUN_COST: usize = 256;
/// Bytes of a host page table.
const TABLE_COST: usize = 4096;

/// One host mapping: consecutive pages with the same rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    length: u64,
    phys: u64,
    protection: i32,
}

impl Run {
    fn is_writable(self) -> bool {
        self.protection & libc::PROT_WRITE != 0
    }
}

/// A change that the sandbox has yet to make.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Unmap(Range<u64>),
    Map(u64, Run),
    /// Maps a page of [`descriptor::REWRITTEN`], at this offset, over what is there.
    Overlay(u64, u64),
}

/// The shadow of one address space.
#[derive(Debug)]
pub(super) struct Shadow {
    /// The V that page tables translate here; the rest of the sandbox is not touched.
    range: Range<u64>,
    runs: BTreeMap<u64, Run>,
    /// The host's page tables, by level and index, for what is mapped, or was since it was last emptied.
    tables: BTreeSet<(u32, u64)>,
    /// Pages that are mapped to a copy of what they mirror, by V: its offset in [`descriptor::REWRITTEN`].
    overlays: BTreeMap<u64, u64>,
    /// An overlay has gone; see [`is_uncovered`](Self::is_uncovered).
    uncovered: bool,
    changes: Vec<Change>,
}

fn protection(rights: Rights) -> i32 {
    let mut protection = libc::PROT_READ;
    if rights.write {
        protection |= libc::PROT_WRITE;
    }
    if rights.execute {
        protection |= libc::PROT_EXEC;
    }
    protection
}

impl Shadow {
    /// Nothing is mirrored in `range` yet.
    pub(super) fn new(range: Range<u64>) -> Self {
        Self {
            range,
            runs: BTreeMap::new(),
            tables: BTreeSet::new(),
            overlays: BTreeMap::new(),
            uncovered: false,
            changes: Vec::new(),
        }
    }

    /// Bytes that it costs the host, about.
    pub(super) fn cost(&self) -> usize {
        self.tables.len() * TABLE_COST + self.runs.len() * RUN_COST
    }

    /// Whether it has as many mappings as it may.
    pub(super) fn is_full(&self) -> bool {
        self.runs.len() >= MOST_RUNS
    }

    /// The V that page tables translate here.
    pub(super) fn range(&self) -> &Range<u64> {
        &self.range
    }

    /// Where a V is shadowed, and how: P and protection.
    fn get(&self, virt: u64) -> Option<(u64, i32)> {
        let (start, run) = self.runs.range(..=virt).next_back()?;
        (virt - start < run.length).then(|| (run.phys + (virt - start), run.protection))
    }

    /// Whether the page at V is shadowed just so.
    pub(super) fn has(&self, virt: u64, translation: Translation) -> bool {
        let phys = translation.phys + virt % translation.size;
        self.get(virt) == Some((phys, protection(translation.rights)))
    }

    /// Mirrors a page, or a run of them.
    pub(super) fn map(&mut self, virt: u64, length: u64, phys: u64, rights: Rights) {
        debug_assert!(self.range.contains(&virt) && virt + length <= self.range.end);
        let run = Run { length, phys, protection: protection(rights) };
        self.cut(virt..virt + length);
        for level in 2..=4 {
            let indices = virt / span(level)..(virt + length).div_ceil(span(level));
            self.tables.extend(indices.map(|index| (level, index)));
        }
        self.changes.push(Change::Map(virt, run));
        self.insert(virt, run);
    }

    /// Adds a run, to the one before it if it goes on from there.
    fn insert(&mut self, virt: u64, run: Run) {
        if let Some((start, before)) = self.runs.range_mut(..virt).next_back()
            && start + before.length == virt
            && before.phys + before.length == run.phys
            && before.protection == run.protection
        {
            before.length += run.length;
            return;
        }
        self.runs.insert(virt, run);
    }

    /// Takes a range out of the runs. Whether any of it was in one.
    fn cut(&mut self, range: Range<u64>) -> bool {
        let overlays = self.overlays.len();
        self.overlays.retain(|virt, _| !range.contains(virt));
        self.uncovered |= self.overlays.len() < overlays;
        let first = self.runs.range(..range.start).next_back().map(|(start, run)| (*start, *run));
        let mut touched: Vec<_> = self.runs.range(range.clone()).map(|(start, run)| (*start, *run)).collect();
        touched.extend(first.filter(|(start, run)| start + run.length > range.start));
        for (start, run) in &touched {
            self.runs.remove(start);
            if *start < range.start {
                self.runs.insert(*start, Run { length: range.start - start, ..*run });
            }
            let end = start + run.length;
            if end > range.end {
                let skipped = range.end - start;
                self.runs
                    .insert(range.end, Run { length: end - range.end, phys: run.phys + skipped, ..*run });
            }
        }
        !touched.is_empty()
    }

    /// The translations of a range have changed.
    pub(super) fn invalidate(&mut self, range: Range<u64>) {
        let range = range.start.max(self.range.start)..range.end.min(self.range.end);
        if range.is_empty() || !self.cut(range.clone()) {
            return;
        }
        match self.changes.last_mut() {
            Some(Change::Unmap(last)) if last.end == range.start => last.end = range.end,
            _ => self.changes.push(Change::Unmap(range)),
        }
    }

    /// Forgets everything.
    pub(super) fn empty(&mut self) {
        self.uncovered |= !self.overlays.is_empty();
        self.overlays.clear();
        self.runs.clear();
        self.tables.clear();
        self.changes = vec![Change::Unmap(self.range.clone())];
    }

    /// P of the page at V, if it is mirrored executable and not writable.
    pub(super) fn code_page(&self, virt: u64) -> Option<u64> {
        const CODE: i32 = libc::PROT_READ | libc::PROT_EXEC;
        self.get(virt).filter(|(_, protection)| *protection == CODE).map(|(phys, _)| phys)
    }

    /// Whether the frame at P can be written through it.
    pub(super) fn can_write(&self, phys: u64) -> bool {
        self.runs.values().any(|run| run.is_writable() && (run.phys..run.phys + run.length).contains(&phys))
    }

    /// Frames that the sandbox will be able to write when it has made the changes.
    pub(super) fn new_writable(&self) -> impl Iterator<Item = Range<u64>> {
        self.changes.iter().filter_map(|change| match change {
            Change::Map(_, run) if run.is_writable() => Some(run.phys..run.phys + run.length),
            _ => None,
        })
    }

    /// Maps the page at V to its copy instead.
    pub(super) fn overlay(&mut self, virt: u64, copy: u64) {
        if self.overlays.insert(virt, copy) != Some(copy) {
            self.changes.push(Change::Overlay(virt, copy));
        }
    }

    /// Whether the page at V is mapped to this copy.
    pub(super) fn is_overlaid(&self, virt: u64, copy: u64) -> bool {
        self.overlays.get(&virt) == Some(&copy)
    }

    /// Maps the page at V to what it mirrors again, if it is mapped to this copy. Whether it was.
    pub(super) fn uncover(&mut self, virt: u64, copy: u64) -> bool {
        let was = self.is_overlaid(virt, copy);
        if was && let Some((phys, protection)) = self.get(virt) {
            self.overlays.remove(&virt);
            self.changes.push(Change::Map(virt, Run { length: PAGE_SIZE, phys, protection }));
        }
        was
    }

    /// Whether overlays have gone, other than by [`uncover`](Self::uncover).
    pub(super) fn is_uncovered(&self) -> bool {
        self.uncovered
    }

    /// They have gone from the sandbox, too, and been seen to.
    pub(super) fn forget_uncovered(&mut self) {
        self.uncovered = false;
    }

    /// Whether there is something for the sandbox to do.
    pub(super) fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// What the sandbox has to do now.
    pub(super) fn take_commands(&mut self) -> Vec<Command> {
        let command = |change| match change {
            Change::Unmap(range) => mapper::unmap(range.start, range.end - range.start),
            Change::Map(virt, Run { length, phys, protection }) => {
                let map = mapper::map(virt, length, descriptor::GUEST_MEMORY, phys, protection);
                if length <= FILLED { mapper::filled(map) } else { map }
            }
            Change::Overlay(virt, copy) => {
                mapper::map(virt, PAGE_SIZE, descriptor::REWRITTEN, copy, libc::PROT_READ | libc::PROT_EXEC)
            }
        };
        std::mem::take(&mut self.changes).into_iter().map(command).collect()
    }
}

/// Bytes of a mapping, at the most, that the host fills at once: a program that got so much for a fault soon touches it, and
/// each page would be a fault of the host's own. Of more, much may never be touched.
const FILLED: u64 = 64 * PAGE_SIZE;

#[cfg(test)]
mod tests {
    use super::*;
    use hv_abi::address::SLOT_255;
    use hv_abi::user::LOWEST_USER;

    fn shadow() -> Shadow {
        Shadow::new(LOWEST_USER..SLOT_255)
    }

    const RW: Rights = Rights { write: true, execute: false, user: true };
    const RO: Rights = Rights { write: false, execute: false, user: true };
    const BASE: u64 = 0x40_0000;

    /// Every page of the small range, as the sandbox would have it after its commands.
    fn made(shadow: &mut Shadow, pages: &mut BTreeMap<u64, (u64, i32)>) {
        for Command { number, arguments: [at, length, protection, _, _, phys] } in shadow.take_commands() {
            let all: Vec<_> = (at..at + length).step_by(PAGE_SIZE as usize).collect();
            if number == libc::SYS_munmap as u64 {
                pages.retain(|page, _| !(at..at + length).contains(page));
            } else {
                pages.extend(all.iter().map(|page| (*page, (phys + page - at, protection as i32))));
            }
        }
    }

    #[test]
    fn the_sandbox_has_what_the_shadow_says_whatever_was_changed() {
        let mut random = fastrand::Rng::with_seed(1);
        let (mut shadow, mut pages) = (shadow(), BTreeMap::new());
        for _ in 0..5000 {
            let virt = BASE + random.u64(..32) * PAGE_SIZE;
            let length = random.u64(1..5) * PAGE_SIZE;
            match random.u8(..8) {
                0..4 => {
                    let phys = if random.bool() { virt - BASE } else { random.u64(..64) * PAGE_SIZE };
                    shadow.map(virt, length, phys, if random.bool() { RW } else { RO });
                }
                4..7 => shadow.invalidate(virt..virt + length),
                _ if random.u8(..20) == 0 => shadow.empty(),
                _ => {}
            }
            if random.u8(..4) == 0 {
                // A munmap of the whole range would take a model of 128 TiB; the small range is all that is looked at.
                for change in &mut shadow.changes {
                    if let Change::Unmap(range) = change {
                        *range = range.start.max(BASE)..range.end.min(BASE + 64 * PAGE_SIZE);
                    }
                }
                made(&mut shadow, &mut pages);
                for page in (BASE..BASE + 40 * PAGE_SIZE).step_by(PAGE_SIZE as usize) {
                    assert_eq!(shadow.get(page), pages.get(&page).copied(), "{page:#x}");
                }
            }
        }
    }

    #[test]
    fn neighbours_are_one_run_and_far_pages_cost_their_tables() {
        let mut shadow = shadow();
        (0..10).for_each(|i| shadow.map(BASE + i * PAGE_SIZE, PAGE_SIZE, i * PAGE_SIZE, RW));
        assert_eq!((shadow.runs.len(), shadow.cost()), (1, 3 * TABLE_COST + RUN_COST));
        shadow.empty();
        assert_eq!(shadow.cost(), 0);
        // Ten pages in as many GiB: two tables each, and the one above.
        (0..10).for_each(|i| shadow.map(BASE + (i << 30), PAGE_SIZE, 0, RW));
        assert_eq!(shadow.cost(), 21 * TABLE_COST + 10 * RUN_COST);
    }

    #[test]
    fn so_many_mappings_are_enough() {
        let mut shadow = shadow();
        for i in 0..MOST_RUNS as u64 {
            assert!(!shadow.is_full());
            shadow.map(BASE + 2 * i * PAGE_SIZE, PAGE_SIZE, 0, RW);
        }
        assert!(shadow.is_full());
    }

    #[test]
    fn what_was_not_shadowed_need_not_be_unmapped() {
        let mut shadow = shadow();
        shadow.invalidate(BASE..BASE + PAGE_SIZE);
        assert!(shadow.take_commands().is_empty());
    }
}

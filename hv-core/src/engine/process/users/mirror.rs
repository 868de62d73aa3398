//! What sandboxes mirror of page tables, and through which tables that came.
//!
//! A walk notes each table that it passes ([`Use`]), so that a change of an entry takes away what was shadowed through it,
//! and nothing else.
//!
//! Start at [`Inner::shadow`] and [`Inner::changed`].

use super::super::shadow::Shadow;
use super::{Inner, Space};
use crate::memory::GuestMemory;
use crate::mmu::{self, ENTRIES, Leaf, Rights, Step};
use hv_abi::mmu::Entry;
use hv_abi::{GuestPhys, PAGE_SIZE};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use zerocopy::IntoBytes;

/// Pages that are mapped for one fault, at the most, and within the same aligned run of so many.
pub(super) const AHEAD: u64 = 64;

/// Bytes that the host may spend on what it maps of one space, about.
const MOST_COST: usize = 4 << 20;

/// Pages that a batch of new entries maps before the program goes on, at the most.
const MOST_WANTED: usize = 512;

/// A table that a walk under `root` came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Use {
    root: u64,
    pub level: u32,
    pub base: u64,
    rights: Rights,
}

impl Inner {
    /// Mirrors the page at `virt` and up to `most` of those around it. Gives the page's rights, if it is mapped for whom the
    /// space is.
    pub(super) fn shadow(&mut self, memory: &GuestMemory, root: u64, virt: u64, most: u64) -> Option<Rights> {
        let space = self.spaces.get(&root).filter(|space| space.shadow.range().contains(&virt))?;
        if space.shadow.is_full() || space.cost() >= MOST_COST {
            self.forget(root);
            self.counts.evictions += 1;
        }
        let mut steps = Vec::with_capacity(4);
        let found = mmu::walk(memory, root, virt, |step| steps.push(step));
        let last = *steps.last().expect("a walk begins at the root");
        steps.into_iter().for_each(|step| self.note(root, step));
        let space = self.spaces.get_mut(&root)?;
        let found = found.filter(|found| found.rights.user || space.is_kernel())?;
        if found.size > PAGE_SIZE {
            let page = virt - virt % found.size;
            let start = page.max(space.shadow.range().start);
            space.shadow.map(start, page + found.size - start, found.phys + (start - page), found.rights);
        } else {
            space.shadow_around(memory, last, virt, most);
        }
        Some(found.rights)
    }

    /// Mirrors pages, and those around them.
    pub(super) fn shadow_all(&mut self, memory: &GuestMemory, root: u64, pages: &[u64]) {
        let mut done = 0..0;
        for virt in pages {
            if !done.contains(virt) {
                self.shadow(memory, root, *virt, AHEAD);
                let start = virt - virt % (AHEAD * PAGE_SIZE);
                done = start..start + AHEAD * PAGE_SIZE;
            }
        }
    }

    /// Forgets what is shadowed of a space, and what that came through.
    pub(super) fn forget(&mut self, root: u64) {
        let Some(space) = self.spaces.get_mut(&root) else { return };
        space.shadow.empty();
        let tables: BTreeSet<_> = std::mem::take(&mut space.tables).into_values().collect();
        for table in tables {
            forget_uses(&mut self.tables, table, |of| of.root == root);
        }
    }

    /// Notes that shadows of `root` came through a table.
    fn note(&mut self, root: u64, step: Step) {
        let Some(space) = self.spaces.get_mut(&root) else { return };
        let of = Use { root, level: step.level, base: step.base, rights: step.rights };
        match space.tables.insert((step.level, step.base), step.table) {
            Some(before) if before == step.table => {
                let uses = self.tables.entry(step.table).or_default();
                uses.iter_mut().filter(|u| same_place(u, &of)).for_each(|u| *u = of);
            }
            before => {
                if let Some(before) = before {
                    forget_uses(&mut self.tables, before, |u| same_place(u, &of));
                }
                self.tables.entry(step.table).or_default().push(of);
            }
        }
    }

    /// The entry of `of` that translates `range` has changed.
    pub(super) fn changed(&mut self, of: Use, range: Range<u64>) {
        self.forbid(of.root);
        let Some(space) = self.spaces.get_mut(&of.root) else { return };
        space.shadow.invalidate(range.clone());
        if space.shadow.is_uncovered() {
            // A copy is used again for another page, so it is unmapped before it is given up. Fails if the sandbox is dead.
            let _ = self.update(of.root);
        }
        let Some(space) = self.spaces.get_mut(&of.root) else { return };
        if of.level == 1 {
            if space.wanted.len() < MOST_WANTED {
                space.wanted.push(range.start);
            }
            return;
        }
        for level in 1..of.level {
            let below: Vec<_> = space
                .tables
                .range((level, range.start)..(level, range.end))
                .map(|(at, t)| (*at, *t))
                .collect();
            for ((level, base), table) in below {
                space.tables.remove(&(level, base));
                forget_uses(&mut self.tables, table, |u| same_place(u, &Use { level, base, ..of }));
            }
        }
    }
}

fn same_place(one: &Use, other: &Use) -> bool {
    (one.root, one.level, one.base) == (other.root, other.level, other.base)
}

fn forget_uses(tables: &mut HashMap<u64, Vec<Use>>, table: u64, which: impl Fn(&Use) -> bool) {
    if let Some(uses) = tables.get_mut(&table) {
        uses.retain(|of| !which(of));
        if uses.is_empty() {
            tables.remove(&table);
        }
    }
}

impl Space {
    /// Mirrors the page at `virt`, which the table of `step` maps, and pages beside it that are as present.
    fn shadow_around(&mut self, memory: &GuestMemory, step: Step, virt: u64, most: u64) {
        let mut entries = [0_u64; ENTRIES as usize];
        if memory.read_bytes(GuestPhys(step.table), entries.as_mut_bytes()).is_err() {
            return;
        }
        let is_kernel = self.is_kernel();
        let index = virt / PAGE_SIZE % ENTRIES;
        let first = index - index % most;
        let page = |i: u64| {
            let entry = Entry::from_bits_retain(entries[i as usize]);
            match mmu::leaf(memory, entry, 1) {
                Leaf::Page { phys, .. } => {
                    Some((phys, step.rights.and(entry))).filter(|(_, rights)| rights.user || is_kernel)
                }
                _ => None,
            }
        };
        let mut at = first;
        while at < (first + most).min(ENTRIES) {
            let start = at;
            let Some((phys, rights)) = page(at) else {
                at += 1;
                continue;
            };
            let goes_on = |i: u64| page(i) == Some((phys + (i - start) * PAGE_SIZE, rights));
            at += 1;
            while at < (first + most).min(ENTRIES) && goes_on(at) {
                at += 1;
            }
            self.shadow_run(step.base + start * PAGE_SIZE, at - start, phys, rights);
        }
    }

    /// Mirrors consecutive pages, but for those that already are.
    fn shadow_run(&mut self, virt: u64, pages: u64, phys: u64, rights: Rights) {
        let virt_of = |i| virt + i * PAGE_SIZE;
        let there = |shadow: &Shadow, i| {
            let phys = phys + i * PAGE_SIZE;
            shadow.has(virt_of(i), mmu::Translation { phys, size: PAGE_SIZE, rights })
                || !shadow.range().contains(&virt_of(i))
        };
        let mut i = 0;
        while i < pages {
            if there(&self.shadow, i) {
                i += 1;
                continue;
            }
            let start = i;
            while i < pages && !there(&self.shadow, i) {
                i += 1;
            }
            self.shadow.map(virt_of(start), (i - start) * PAGE_SIZE, phys + start * PAGE_SIZE, rights);
        }
    }
}

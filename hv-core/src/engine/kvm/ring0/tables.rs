//! Page tables, as ring 0 changes and uses them.
//!
//! The processor walks the guest's own tables, but for the uppermost ones of a user root: those are copied, so that slot 255 and
//! the gate can be in them. A root's copy is of the root itself, and, for the first 2 MiB, of a table of each level below.
//! Whoever changes an entry of a table that was copied says so, and the copy is made anew when the root is next entered, which is
//! when the ABI has the change in force.
//!
//! This file is compiled into the monitor, too, which changes tables where ring 0 leaves it to that.
//!
//! Start at [`Tables::update`] and [`Tables::refresh`].

#![expect(unsafe_code, reason = "words of guest memory and of the engine's, by their addresses")]

use super::layout::{
    FrameBits, GATE, KERNEL_SPACE, LOWEST_USER, PAGE, SLOT_255, SPACE_PAGES, SPACE_WAYS, SPACES_MAX, Shared,
    Space, frame, hash,
};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use core::sync::atomic::{AtomicU32, AtomicU64, fence};

/// As in `hv_abi::mmu`.
pub(crate) const EAGER: u64 = 1;
pub(crate) const UPDATE_MAX: u64 = 512;
pub(crate) const MUST_BE_ZERO: u64 = 0x7800_0000_0000_0118;
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const UPDATE_WORDS: u64 = 4;
pub(crate) const PRESENT: u64 = 1;
pub(crate) const WRITE: u64 = 2;
pub(crate) const USER: u64 = 4;
pub(crate) const LARGE: u64 = 1 << 7;
pub(crate) const NO_EXECUTE: u64 = 1 << 63;
const SET_BY_THE_PROCESSOR: u64 = 0x60;
const LARGE_PAGE: u64 = 2 << 20;

/// Statuses.
const SUCCESS: u64 = 0;
const BAD_ARGUMENT: u64 = 2;
const BAD_ADDRESS: u64 = 3;

/// What `MMU_UPDATE` was given, as words.
pub(crate) type Batch = [[u64; UPDATE_WORDS as usize]; UPDATE_MAX as usize];

/// What there is to work with, and where that is: V in ring 0, addresses of its own in the monitor.
#[derive(Clone, Copy)]
pub(crate) struct Tables<'a> {
    pub(crate) shared: &'a Shared,
    /// Guest memory.
    pub(crate) direct_map: u64,
    /// Bits of each of its frames.
    pub(crate) frames: u64,
    /// Spaces' own pages.
    pub(crate) pages: u64,
    /// The guest kernel's table of the highest level.
    pub(crate) kernel_table: u64,
}

impl Tables<'_> {
    /// A word of guest memory, at an aligned P that is in it.
    pub(crate) fn word(&self, phys: u64) -> &AtomicU64 {
        // SAFETY: a reference to an atomic needs memory that is mapped, aligned, and reached by atomics alone. The caller has
        // checked that P is aligned and in guest memory, all of which is mapped there; this code makes no other references to it.
        unsafe { &*((self.direct_map + phys) as *const AtomicU64) }
    }

    /// What is known of the frame of a P in guest memory.
    pub(crate) fn frame(&self, phys: u64) -> &FrameBits {
        // SAFETY: as in `word`: there is a byte for each frame of guest memory.
        unsafe { &*((self.frames + phys / PAGE) as *const FrameBits) }
    }

    /// An entry of a space's own page.
    fn own(&self, place: usize, page: u64, index: u64) -> &AtomicU64 {
        let at = (place as u64 * SPACE_PAGES + page) * PAGE + index * 8;
        // SAFETY: as in `word`: each of `SPACES_MAX` places has `SPACE_PAGES` pages of 512 entries.
        unsafe { &*((self.pages + at) as *const AtomicU64) }
    }

    /// An entry of the guest kernel's table of the highest level.
    fn kernel_entry(&self, index: u64) -> &AtomicU64 {
        // SAFETY: as in `word`: a table has 512 entries.
        unsafe { &*((self.kernel_table + index * 8) as *const AtomicU64) }
    }

    pub(crate) fn contains(&self, phys: u64, length: u64) -> bool {
        phys.checked_add(length).is_some_and(|end| end <= self.shared.memory.load(Relaxed))
    }

    /// The place of a root that is ready.
    pub(crate) fn find(&self, root: u64) -> Option<usize> {
        places(root).find(|place| self.shared.spaces[*place].root.load(SeqCst) == root)
    }

    /// Makes all updates. Whether one took away what was present; `None`, and nothing is done, if the call is not one that can be
    /// made here.
    pub(crate) fn update(&self, batch: &mut Batch, updates: u64, count: u64) -> Option<bool> {
        let length = count.checked_mul(UPDATE_WORDS * 8)?;
        if count > UPDATE_MAX || !updates.is_multiple_of(8) || !self.contains(updates, length) {
            return None;
        }
        let at = |index: u64, word: u64| self.word(updates + (index * UPDATE_WORDS + word) * 8);
        for (index, words) in (0..count).zip(batch.iter_mut()) {
            for (word, value) in (0..).zip(words) {
                *value = at(index, word).load(Relaxed);
            }
        }
        let mut changed = false;
        for (_, words) in (0..count).zip(batch.iter_mut()) {
            let [entry, new, _, rest] = *words;
            let (old, status) = match self.exchange(entry, new, rest >> 32) {
                Ok(old) => (old, SUCCESS),
                Err(status) => (0, status),
            };
            changed |= old & PRESENT != 0 && old != new;
            words[2] = old;
            words[3] = status;
        }
        for (index, [.., old, status]) in (0..count).zip(batch.iter()) {
            at(index, 2).store(*old, Relaxed);
            // SAFETY: the status is the lower half of a word that is there and aligned; the upper half is not the call's to write.
            let half = unsafe { &*core::ptr::from_ref(at(index, 3)).cast::<AtomicU32>() };
            half.store(*status as u32, Relaxed);
        }
        Some(changed)
    }

    /// Exchanges an entry, by the rules of `hv_core::mmu`.
    fn exchange(&self, entry: u64, new: u64, reserved: u64) -> Result<u64, u64> {
        if reserved != 0 {
            return Err(BAD_ARGUMENT);
        }
        if !entry.is_multiple_of(8) || !self.contains(entry, 8) {
            return Err(BAD_ADDRESS);
        }
        self.check(new)?;
        let slot = entry % PAGE / 8;
        let bits = self.frame(entry).load(Relaxed);
        let refused = match () {
            () if bits & frame::KERNEL_ROOT != 0 => !(KERNEL_SPACE >> 39..SLOT_255 >> 39).contains(&slot),
            () if bits & frame::ROOT != 0 => slot >= SLOT_255 >> 39,
            () => false,
        };
        if refused {
            return Err(BAD_ARGUMENT);
        }
        let old = self.word(entry).swap(new, SeqCst);
        if bits != 0 {
            self.note_change(entry);
        }
        Ok(old)
    }

    /// An entry has changed: what was copied of it is copied anew when it is next needed.
    pub(crate) fn note_change(&self, entry: u64) {
        let bits = self.frame(entry).load(SeqCst);
        if bits & frame::KERNEL_ROOT != 0 {
            let value = self.usable(self.word(entry).load(SeqCst), 4);
            self.kernel_entry(entry % PAGE / 8).store(value, SeqCst);
        }
        if bits & frame::SOURCE != 0 {
            let table = entry - entry % PAGE;
            let of_it = |space: &&Space| space.sources.iter().any(|source| source.load(SeqCst) == table);
            self.shared.spaces.iter().filter(of_it).for_each(|space| space.stale.store(1, SeqCst));
        }
    }

    /// The rules for a new value that hold whatever table it is in.
    fn check(&self, entry: u64) -> Result<(), u64> {
        if entry & PRESENT == 0 {
            return Ok(());
        }
        let size = if entry & LARGE != 0 { LARGE_PAGE } else { PAGE };
        if entry & MUST_BE_ZERO != 0 || !(entry & ADDRESS).is_multiple_of(size) {
            return Err(BAD_ARGUMENT);
        }
        if self.contains(entry & ADDRESS, size) { Ok(()) } else { Err(BAD_ADDRESS) }
    }

    /// An entry of a table of some level, or 0 if it reads as absent.
    fn usable(&self, entry: u64, level: u64) -> u64 {
        let wrong = entry & LARGE != 0 && level != 2;
        if entry & PRESENT == 0 || wrong || self.check(entry).is_err() { 0 } else { entry }
    }

    /// Has a space's pages copied, if they are not what the tables say.
    pub(crate) fn refresh(&self, place: usize) {
        let stale = &self.shared.spaces[place].stale;
        if stale.load(SeqCst) == 0 {
            return;
        }
        let lock = &self.shared.lock;
        while lock.compare_exchange(0, 1, Acquire, Relaxed).is_err() {
            core::hint::spin_loop();
        }
        if stale.swap(0, SeqCst) != 0 {
            self.copy(place);
        }
        lock.store(0, Release);
    }

    /// Makes a space's pages what the guest's tables say now, with the hypervisor's part in them. Another vCPU may be in the space
    /// meanwhile: an entry that stays as it is, is not touched.
    fn copy(&self, place: usize) {
        let space = &self.shared.spaces[place];
        let own = space.cr3.load(Relaxed);
        let mut from = From::Table(space.root.load(SeqCst));
        let mut above = WRITE | USER;
        for page in 0..SPACE_PAGES {
            let level = SPACE_PAGES - page;
            self.begin_copy(&space.sources[page as usize], from);
            let entry = |index| within(self.source(from, index, level), above);
            let first = entry(0);
            for index in 1..512 {
                let value = match (level, index) {
                    (4, 255) => self.shared.slot_255.load(Relaxed),
                    (4, 256..) => 0,
                    (1, _) if index == GATE / PAGE => self.shared.gate.load(Relaxed),
                    (1, _) if index < LOWEST_USER / PAGE => 0,
                    _ => entry(index),
                };
                put(self.own(place, page, index), value);
            }
            let beneath = own + (page + 1) * PAGE;
            put(self.own(place, page, 0), if level == 1 { 0 } else { beneath | PRESENT | WRITE | USER });
            above = first & (WRITE | USER | NO_EXECUTE);
            from = match first {
                0 => From::Nothing,
                _ if first & LARGE != 0 => From::LargePage(first & !LARGE),
                _ => From::Table(first & ADDRESS),
            };
        }
    }

    /// Notes a table that is copied, so that whoever changes an entry of it from here on finds it out.
    fn begin_copy(&self, source: &AtomicU64, from: From) {
        let table = if let From::Table(table) = from { table } else { 0 };
        source.store(table, SeqCst);
        if table != 0 {
            self.frame(table).fetch_or(frame::SOURCE, SeqCst);
            fence(SeqCst);
        }
    }

    fn source(&self, from: From, index: u64, level: u64) -> u64 {
        match from {
            From::Nothing => 0,
            From::LargePage(first) => first + index * PAGE,
            From::Table(table) => self.usable(self.word(table + index * 8).load(SeqCst), level),
        }
    }

    /// Whether a flush is one that this vCPU can do by forgetting all that it has.
    pub(crate) fn may_flush(&self, root: u64, start: u64, length: u64) -> bool {
        let aligned = start.is_multiple_of(PAGE) && length.is_multiple_of(PAGE);
        let inside = start.checked_add(length).is_some_and(|end| end <= 1 << 47);
        let known = match root {
            0 => (start, length) == (0, 0),
            _ if !root.is_multiple_of(PAGE) || !self.contains(root, PAGE) => false,
            _ => self.frame(root).load(Relaxed) & (frame::ROOT | frame::KERNEL_ROOT) != 0,
        };
        aligned && inside && known
    }
}

/// Where entries are copied from.
#[derive(Clone, Copy)]
enum From {
    Nothing,
    /// The pages of a large page, whose first one this is.
    LargePage(u64),
    Table(u64),
}

/// Where a root can be.
pub(crate) fn places(root: u64) -> impl Iterator<Item = usize> {
    (0..SPACE_WAYS).map(move |way| (hash(root) + way) % SPACES_MAX)
}

/// An entry with the rights that those above it leave.
fn within(entry: u64, above: u64) -> u64 {
    match entry {
        0 => 0,
        _ => entry & !(WRITE | USER) | entry & above & (WRITE | USER) | above & NO_EXECUTE,
    }
}

fn put(entry: &AtomicU64, value: u64) {
    if (entry.load(Relaxed) ^ value) & !SET_BY_THE_PROCESSOR != 0 {
        entry.store(value, Release);
    }
}

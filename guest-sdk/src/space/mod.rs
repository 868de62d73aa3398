//! Address spaces of user programs.
//!
//! An [`AddressSpace`] owns what it maps: it holds an [`Arc`] of each frame until no program can reach it through the space
//! any more. That is what makes it sound to run a program in it without `unsafe`.
//!
//! # What is where
//!
//! The mappings (`BTreeMap`, by V) say what is mapped; the page tables, which are for the host, are made from them. Nothing
//! is read back from the tables, so it does not matter that changes of them wait in a queue until a program is next entered,
//! until the queue is full, or until [`flush`](AddressSpace::flush).
//!
//! A page that was unmapped may be reached by the program until the change is in force. Its frame is kept until then.
//!
//! Policy is the kernel's: there are no areas here that are filled on demand and no copy-on-write, but what is needed to
//! build both: a page fault comes with address and access, [`mapping`](AddressSpace::mapping) tells what is there, an `Arc`
//! how many share it.
//!
//! Start at [`AddressSpace::map`]; [`Task::run`](crate::user::Task::run) runs programs.

mod copy;
mod tables;
#[cfg(test)]
mod tests;

pub use copy::{Fault, StringError};

use crate::frames::{Frame, OutOfMemory};
use crate::smp;
use crate::sync::Lock;
use crate::user::State;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use hv_abi::address::SLOT_255;
use hv_abi::mmu::Entry;
use hv_abi::user::LOWEST_USER;
use hv_abi::{GuestPhys, PAGE_SIZE, Status};
use tables::Tables;

/// Bytes of a large page.
pub const LARGE_PAGE: u64 = 2 << 20;

/// The addresses that a program can have.
pub const USER: Range<u64> = LOWEST_USER..SLOT_255;

/// Frames that were unmapped, after which they are freed at once and not when a program is next entered.
const MOST_LEAVING: usize = 512;

/// What a program may do with a page beside reading it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rights {
    /// Writing.
    pub write: bool,
    /// Executing.
    pub execute: bool,
}

impl Rights {
    /// Only reading.
    pub const READ: Self = Self { write: false, execute: false };
    /// Reading and writing.
    pub const WRITE: Self = Self { write: true, execute: false };
    /// Reading and executing.
    pub const EXECUTE: Self = Self { write: false, execute: true };

    fn entry(self, phys: u64) -> Entry {
        let write = if self.write { Entry::WRITE } else { Entry::empty() };
        let no_execute = if self.execute { Entry::empty() } else { Entry::NO_EXECUTE };
        Entry::new(GuestPhys(phys), Entry::PRESENT | Entry::USER | write | no_execute)
    }
}

/// What a program wanted to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// To read data.
    Read,
    /// To write data.
    Write,
    /// To fetch an instruction.
    Execute,
}

/// Consecutive pages of a frame, and what may be done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// What is mapped.
    pub frame: Arc<Frame>,
    /// The first of the frame's pages that is.
    pub first: u64,
    /// How many of them are.
    pub pages: u64,
    /// What may be done.
    pub rights: Rights,
}

impl Mapping {
    fn phys(&self) -> u64 {
        self.frame.phys().0 + self.first * PAGE_SIZE
    }

    fn length(&self) -> u64 {
        self.pages * PAGE_SIZE
    }

    /// Takes away and gives what is from page `pages` on.
    fn split_off(&mut self, pages: u64) -> Self {
        let rest = Self { first: self.first + pages, pages: self.pages - pages, ..self.clone() };
        self.pages = pages;
        rest
    }
}

/// What an address leads to.
#[derive(Clone, Copy, Debug)]
pub struct Translation<'a> {
    /// The frame that is mapped there.
    pub frame: &'a Arc<Frame>,
    /// Where in the frame the address is.
    pub offset: usize,
    /// What may be done.
    pub rights: Rights,
}

/// Why something could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// The addresses are not whole pages, not in [`USER`], or pages are named that the frame does not have.
    BadAddress,
    /// There was no frame for a page table.
    OutOfMemory,
}

impl From<OutOfMemory> for MapError {
    fn from(OutOfMemory: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl core::fmt::Display for MapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::BadAddress => "not whole pages of a user program's addresses",
            Self::OutOfMemory => "no frame for a page table",
        })
    }
}

impl core::error::Error for MapError {}

/// What programs that share it can reach, and how.
pub struct AddressSpace {
    tables: Tables,
    /// By the V of their first page. None overlaps another or is empty.
    mappings: BTreeMap<u64, Mapping>,
    /// Frames that a program may yet reach, though they are not mapped any more.
    leaving: Vec<Arc<Frame>>,
    /// Contexts to which the host may yet write: on each vCPU, that of the task that ran last there.
    held: Vec<(u32, Arc<State>)>,
    /// vCPUs that run programs here at the moment.
    running: u32,
}

/// Where a program can run: an [`AddressSpace`], or one that several vCPUs share, behind a [`Lock`] that is not held while it
/// runs. If another vCPU runs a program there, what is unmapped or restricted is so at once only after
/// [`flush`](AddressSpace::flush), and a frame that was unmapped is kept until then.
pub trait Enter: sealed::Enter {}
impl<T: sealed::Enter> Enter for T {}

pub(crate) mod sealed {
    use super::*;

    /// As [`super::Enter`].
    pub trait Enter {
        /// Does something with the space.
        #[doc(hidden)]
        fn with<T>(&mut self, action: impl FnOnce(&mut AddressSpace) -> T) -> T;
    }

    impl Enter for AddressSpace {
        fn with<T>(&mut self, action: impl FnOnce(&mut AddressSpace) -> T) -> T {
            action(self)
        }
    }

    impl Enter for &Lock<AddressSpace> {
        fn with<T>(&mut self, action: impl FnOnce(&mut AddressSpace) -> T) -> T {
            action(&mut self.lock())
        }
    }
}

impl AddressSpace {
    /// One in which nothing is mapped. Does not block.
    ///
    /// # Errors
    ///
    /// `NO_SPACE` without memory, or if the VM has too many roots; `UNKNOWN_CALL` if the host has no user mode.
    pub fn new() -> Result<Self, Status> {
        Ok(Self {
            tables: Tables::new()?,
            mappings: BTreeMap::new(),
            leaving: Vec::new(),
            held: Vec::new(),
            running: 0,
        })
    }

    /// Where the root page table is.
    pub fn root(&self) -> GuestPhys {
        self.tables.root()
    }

    /// Maps a whole frame at `virt`, in the place of what was there. Large pages are used where both are aligned to them.
    ///
    /// # Errors
    ///
    /// [`MapError`]; nothing is changed then. Does not block.
    pub fn map(&mut self, virt: u64, frame: impl Into<Arc<Frame>>, rights: Rights) -> Result<(), MapError> {
        let frame = frame.into();
        let pages = frame.pages();
        self.insert(virt, Mapping { frame, first: 0, pages, rights })
    }

    /// As [`map`](Self::map), for a part of a frame: for example, what another space maps.
    ///
    /// # Errors
    ///
    /// As [`map`](Self::map).
    pub fn insert(&mut self, virt: u64, mapping: Mapping) -> Result<(), MapError> {
        let last = mapping.first.checked_add(mapping.pages).ok_or(MapError::BadAddress)?;
        if last > mapping.frame.pages() {
            return Err(MapError::BadAddress);
        }
        let range = virt..virt.checked_add(mapping.length()).ok_or(MapError::BadAddress)?;
        check(&range)?;
        self.split(&range)?;
        self.make_tables(&range, &mapping)?;
        self.remove(&range);
        self.write_entries(virt, &mapping);
        self.mappings.insert(virt, mapping);
        Ok(())
    }

    /// Unmaps whatever is mapped in `range`. The frames are free, if nobody else has them, when a program has next been
    /// entered, or after [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// [`MapError`]: `OutOfMemory` only if a large page has to be split. Nothing is changed then. Does not block.
    pub fn unmap(&mut self, range: Range<u64>) -> Result<(), MapError> {
        check(&range)?;
        self.split(&range)?;
        self.remove(&range);
        Ok(())
    }

    /// Changes the rights of whatever is mapped in `range`.
    ///
    /// # Errors
    ///
    /// As [`unmap`](Self::unmap).
    pub fn protect(&mut self, range: Range<u64>, rights: Rights) -> Result<(), MapError> {
        check(&range)?;
        self.split(&range)?;
        let inside: Vec<u64> = self.mappings.range(range).map(|(virt, _)| *virt).collect();
        for virt in inside {
            let Some(mapping) = self.mappings.get_mut(&virt).filter(|m| m.rights != rights) else { continue };
            mapping.rights = rights;
            let mapping = mapping.clone();
            self.write_entries(virt, &mapping);
        }
        Ok(())
    }

    /// What `virt` leads to; `None` if nothing is mapped there.
    pub fn translate(&self, virt: u64) -> Option<Translation<'_>> {
        let (start, mapping) = self.mapping(virt)?;
        let offset = (mapping.first * PAGE_SIZE + (virt - start)) as usize;
        Some(Translation { frame: &mapping.frame, offset, rights: mapping.rights })
    }

    /// The mapping that `virt` is in, and where it starts.
    pub fn mapping(&self, virt: u64) -> Option<(u64, &Mapping)> {
        let (start, mapping) = self.mappings.range(..=virt).next_back()?;
        (virt - start < mapping.length()).then_some((*start, mapping))
    }

    /// All mappings and where they start, in order.
    pub fn mappings(&self) -> impl Iterator<Item = (u64, &Mapping)> {
        self.mappings.iter().map(|(virt, mapping)| (*virt, mapping))
    }

    /// Whether a vCPU runs a program here at the moment: it may not see changes until [`flush`](Self::flush).
    pub fn is_in_use(&self) -> bool {
        self.running > 0
    }

    /// Brings all changes into force, and frees what was unmapped. Without this, that happens when a program is next entered.
    /// May wait, for a bounded time, until no vCPU uses what was there before.
    ///
    /// # Panics
    ///
    /// Panics if the host refuses a change, which it has no reason to.
    pub fn flush(&mut self) {
        self.tables.flush();
        self.leaving.clear();
    }

    /// The program of `state` is to run here, on this vCPU. All changes will be in force for it. Gives the frames that are out
    /// of reach once it has run.
    pub(crate) fn begin(&mut self, state: &Arc<State>) -> Vec<Arc<Frame>> {
        self.tables.send();
        let (here, alone) = (smp::current(), self.running == 0);
        self.running += 1;
        if !self.held.iter().any(|(vcpu, held)| *vcpu == here && Arc::ptr_eq(held, state)) {
            self.held.push((here, state.clone()));
        }
        if alone { core::mem::take(&mut self.leaving) } else { Vec::new() }
    }

    /// It has come back, or was not entered.
    pub(crate) fn end(&mut self, state: &Arc<State>, leaving: Vec<Arc<Frame>>, entered: bool) {
        self.running -= 1;
        if entered {
            // What this vCPU held before has been written back.
            let here = smp::current();
            self.held.retain(|(vcpu, held)| *vcpu != here || Arc::ptr_eq(held, state));
        } else {
            self.leaving.extend(leaving);
        }
    }

    /// Sees to it that no mapping passes an end of `range`.
    fn split(&mut self, range: &Range<u64>) -> Result<(), OutOfMemory> {
        for at in [range.start, range.end] {
            let Some((start, mapping)) = self.mapping(at).filter(|(start, _)| *start != at) else { continue };
            let base = at - at % LARGE_PAGE;
            if base != at && !self.tables.has_lowest(at) {
                // Nothing but a large page is mapped there, and it is inside this mapping.
                let phys = mapping.phys() + (base - start);
                let before = mapping.rights.entry(phys);
                self.tables.make_for_small(at, Some(before))?;
            }
            let mapping = self.mappings.get_mut(&start).expect("found above");
            let rest = mapping.split_off((at - start) / PAGE_SIZE);
            self.mappings.insert(at, rest);
        }
        Ok(())
    }

    /// Makes the tables that `mapping` needs at the start of `range`, which it fills.
    fn make_tables(&mut self, range: &Range<u64>, mapping: &Mapping) -> Result<(), OutOfMemory> {
        let mut virt = range.start;
        while virt < range.end {
            if self.is_large(virt, range.end, mapping.phys() + (virt - range.start)) {
                self.tables.make_for_large(virt)?;
            } else {
                // A large page that is there lies inside `range`, all of which is mapped anew; until then it must stay.
                let base = virt - virt % LARGE_PAGE;
                let before = self.translate(base).filter(|_| !self.tables.has_lowest(virt));
                let before = before.map(|t| t.rights.entry(t.frame.phys().0 + t.offset as u64));
                self.tables.make_for_small(virt, before)?;
            }
            virt = (virt + 1).next_multiple_of(LARGE_PAGE);
        }
        Ok(())
    }

    /// Whether what goes from `virt` on, up to `end`, begins with a large page.
    fn is_large(&self, virt: u64, end: u64, phys: u64) -> bool {
        let aligned = virt.is_multiple_of(LARGE_PAGE) && phys.is_multiple_of(LARGE_PAGE);
        aligned && end - virt >= LARGE_PAGE && !self.tables.has_lowest(virt)
    }

    /// Takes away what is mapped in `range`; no mapping passes its ends.
    fn remove(&mut self, range: &Range<u64>) {
        let inside: Vec<u64> = self.mappings.range(range.clone()).map(|(virt, _)| *virt).collect();
        for virt in inside {
            let mapping = self.mappings.remove(&virt).expect("found above");
            self.for_each_page(virt, mapping.length(), |tables, virt, large| match large {
                true => tables.set_large(virt, Entry::empty()),
                false => tables.set_small(virt, Entry::empty()),
            });
            self.leaving.push(mapping.frame);
        }
        if self.leaving.len() >= MOST_LEAVING {
            self.flush();
        }
    }

    /// Makes the tables, which are there, say what `mapping` says at `start`.
    fn write_entries(&mut self, start: u64, mapping: &Mapping) {
        let (phys, rights) = (mapping.phys(), mapping.rights);
        self.for_each_page(start, mapping.length(), |tables, virt, large| {
            let entry = rights.entry(phys + (virt - start));
            match large {
                true => tables.set_large(virt, entry | Entry::LARGE),
                false => tables.set_small(virt, entry),
            }
        });
    }

    /// Calls `action` for all pages of a mapping, with their V and whether they are large.
    fn for_each_page(&mut self, start: u64, length: u64, action: impl Fn(&mut Tables, u64, bool)) {
        let mut virt = start;
        while virt < start + length {
            let large = !self.tables.has_lowest(virt);
            action(&mut self.tables, virt, large);
            virt += if large { LARGE_PAGE } else { PAGE_SIZE };
        }
    }
}

impl Drop for AddressSpace {
    /// Destroys the root, and frees tables and frames.
    fn drop(&mut self) {
        // The task that ran here last may go on elsewhere; with the root the host would forget its extended state.
        self.held.iter().for_each(|(_, state)| state.leave(self.root()));
        if self.tables.destroy().is_err() {
            core::mem::forget(core::mem::take(&mut self.mappings));
            core::mem::forget(core::mem::take(&mut self.leaving));
            core::mem::forget(core::mem::take(&mut self.held));
        }
    }
}

impl core::fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("AddressSpace").field("root", &self.root()).field("mappings", &self.mappings).finish()
    }
}

/// Whether a range is whole pages that a program can have.
fn check(range: &Range<u64>) -> Result<(), MapError> {
    let whole = range.start.is_multiple_of(PAGE_SIZE) && range.end.is_multiple_of(PAGE_SIZE);
    let inside = USER.start <= range.start && range.start <= range.end && range.end <= USER.end;
    if whole && inside { Ok(()) } else { Err(MapError::BadAddress) }
}

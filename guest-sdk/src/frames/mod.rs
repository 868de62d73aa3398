//! Frames: runs of guest-physical pages, for user programs and their page tables.
//!
//! All memory that the host calls usable belongs to one buddy allocator; the [`heap`](crate::heap) takes from it what it
//! needs. A [`Frame`] is an owned value: dropped, it is free again. Sharing one is [`Arc`](alloc::sync::Arc)'s business.
//!
//! # The one rule
//!
//! A frame's bytes are reached by copying only: a program that has it mapped may change it at any time, so there is never a
//! reference to them. The copies are made by assembly, which no optimisation looks into.
//!
//! Start at [`allocate`].

#![expect(unsafe_code, reason = "copies to and from memory of the direct map")]

mod buddy;

use crate::heap::UpcallLock;
use crate::mem::{hv_memcpy, hv_memset};
pub(crate) use buddy::Buddy;
use buddy::{Block, ORDERS, Page};
use hv_abi::boot::{MemoryRegion, region};
use hv_abi::{GuestPhys, PAGE_SIZE};

/// The largest order.
pub const MAX_ORDER: u32 = ORDERS - 1;

/// The order of a large page: 2 MiB.
pub const LARGE_ORDER: u32 = 9;

/// The allocator, from its first use on.
pub(crate) type Global = lock_api::Mutex<UpcallLock, Option<Buddy>>;

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
static FRAMES: Global = Global::new(None);
#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
static FRAMES: crate::fake::Frames = crate::fake::Frames;

/// No run of free pages is long enough. Free frames, or unmap some and flush, and try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfMemory;

impl core::fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no run of free pages is long enough")
    }
}

impl core::error::Error for OutOfMemory {}

/// A run of 2^order pages of guest-physical memory, aligned to its size. Nobody else has it.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    phys: u64,
    order: u32,
}

/// Takes a run of 2^`order` pages. What is in them is left from whoever had them before.
///
/// # Errors
///
/// [`OutOfMemory`]. Does not block.
pub fn allocate(order: u32) -> Result<Frame, OutOfMemory> {
    take(order).map(|(frame, _)| frame)
}

/// As [`allocate`], and all bytes are zero. Memory that the host gave zeroed is not cleared again.
///
/// # Errors
///
/// [`OutOfMemory`]. Does not block.
pub fn allocate_zeroed(order: u32) -> Result<Frame, OutOfMemory> {
    let (frame, zero) = take(order)?;
    if !zero {
        frame.fill(0);
    }
    Ok(frame)
}

/// How many pages are free.
pub fn available() -> u64 {
    with(|buddy| buddy.free())
}

fn take(order: u32) -> Result<(Frame, bool), OutOfMemory> {
    let block = with(|buddy| buddy.take(order)).ok_or(OutOfMemory)?;
    Ok((Frame { phys: block.page * PAGE_SIZE, order }, block.zero))
}

/// Takes `pages` pages in one run for good; gives the first one's P.
pub(crate) fn take_run(pages: u64) -> Option<GuestPhys> {
    let order = pages.next_power_of_two().ilog2();
    with(|buddy| {
        let block = buddy.take(order)?;
        buddy.add(block.page + pages..block.page + (1 << order), block.zero);
        Some(GuestPhys(block.page * PAGE_SIZE))
    })
}

fn with<T>(action: impl FnOnce(&mut Buddy) -> T) -> T {
    #[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
    crate::fake::ensure();
    action(FRAMES.lock().get_or_insert_with(from_memory_map))
}

fn pages_of(run: &MemoryRegion) -> core::ops::Range<u64> {
    run.start.0 / PAGE_SIZE..(run.start.0 + run.length) / PAGE_SIZE
}

/// An allocator with all memory that is usable, but for its own table.
fn from_memory_map() -> Buddy {
    let usable = || crate::memory::map().iter().filter(|run| run.kind == region::USABLE && run.start.0 != 0);
    let Some(home) = usable().max_by_key(|run| run.length) else { return Buddy::new(0, &mut []) };
    let first = usable().map(|run| pages_of(run).start).min().unwrap_or(0);
    let end = usable().map(|run| pages_of(run).end).max().unwrap_or(0);
    let table_bytes = (end - first) * size_of::<Page>() as u64;
    let table = pages_of(home).end.saturating_sub(table_bytes.div_ceil(PAGE_SIZE));
    if table <= pages_of(home).start {
        return Buddy::new(0, &mut []);
    }
    let at = crate::boot::at::<Page>(GuestPhys(table * PAGE_SIZE)).cast_mut();
    // SAFETY: `write_bytes` and `from_raw_parts_mut` need memory that is writable, aligned, initialised and nobody else's.
    // 1. Writable, aligned: a page's start in the direct map, and the table ends within the same region.
    // 2. Nobody else's: the host's map calls it usable, so neither image, stack nor boot information is in it; the heap
    //    takes memory from here only, and the pages of the table are never added below.
    // 3. Initialised: by the host, which set `ZERO`, or here; zeros are good for a `Page`.
    let table_of_pages = unsafe {
        if home.flags & region::ZERO == 0 {
            at.write_bytes(0, (end - first) as usize);
        }
        core::slice::from_raw_parts_mut(at, (end - first) as usize)
    };
    let mut buddy = Buddy::new(first, table_of_pages);
    for run in usable() {
        let pages = pages_of(run);
        let end = if core::ptr::eq(run, home) { table } else { pages.end };
        buddy.add(pages.start..end, run.flags & region::ZERO != 0);
    }
    buddy
}

impl Frame {
    /// Where it is.
    pub fn phys(&self) -> GuestPhys {
        GuestPhys(self.phys)
    }

    /// It has 2^order pages.
    pub fn order(&self) -> u32 {
        self.order
    }

    /// How many pages it has.
    pub fn pages(&self) -> u64 {
        1 << self.order
    }

    /// How many bytes it has.
    pub fn size(&self) -> usize {
        (PAGE_SIZE as usize) << self.order
    }

    /// Copies bytes out of it, from `offset` on.
    ///
    /// # Panics
    ///
    /// Panics if that passes its end.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) {
        let from = self.part(offset, bytes.len());
        // SAFETY: `hv_memcpy` needs a source that is readable and a target that is writable, for so many bytes. `part` has
        // checked the source, which no Rust code has a reference into; the target is the caller's slice.
        unsafe { hv_memcpy(bytes.as_mut_ptr(), from, bytes.len()) };
    }

    /// Copies bytes into it, from `offset` on.
    ///
    /// # Panics
    ///
    /// Panics if that passes its end.
    pub fn write_at(&self, offset: usize, bytes: &[u8]) {
        let to = self.part(offset, bytes.len());
        // SAFETY: as in `read_at`, the other way round.
        unsafe { hv_memcpy(to, bytes.as_ptr(), bytes.len()) };
    }

    /// Makes all its bytes the same.
    pub fn fill(&self, byte: u8) {
        self.fill_at(0, self.size(), byte);
    }

    /// Makes `length` of its bytes, from `offset` on, the same.
    ///
    /// # Panics
    ///
    /// Panics if that passes its end.
    pub fn fill_at(&self, offset: usize, length: usize, byte: u8) {
        let to = self.part(offset, length);
        // SAFETY: `hv_memset` needs a target that is writable, as `part` has checked; no Rust code has a reference into it.
        unsafe { hv_memset(to, byte.into(), length) };
    }

    /// Copies all of another one.
    ///
    /// # Panics
    ///
    /// Panics if they are not of the same size.
    pub fn copy_from(&self, other: &Self) {
        assert_eq!(self.order, other.order, "a frame is copied to one of its size");
        let (to, from) = (self.part(0, self.size()), other.part(0, other.size()));
        // SAFETY: as in `read_at` and `write_at`; the two do not overlap, or are the same, which `hv_memcpy` allows.
        unsafe { hv_memcpy(to, from, self.size()) };
    }

    /// Its bytes from `offset` on, which are so many at least.
    fn part(&self, offset: usize, length: usize) -> *mut u8 {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.size());
        assert!(inside, "{length} bytes at {offset} pass the end of a frame of {} bytes", self.size());
        crate::boot::at::<u8>(GuestPhys(self.phys + offset as u64)).cast_mut()
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        with(|buddy| buddy.give(Block { page: self.phys / PAGE_SIZE, order: self.order, zero: false }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use std::vec;
    use std::vec::Vec;

    #[test]
    fn a_frame_is_aligned_and_free_again_when_it_is_dropped() {
        let before = available();
        let frames: Vec<Frame> = (0..=LARGE_ORDER).map(|order| allocate(order).unwrap()).collect();
        for frame in &frames {
            assert_eq!(frame.phys().0 % frame.size() as u64, 0, "{frame:?}");
        }
        assert_eq!(available(), before - 1023);
        drop(frames);
        assert_eq!(available(), before);
        fake::finish();
    }

    #[test]
    fn zeroed_frames_are_zero_whoever_had_them() {
        let first = allocate_zeroed(0).unwrap();
        let phys = first.phys();
        first.fill(0xa5);
        drop(first);
        let again = allocate_zeroed(0).unwrap();
        assert_eq!(again.phys(), phys, "what was used last is used again");
        let mut bytes = [1; 4096];
        again.read_at(0, &mut bytes);
        assert_eq!(bytes, [0; 4096]);
    }

    #[test]
    fn bytes_are_copied_in_and_out_and_from_frame_to_frame() {
        let (one, other) = (allocate(1).unwrap(), allocate_zeroed(1).unwrap());
        one.fill(7);
        one.write_at(4090, b"across pages");
        other.copy_from(&one);
        let mut bytes = [0; 14];
        other.read_at(4089, &mut bytes);
        assert_eq!(&bytes, b"\x07across pages\x07");
        one.read_at(8192, &mut []);
    }

    #[test]
    #[should_panic(expected = "2 bytes at 4095 pass the end of a frame of 4096 bytes")]
    fn a_copy_past_the_end_is_a_panic() {
        allocate(0).unwrap().write_at(4095, &[0; 2]);
    }

    #[test]
    fn memory_ends_and_is_there_again() {
        let mut all = vec![];
        while let Ok(frame) = allocate(3) {
            all.push(frame);
        }
        assert_eq!(allocate(MAX_ORDER), Err(OutOfMemory));
        assert!(available() < 64, "{}", available());
        drop(all);
        assert!(allocate(LARGE_ORDER).is_ok());
    }
}

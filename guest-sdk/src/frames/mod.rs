//! Frames: runs of guest-physical pages, for user programs and their page tables.
//!
//! All memory that the host calls usable belongs to one buddy allocator; the [`heap`](crate::heap) takes from it what it
//! needs. A [`Frame`] is an owned value: dropped, it is free again. Sharing one is [`Arc`](alloc::sync::Arc)'s business.
//!
//! The allocator knows of each free page whether it is zero, and clears none that is. It tells the host which pages nobody
//! needs ([`report_free`]), and claims them back when it has no others.
//!
//! # The one rule
//!
//! A frame's bytes are reached by copying only: a program that has it mapped may change it at any time, so there is never a
//! reference to them. The copies are made by assembly, which no optimisation looks into.
//!
//! Start at [`allocate`].

#![expect(unsafe_code, reason = "copies to and from memory of the direct map")]

mod buddy;
pub(crate) mod pool;

use crate::balloon;
use crate::mem::{hv_memcpy, hv_memset};
use crate::time::{Duration, Instant};
pub(crate) use buddy::Content;
use buddy::{Block, ORDERS};
use hv_abi::pages::PageRun;
use hv_abi::{Features, GuestPhys, PAGE_SIZE, Status};
use pool::Pool;

/// The largest order.
pub const MAX_ORDER: u32 = ORDERS - 1;

/// The order of a large page: 2 MiB.
pub const LARGE_ORDER: u32 = 9;

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
    pool::take(order, false).map(Frame::new)
}

/// As [`allocate`], and all bytes are zero. Memory that the host gave zeroed is not cleared again.
///
/// # Errors
///
/// [`OutOfMemory`]. Does not block.
pub fn allocate_zeroed(order: u32) -> Result<Frame, OutOfMemory> {
    let block = pool::take(order, true)?;
    let frame = Frame::new(block);
    if block.content != Content::Zero {
        frame.fill(0);
    }
    Ok(frame)
}

/// How many pages are free. What was reported to the host is, what the balloon holds is not.
pub fn available() -> u64 {
    pool::with(|pool| pool.buddy.free())
}

/// What the allocator has, in pages, and what it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Pages that are free; those of the next two are some of them.
    pub free: u64,
    /// Pages that are known to be zero, and cost the host nothing yet.
    pub zero: u64,
    /// Pages that were reported to the host.
    pub reported: u64,
    /// Pages that the balloon holds.
    pub held: u64,
    /// Pages that the host asks the balloon to hold, as far as the guest has heard.
    pub target: u64,
    /// Bytes that [`allocate_zeroed`] has cleared.
    pub cleared: u64,
    /// Bytes that it need not clear, since they were known to be zero.
    pub saved: u64,
}

/// The figures now.
pub fn figures() -> Figures {
    pool::with(|pool| Figures {
        free: pool.buddy.free(),
        zero: pool.buddy.count(Content::Zero),
        reported: pool.buddy.count(Content::Reported),
        held: pool.buddy.count(Content::Held),
        target: pool.target,
        cleared: pool.cleared,
        saved: pool.saved,
    })
}

/// For how long a page is free and not needed before it is reported.
const QUIET: Duration = Duration::from_millis(100);

/// Reports free pages to the host, which takes their memory back. To be called by a kernel that is about to block, having
/// nothing to do; gives when it should be called again if it still has nothing to do, `None` if there is no need.
///
/// Only what was not needed for the last tenth of a second is reported: so a kernel that is idle often and briefly keeps its
/// pages, and one that is idle has given up all of them after two tenths. Zero pages that nobody has touched are not reported,
/// for they cost the host nothing. Allocation claims what it needs, last of all. Does nothing without `PAGE_REPORTING`.
pub fn report_free() -> Option<Instant> {
    if !crate::boot::info().features.contains(Features::PAGE_REPORTING) {
        return None;
    }
    balloon::follow_if_short();
    let now = Instant::now();
    let mut quiet = pool::with(|pool| pool.quiet_pages(now));
    while quiet > 0 {
        match pool::transfer(Content::Used, Content::Reported, quiet, pool::report) {
            0 => break,
            pages => quiet = quiet.saturating_sub(pages),
        }
    }
    let (used, since) = pool::with(|pool| (pool.buddy.count(Content::Used), pool.quiet_since));
    (used > 0).then(|| Instant::START + Duration::from_nanos(since) + QUIET)
}

/// Hands free pages that are not known to be zero to `tell`, some at once, which has somebody make them zero, or fails; nobody
/// has them meanwhile. Gives how many pages; 0: there are none, or it failed.
pub fn clear_by(tell: impl FnOnce(&[PageRun]) -> Result<(), Status>) -> u64 {
    pool::transfer(Content::Used, Content::Zero, u64::MAX, tell)
}

impl Pool {
    /// How many used pages were not needed for so long that they are to be reported, which the caller does.
    fn quiet_pages(&mut self, now: Instant) -> u64 {
        let used = self.buddy.count(Content::Used);
        if now.as_nanos() < self.quiet_since + QUIET.as_nanos() as u64 {
            return 0;
        }
        let quiet = self.least_used.min(used);
        (self.quiet_since, self.least_used) = (now.as_nanos(), used - quiet);
        quiet
    }
}

/// Takes `pages` pages in one run for good; gives the first one's P.
pub(crate) fn take_run(pages: u64) -> Option<GuestPhys> {
    let order = pages.next_power_of_two().ilog2();
    let block = pool::take(order, false).ok()?;
    pool::with(|pool| pool.buddy.add(block.page + pages..block.page + (1 << order), block.content));
    Some(GuestPhys(block.page * PAGE_SIZE))
}

impl Frame {
    fn new(block: Block) -> Self {
        Self { phys: block.page * PAGE_SIZE, order: block.order }
    }

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
        let block = Block { page: self.phys / PAGE_SIZE, order: self.order, content: Content::Used };
        pool::with(|pool| pool.buddy.give(block));
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

    #[test]
    fn what_is_known_to_be_zero_is_not_cleared() {
        let frames: Vec<Frame> = (0..10).map(|_| allocate_zeroed(1).unwrap()).collect();
        assert_eq!((figures().cleared, figures().saved), (0, 10 * 8192));
        drop(frames);
        let _frames: Vec<Frame> = (0..15).map(|_| allocate_zeroed(1).unwrap()).collect();
        assert_eq!((figures().cleared, figures().saved), (10 * 8192, 15 * 8192));
        let before = figures();
        let _frame = allocate(0).unwrap();
        assert_eq!((figures().cleared, figures().saved), (before.cleared, before.saved), "nobody asked");
    }

    /// As many used pages, all free.
    fn use_pages(pages: u64) {
        let frames: Vec<Frame> = (0..pages).map(|_| allocate(0).unwrap()).collect();
        frames.iter().for_each(|frame| frame.fill(0xa5));
    }

    /// An idle kernel: calls as often as it is told to. Gives how often.
    fn idle() -> u32 {
        let mut calls = 1;
        while let Some(again) = report_free() {
            fake::advance(again - Instant::now());
            calls += 1;
        }
        calls
    }

    #[test]
    fn an_idle_guest_reports_all_that_it_has_used_and_nothing_else() {
        use_pages(700);
        let before = available();
        assert!(idle() <= 3);
        assert_eq!((fake::reported(), figures().reported), ((700, 0), 700));
        assert_eq!(available(), before, "they are free as before");
        fake::calls();
        assert_eq!((report_free(), fake::calls()), (None, vec![]), "it is done");
        fake::finish();
    }

    #[test]
    fn what_was_needed_a_moment_ago_is_not_reported() {
        use_pages(100);
        fake::advance(QUIET);
        assert!(report_free().is_some());
        for _ in 0..50 {
            // Busy with forty pages, and idle for moments.
            let frames: Vec<Frame> = (0..40).map(|_| allocate(0).unwrap()).collect();
            fake::advance(QUIET / 3);
            drop(frames);
            assert!(report_free().is_some());
        }
        assert_eq!(fake::reported().0, 60);
        assert!(fake::calls().iter().filter(|(call, _)| *call == hv_abi::Call::PAGES_REPORT).count() <= 2);
        idle();
        assert_eq!(fake::reported().0, 100);
    }

    #[test]
    fn reported_pages_are_claimed_when_there_are_no_others_and_come_zero() {
        use_pages(available());
        idle();
        assert_eq!(fake::reported().0, available());
        let frame = allocate_zeroed(3).unwrap();
        let mut bytes = [1; 8 * 4096];
        frame.read_at(0, &mut bytes);
        assert_eq!(bytes, [0; 8 * 4096]);
        assert_eq!(figures().cleared, 0, "they are known to be");
        // One call for many pages, and all of them can be had, in large runs, too.
        fake::calls();
        let _more: Vec<Frame> = (0..100).map(|_| allocate(0).unwrap()).collect();
        assert_eq!(fake::calls(), vec![]);
        assert!(allocate(LARGE_ORDER + 1).is_ok());
        let mut all = vec![];
        while let Ok(frame) = allocate(0) {
            frame.fill(7);
            all.push(frame);
        }
        assert_eq!((fake::reported(), available()), ((0, 0), 0));
    }

    #[test]
    fn a_claim_that_is_refused_is_out_of_memory_and_may_succeed_later() {
        use_pages(available());
        idle();
        fake::fail_next(hv_abi::Call::PAGES_CLAIM, hv_abi::Status::BUSY);
        let before = figures();
        assert_eq!(allocate(0), Err(OutOfMemory));
        assert_eq!(figures(), before);
        assert!(allocate(0).is_ok());
        // A report that is refused leaves the pages as they were.
        use_pages(10);
        fake::fail_next(hv_abi::Call::PAGES_REPORT, hv_abi::Status::BUSY);
        idle();
        assert!(allocate(0).is_ok());
        fake::finish();
    }

    #[test]
    fn without_the_feature_nothing_is_reported() {
        fake::set_features(Features::EVENTS);
        use_pages(100);
        fake::calls();
        fake::advance(10 * QUIET);
        assert_eq!((report_free(), fake::calls()), (None, vec![]));
    }

    #[test]
    fn patterns_survive_any_use_idleness_and_balloon() {
        let mut random = 7_u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        crate::balloon::start();
        let total = available();
        let mut held: Vec<(Frame, u8)> = vec![];
        for round in 0..3000 {
            match next(100) {
                0..50 => {
                    let (order, zeroed) = (next(6) as u32, next(2) == 0);
                    let Ok(frame) = (if zeroed { allocate_zeroed(order) } else { allocate(order) }) else {
                        continue;
                    };
                    let mut bytes = vec![0; frame.size()];
                    frame.read_at(0, &mut bytes);
                    assert!(!zeroed || bytes.iter().all(|byte| *byte == 0), "round {round}");
                    frame.fill(round as u8);
                    held.push((frame, round as u8));
                }
                50..95 if !held.is_empty() => {
                    let (frame, byte) = held.swap_remove(next(held.len() as u64) as usize);
                    let mut bytes = vec![0; frame.size()];
                    frame.read_at(0, &mut bytes);
                    assert!(bytes.iter().all(|found| *found == byte), "round {round}: somebody else wrote");
                }
                95 => fake::set_balloon(next(total)),
                96 => held.clear(),
                97 => drop(idle()),
                _ => drop(report_free()),
            }
            let pages: u64 = held.iter().map(|(frame, _)| frame.pages()).sum();
            assert_eq!(available() + figures().held + pages, total, "round {round}: a page is lost");
            assert_eq!(fake::reported(), (figures().reported + figures().held, figures().held));
        }
        fake::finish();
    }
}

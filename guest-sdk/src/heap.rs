//! The global allocator: `talc`, on runs of [`frames`](crate::frames) that it takes as it needs them, and keeps.
//!
//! One allocation is at most as long as the longest run of free pages that is a power of two.
//!
//! Allocation masks upcalls for its duration, so event handlers may allocate, too.

#![expect(unsafe_code, reason = "the memory that the allocator is given")]

use crate::sync::RawLock;
use core::alloc::{GlobalAlloc, Layout};
use hv_abi::PAGE_SIZE;
use talc::{OomHandler, Span, Talc, Talck};

/// Pages by which the heap grows, at the least, while there are so many in one run.
const GROWTH: u64 = 64;

/// What blocks of a page and more are aligned to.
const SECTOR: usize = 512;

/// Bytes that the allocator may need beside what it is asked for: its own data, once, and an allocation's.
const OVERHEAD: u64 = 4096;

/// Takes more memory when there is none left.
struct Grow {
    /// What was taken last: what comes next often lies behind it.
    last: Span,
}

// SAFETY: it holds addresses of memory that only the allocator uses, which is behind a lock.
unsafe impl Send for Grow {}

impl OomHandler for Grow {
    fn handle_oom(talc: &mut Talc<Self>, layout: Layout) -> Result<(), ()> {
        let wanted = (layout.size() as u64).checked_add(layout.align() as u64 + OVERHEAD).ok_or(())?;
        let needed = wanted.div_ceil(PAGE_SIZE);
        let pages = [needed.max(GROWTH), needed];
        let run = pages.into_iter().find_map(|pages| Some((crate::frames::take_run(pages)?, pages)));
        let (start, pages) = run.ok_or(())?;
        let start = crate::boot::at::<u8>(start).cast_mut();
        let run = Span::from_base_size(start, (pages * PAGE_SIZE) as usize);
        let last = talc.oom_handler.last;
        let follows = last.get_base_acme().filter(|(_, end)| start.addr().wrapping_sub(end.addr()) < 64);
        // SAFETY: both calls need memory that is readable, writable and nobody else's: `take_run` gave it for good.
        // `extend` needs what it or `claim` returned last, which `last` is, and that the new span holds it: it begins where
        // that does, and a gap between the two is what `claim` rounded off from the run before.
        talc.oom_handler.last = unsafe {
            match follows {
                Some((base, _)) => talc.extend(last, Span::new(base, run.get_base_acme().ok_or(())?.1)),
                None => talc.claim(run)?,
            }
        };
        Ok(())
    }
}

/// The allocator. `entry!` makes one the global allocator.
pub struct Heap(Talck<RawLock, Grow>);

impl Heap {
    /// An allocator with no memory yet.
    #[expect(clippy::new_without_default, reason = "made once, as a static, by entry!")]
    pub const fn new() -> Self {
        Self(Talc::new(Grow { last: Span::empty() }).lock())
    }
}

// SAFETY: the inner allocator keeps the contract; this only passes calls on.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A block that may become a device's buffer: disks past the host's page cache want such.
        let align = if layout.size() >= PAGE_SIZE as usize { SECTOR } else { 1 };
        let layout = layout.align_to(align).unwrap_or(layout);
        // SAFETY: as the caller of this promised; more alignment than that is no less.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller of this promised.
        unsafe { self.0.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller of this promised.
        unsafe { self.0.realloc(pointer, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    fn allocate(heap: &Heap, size: usize) -> *mut u8 {
        let layout = Layout::from_size_align(size, 16).unwrap();
        // SAFETY: `alloc` needs a size that is not zero, which all callers give.
        unsafe { heap.alloc(layout) }
    }

    #[test]
    fn the_heap_takes_frames_as_it_needs_them() {
        let heap = Heap::new();
        let before = crate::frames::available();
        let first = allocate(&heap, 1000);
        assert_eq!(crate::frames::available(), before - GROWTH);
        assert!(allocate(&heap, (before * PAGE_SIZE) as usize).is_null(), "there is not so much");
        assert!(!allocate(&heap, 3 << 20).is_null());
        let left = crate::frames::available();
        assert!((before - left) * PAGE_SIZE < 4 << 20, "not a power of two, but what is needed");
        let layout = Layout::from_size_align(1000, 16).unwrap();
        // SAFETY: `first` came from this heap with this layout, and nothing else uses it.
        let grown = unsafe {
            first.write_bytes(7, 1000);
            heap.realloc(first, layout, 2000)
        };
        // SAFETY: the 1000 bytes that were written were kept by `realloc`, which gave 2000.
        assert!(unsafe { core::slice::from_raw_parts(grown, 1000) }.iter().all(|byte| *byte == 7));
        // SAFETY: `grown` came from this heap with this layout, and nothing uses it any more.
        unsafe { heap.dealloc(grown, Layout::from_size_align(2000, 16).unwrap()) };
        assert_eq!(crate::frames::available(), left, "what the heap has, it keeps");
        fake::finish();
    }

    #[test]
    fn the_heap_and_frames_share_all_memory() {
        let heap = Heap::new();
        let mut frames = std::vec::Vec::new();
        while let Ok(frame) = crate::frames::allocate(0) {
            frames.push(frame);
        }
        assert!(allocate(&heap, 16).is_null());
        frames.truncate(frames.len() / 2);
        let mut allocated = 0;
        while !allocate(&heap, 1 << 16).is_null() {
            allocated += 1;
        }
        assert!(allocated >= 32, "{allocated}");
    }
}

//! The global allocator: `talc`, on all memory that the host calls usable.
//!
//! Allocation masks upcalls for its duration, so event handlers may allocate, too.

#![expect(unsafe_code, reason = "the memory that the allocator is given")]

use crate::upcall::Masked;
use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicBool, Ordering};
use hv_abi::boot::region;
use talc::{ErrOnOom, Span, Talc, Talck};

/// A lock that masks this vCPU's upcalls while it is held.
pub struct UpcallLock {
    locked: AtomicBool,
    was_masked: AtomicBool,
}

// SAFETY: `lock` returns only when `locked` went from false to true, `unlock` sets it back, so one holder at a time.
unsafe impl lock_api::RawMutex for UpcallLock {
    const INIT: Self = Self { locked: AtomicBool::new(false), was_masked: AtomicBool::new(false) };
    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        let was_masked = Masked::set();
        while self.locked.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        self.was_masked.store(was_masked, Ordering::Relaxed);
    }

    fn try_lock(&self) -> bool {
        let was_masked = Masked::set();
        let free = !self.locked.swap(true, Ordering::Acquire);
        if free {
            self.was_masked.store(was_masked, Ordering::Relaxed);
        } else {
            Masked::restore(was_masked);
        }
        free
    }

    unsafe fn unlock(&self) {
        let was_masked = self.was_masked.load(Ordering::Relaxed);
        self.locked.store(false, Ordering::Release);
        Masked::restore(was_masked);
    }
}

/// The allocator. `entry!` makes one the global allocator.
pub struct Heap(Talck<UpcallLock, ErrOnOom>);

impl Heap {
    /// An allocator with no memory yet.
    #[expect(clippy::new_without_default, reason = "made once, as a static, by entry!")]
    pub const fn new() -> Self {
        Self(Talc::new(ErrOnOom).lock())
    }

    /// Takes all memory that is usable. To be called once.
    pub(crate) fn claim_memory(&self) {
        let usable = crate::memory::map().iter().filter(|r| r.kind == region::USABLE && r.start.0 != 0);
        for run in usable {
            let start = crate::boot::at::<u8>(run.start).cast_mut();
            let span = Span::from_base_size(start, run.length as usize);
            // SAFETY: `claim` needs memory that is readable, writable and nobody else's. The host's map calls it usable,
            // so neither image, stack nor boot information is in it, and only this function takes from the map.
            // A run that is too small to hold the allocator's own data is refused and left alone.
            let _ = unsafe { self.0.lock().claim(span) };
        }
    }
}

// SAFETY: the inner allocator keeps the contract; this only passes calls on.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller of this promised.
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
    use crate::events::{Channel, without_upcalls};
    use crate::fake;

    fn allocate(heap: &Heap, size: usize) -> *mut u8 {
        let layout = Layout::from_size_align(size, 16).unwrap();
        // SAFETY: `alloc` needs a size that is not zero, which all callers give.
        unsafe { heap.alloc(layout) }
    }

    #[test]
    fn the_heap_is_the_memory_that_the_map_calls_usable() {
        let heap = Heap::new();
        assert!(allocate(&heap, 1).is_null(), "it has no memory yet");
        heap.claim_memory();
        let usable = crate::memory::map().iter().find(|run| run.kind == region::USABLE).unwrap();
        let inside = usable.start.0..usable.start.0 + usable.length;
        let first = allocate(&heap, 1000);
        assert!(inside.contains(&(first.addr() as u64)));
        assert!(allocate(&heap, usable.length as usize).is_null());
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
        fake::finish();
    }

    #[test]
    fn a_lock_that_another_vcpu_holds_leaves_upcalls_unmasked() {
        let lock = UpcallLock { locked: AtomicBool::new(true), was_masked: AtomicBool::new(false) };
        assert!(!lock_api::RawMutex::try_lock(&lock));
        fake::finish();
    }

    #[test]
    fn the_lock_masks_upcalls_and_goes_back_to_what_was_before() {
        static LOCK: lock_api::Mutex<UpcallLock, u32> = lock_api::Mutex::new(0);
        fn count(_: Channel) {
            *LOCK.lock() += 1;
        }
        let channel = Channel::allocate().unwrap();
        channel.on_event(count);
        let held = LOCK.lock();
        fake::raise(channel);
        assert!(LOCK.try_lock().is_none());
        assert_eq!(*held, 0);
        drop(held);
        assert_eq!(*LOCK.lock(), 1, "the event was handled when the lock was given back");
        without_upcalls(|| {
            drop(LOCK.try_lock().unwrap());
            fake::raise(channel);
            assert_eq!(*LOCK.lock(), 1, "upcalls were masked before the lock was taken");
        });
        assert_eq!(*LOCK.lock(), 2);
        fake::finish();
    }
}

//! Boot information and addresses.

#![expect(unsafe_code, reason = "looking at memory through both of its addresses")]

use crate::phys;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use guest_sdk::boot::info;
use guest_sdk::events::without_upcalls;
use guest_sdk::hv_abi::address::{DIRECT_MAP, MAX_MEMORY};
use guest_sdk::hv_abi::boot::{BootInfo, MAGIC, MemoryRegion, region};
use guest_sdk::hv_abi::{ABI_VERSION, Call, PAGE_SIZE};

/// Where guest-physical `start` is in the direct map, as a word that may be changed.
fn word(start: u64) -> &'static AtomicU64 {
    assert!(start.is_multiple_of(8) && start < info().memory_size, "{start:#x}");
    let at = core::ptr::with_exposed_provenance((info().direct_map + start) as usize);
    // SAFETY: the reference needs aligned memory that is there and is accessed as an atomic only.
    // 1. Aligned and there: just checked, and the direct map has all of guest memory.
    // 2. Atomic: the users of this function run alone, on one vCPU with upcalls masked, and put back what they change.
    unsafe { &*at }
}

guest_sdk::tests! {
    "BOOT-001" fn magic_and_version_are_right() {
        assert_eq!((info().magic, info().abi_version), (MAGIC, ABI_VERSION));
    }

    "BOOT-002" fn the_size_is_at_least_that_of_version_1() {
        assert!(info().size >= 184 && info().size as usize >= size_of::<BootInfo>(), "{}", info().size);
    }

    "BOOT-004" fn features_are_what_the_call_says() {
        assert_eq!(crate::raw(Call::FEATURES, []), Ok(info().features.bits()));
    }

    "BOOT-005" fn the_memory_size_is_whole_pages_and_not_too_much() {
        let size = info().memory_size;
        assert!(size > 0 && size.is_multiple_of(PAGE_SIZE) && size <= MAX_MEMORY, "{size:#x}");
    }

    "BOOT-006" fn what_the_guest_is_told_lies_below_the_image() {
        let start = info() as *const BootInfo as u64 - info().direct_map;
        let line = info().command_line;
        let map = info().memory_map;
        assert!(line.length > 0, "this test has an argument");
        for (start, length) in [
            (start, info().size.into()),
            (line.start.0, line.length),
            (map.start.0, map.length * size_of::<MemoryRegion>() as u64),
        ] {
            assert!(start >= 0x1000 && start + length <= 0x1_0000, "{start:#x} + {length:#x}");
        }
    }

    "BOOT-007" fn the_memory_map_covers_all_memory_in_order() {
        let mut end = 0;
        for run in guest_sdk::memory::map() {
            assert_eq!(run.start.0, end, "a gap or an overlap: {run:?}");
            assert!(run.length > 0 && run.length.is_multiple_of(PAGE_SIZE), "{run:?}");
            end += run.length;
        }
        assert_eq!(end, info().memory_size);
    }

    "BOOT-012" fn without_a_ramdisk_its_length_is_0() {
        assert_eq!(info().ramdisk.length, 0);
        assert!(guest_sdk::memory::map().iter().all(|run| run.kind != region::RAMDISK));
    }

    "BOOT-015" fn extended_state_has_x87_and_sse() {
        assert_eq!(info().xstate_mask & 3, 3);
        assert!(info().xstate_size >= 576, "{}", info().xstate_size);
    }

    "ADDRESS-001" fn every_page_can_be_read_and_written_in_the_direct_map() {
        without_upcalls(|| {
            for page in (0..info().memory_size).step_by(PAGE_SIZE as usize) {
                for at in [page, page + PAGE_SIZE - 8] {
                    word(at).fetch_or(0, SeqCst); // a write, of what is there: it may be this very code
                }
            }
        });
    }

    "ADDRESS-001" fn the_direct_map_shows_each_page_once() {
        static OLD: [AtomicU64; 4096] = [const { AtomicU64::new(0) }; 4096];
        let step = (info().memory_size / OLD.len() as u64).next_multiple_of(PAGE_SIZE);
        let of_the_image =
            |at| guest_sdk::memory::map().iter().any(|run| run.kind == region::IMAGE && at >= run.start.0 && at < run.start.0 + run.length);
        let places = || (0..).map(|i| i * step).take_while(|at| *at < info().memory_size).zip(&OLD).filter(|(at, _)| !of_the_image(*at));
        let wrong = without_upcalls(|| {
            places().for_each(|(at, old)| old.store(word(at).swap(!at, SeqCst), SeqCst));
            // Nothing is asserted before the old values are back: some are the allocator's.
            let wrong = places().filter(|(at, _)| word(*at).load(SeqCst) != !at).count();
            places().for_each(|(at, old)| word(at).store(old.load(SeqCst), SeqCst));
            wrong
        });
        assert_eq!(wrong, 0, "words that did not keep what was stored");
    }

    "ADDRESS-002" fn the_direct_map_is_where_the_constant_says() {
        assert_eq!(info().direct_map, DIRECT_MAP);
    }

    "ADDRESS-003" fn the_image_and_the_direct_map_are_the_same_memory() {
        static IN_IMAGE: AtomicU64 = AtomicU64::new(0);
        let in_direct_map = word(phys(&IN_IMAGE));
        IN_IMAGE.store(1, SeqCst);
        assert_eq!(in_direct_map.load(SeqCst), 1);
        in_direct_map.store(2, SeqCst);
        assert_eq!(IN_IMAGE.load(SeqCst), 2);
    }
}

//! Addresses: what a pointer of the guest's is to the host.
//!
//! The host is only ever told guest-physical addresses. The image's own memory, its stack included, is mapped
//! where it is physically, and all memory is mapped once more in the direct map, so both translations are
//! arithmetic. What lies in an area is found in the page tables.

#![expect(unsafe_code, reason = "symbols of the linker script, and memory of the direct map")]

use hv_abi::GuestPhys;
#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
use hv_abi::address::{KERNEL_SPACE, SLOT_255};
use hv_abi::boot::MemoryRegion;

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
unsafe extern "C" {
    static __hv_image_start: u8;
    static __hv_image_end: u8;
}

/// Where `values` is in guest-physical memory, if it is in memory that the host can see: the image, its stack, the
/// direct map, which the heap is in, or an [`Area`](crate::area::Area).
pub fn phys_of<T>(values: &[T]) -> Option<GuestPhys> {
    // Exposed, for the host reads what is there: stores before the call must be made before the call.
    translate(values.as_ptr().expose_provenance() as u64, size_of_val(values) as u64, false)
}

/// As [`phys_of`], for memory that the host is to write.
pub fn phys_of_mut<T>(values: &mut [T]) -> Option<GuestPhys> {
    let length = size_of_val(values) as u64;
    translate(values.as_mut_ptr().expose_provenance() as u64, length, true)
}

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
fn translate(start: u64, length: u64, _: bool) -> Option<GuestPhys> {
    if length == 0 {
        return Some(GuestPhys(0));
    }
    let end = start.checked_add(length)?;
    let image = (&raw const __hv_image_start).addr() as u64..=(&raw const __hv_image_end).addr() as u64;
    if image.contains(&start) && image.contains(&end) {
        return Some(GuestPhys(start));
    }
    if (KERNEL_SPACE..SLOT_255).contains(&start) {
        return crate::area::phys_of(start, length);
    }
    let info = crate::boot::info();
    let offset = start.checked_sub(info.direct_map)?;
    (offset + length <= info.memory_size).then_some(GuestPhys(offset))
}

#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
fn translate(start: u64, length: u64, writable: bool) -> Option<GuestPhys> {
    Some(if length == 0 { GuestPhys(0) } else { crate::fake::lend(start, length, writable) })
}

/// Where guest-physical memory is in the direct map.
pub fn in_direct_map(start: GuestPhys) -> *mut u8 {
    crate::boot::at::<u8>(start).cast_mut()
}

/// All of guest-physical memory and what it is used for, sorted.
pub fn map() -> &'static [MemoryRegion] {
    let table = crate::boot::info().memory_map;
    // SAFETY: the host has put `length` entries there before the first instruction, in memory that the map itself
    // keeps out of `USABLE`, and frames are made of only that.
    unsafe { core::slice::from_raw_parts(crate::boot::at(table.start), table.length as usize) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use hv_abi::PAGE_SIZE;
    use hv_abi::boot::region;

    #[test]
    fn the_map_is_sorted_and_covers_all_memory() {
        for ramdisk in [&b""[..], b"some"] {
            fake::set_ramdisk(ramdisk);
            let mut end = 0;
            for run in map() {
                assert_eq!(run.start.0, end, "a gap or an overlap");
                assert!(run.length > 0 && run.length.is_multiple_of(PAGE_SIZE));
                end += run.length;
            }
            assert_eq!(end, crate::boot::info().memory_size);
            let ramdisks = map().iter().filter(|run| run.kind == region::RAMDISK);
            assert_eq!(ramdisks.count(), usize::from(!ramdisk.is_empty()));
        }
    }

    #[test]
    fn an_empty_slice_is_nowhere_and_a_full_one_where_it_is() {
        let values = [1_u64, 2];
        assert_eq!(phys_of(&values[..0]), Some(GuestPhys(0)));
        assert_eq!(phys_of_mut::<u8>(&mut []), Some(GuestPhys(0)));
        assert_eq!(phys_of(&values[1..]), Some(GuestPhys(values[1..].as_ptr().addr() as u64)));
    }
}

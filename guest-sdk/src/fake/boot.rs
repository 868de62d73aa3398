//! The fake VM's boot information and memory.

use super::state::vm;
use core::sync::atomic::Ordering::SeqCst;
use hv_abi::boot::{Blob, BootInfo, MAGIC, MemoryRegion, region};
use hv_abi::{ABI_VERSION, CpuFeatures, Features, GuestPhys, PAGE_SIZE};
use std::boxed::Box;
use std::vec;
use std::vec::Vec;

/// Memory that the map calls usable.
const USABLE: u64 = 8 << 20;

/// What it is aligned to, for the sake of large pages.
const ALIGNMENT: u64 = 2 << 20;

/// Makes sure that there is boot information. It is leaked, since the guest may keep references into it.
pub(crate) fn ensure() {
    if super::Info.load(SeqCst).is_null() {
        // SAFETY: `set` needs what is as good as a host's, and stays: all that it points to has been leaked with its
        // provenance exposed, and only this module writes any of it, before this.
        unsafe { crate::boot::set(Box::leak(Box::new(build()))) };
    }
}

fn build() -> BootInfo {
    let host = vm().host.borrow();
    let settings = &host.settings;
    let ramdisk_length = settings.ramdisk.len() as u64;
    let ramdisk_pages = ramdisk_length.next_multiple_of(PAGE_SIZE);
    let (start, memory) = pages(USABLE + ramdisk_pages + PAGE_SIZE);
    let ramdisk = start + USABLE;
    let root = ramdisk + ramdisk_pages;
    memory[USABLE as usize..][..settings.ramdisk.len()].copy_from_slice(&settings.ramdisk);

    // All below what the guest may have counts as its image, so that the map has no gap.
    let region = |start, length, kind, flags| MemoryRegion { start: GuestPhys(start), length, kind, flags };
    let mut map =
        vec![region(0, start, region::IMAGE, 0), region(start, USABLE, region::USABLE, region::ZERO)];
    if ramdisk_pages > 0 {
        map.push(region(ramdisk, ramdisk_pages, region::RAMDISK, 0));
    }
    map.push(region(root, PAGE_SIZE, region::ROOT, 0));
    BootInfo {
        magic: MAGIC,
        abi_version: ABI_VERSION,
        size: size_of::<BootInfo>() as u32,
        features: settings.features,
        memory_size: root + PAGE_SIZE,
        direct_map: 0,
        vcpus: 1,
        reserved: 0,
        command_line: leak(settings.arguments.join("\0").into_bytes()),
        ramdisk: if ramdisk_length > 0 { blob(ramdisk, ramdisk_length) } else { Blob::default() },
        memory_map: leak(map),
        devices: leak(super::devices::table()),
        kernel_root: GuestPhys(if settings.features.contains(Features::MMU) { root } else { 0 }),
        cpu_features: CpuFeatures::empty(),
        xstate_size: 576,
        xstate_mask: 0b11,
        tsc_hz: 1_000_000_000,
        seed: *b"always the same, for tests' sake",
    }
}

/// Zeroed memory and its address. What of it is never used costs nothing.
fn pages(length: u64) -> (u64, &'static mut [u8]) {
    let all = vec![0_u8; (length + ALIGNMENT) as usize].leak();
    let unaligned = all.as_ptr().align_offset(ALIGNMENT as usize);
    let memory = &mut all[unaligned..][..length as usize];
    (memory.as_mut_ptr().expose_provenance() as u64, memory)
}

fn leak<T>(values: Vec<T>) -> Blob {
    let values = values.leak();
    blob(values.as_mut_ptr().expose_provenance() as u64, values.len() as u64)
}

fn blob(start: u64, length: u64) -> Blob {
    Blob { start: GuestPhys(start), length }
}

//! Page tables that are hostile: the guest kernel's own, filled with whatever may hurt, and used at once.

#![expect(unsafe_code, reason = "whatever address the tables lead to")]

use crate::Numbers;
use alloc::boxed::Box;
use alloc::vec::Vec;
use fastrand::Rng;
use guest_sdk::boot::info;
use guest_sdk::hv_abi::address::{DIRECT_MAP, KERNEL_SPACE, SLOT_255};
use guest_sdk::hv_abi::mmu::{Entry, MmuUpdate};
use guest_sdk::hv_abi::{GuestPhys, PAGE_SIZE};
use guest_sdk::hypercall::{mmu_flush, mmu_update, root_create, root_destroy};
use guest_sdk::memory::phys_of;

const ALL: Entry = Entry::PRESENT.union(Entry::WRITE);

#[repr(align(4096))]
struct Table([u64; 512]);

/// Fills the guest kernel's tables at random, by calls and by plain stores, and touches what they may map. The image and the
/// direct map, which it goes on with, must stay. What is not mapped ends the VM.
pub fn kernel([seed, count, _]: Numbers) {
    let mut random = Rng::with_seed(seed);
    let tables: Vec<GuestPhys> = (0..6)
        .map(|_| phys_of(&Box::leak(Box::new(Table([0; 512]))).0).expect("the heap is in guest memory"))
        .chain([info().kernel_root])
        .collect();
    // At first everything leads somewhere: to one of them.
    for table in &tables {
        let entry = |i: u64| GuestPhys(table.0 + i * 8);
        let mut lead = |i: u64| {
            let to = tables[random.usize(..tables.len())];
            MmuUpdate { entry: entry(i), new: Entry::new(to, ALL).bits(), ..MmuUpdate::default() }
        };
        let mut updates: Vec<_> = (0..512).map(&mut lead).collect(); // those of the host's slots are refused
        let _ = mmu_update(&mut updates, 0);
    }
    for _ in 0..count {
        let table = tables[random.usize(..tables.len())];
        let index = [random.u64(..512), 0, 31, 32, 33, 254, 255, 511][random.usize(..8)];
        let at = GuestPhys(table.0 + index * 8);
        let new = value(&mut random, &tables);
        if random.u8(..4) == 0 {
            // SAFETY: a word of a table of this function's, or of the root, to which nobody has a reference.
            unsafe {
                core::ptr::with_exposed_provenance_mut::<u64>((DIRECT_MAP + at.0) as usize)
                    .write_volatile(new)
            };
        } else {
            let flags = random.u64(..2);
            let _ = mmu_update(&mut [MmuUpdate { entry: at, new, ..MmuUpdate::default() }], flags);
        }
        match random.u8(..16) {
            0 => drop(mmu_flush(info().kernel_root, 0, 0)),
            1 => drop((root_create(table), root_destroy(table))),
            2 => touch(&mut random),
            _ => {}
        }
    }
}

/// An entry that leads somewhere that may hurt: a table, itself included, a page, all of the guest's memory, or nowhere.
fn value(random: &mut Rng, tables: &[GuestPhys]) -> u64 {
    let phys = match random.u8(..8) {
        0 => crate::hurtful(random) & Entry::ADDRESS,
        1 => random.u64(..info().memory_size) & !0x1f_ffff | Entry::LARGE.bits(),
        _ => tables[random.usize(..tables.len())].0,
    };
    let rights = match random.u8(..4) {
        0 => random.u64(..),
        _ => 0,
    };
    phys | rights & !Entry::ADDRESS | Entry::PRESENT.bits()
}

/// Reads somewhere in the kernel's own addresses, or at an end of what is the host's.
fn touch(random: &mut Rng) {
    let slot = [33, 33, 254, random.u64(33..255)][random.usize(..4)];
    let address = match random.u8(..8) {
        0 if random.u8(..16) == 0 => [0x7000, 1 << 39, KERNEL_SPACE - PAGE_SIZE][random.usize(..3)],
        0 => SLOT_255 - PAGE_SIZE,
        _ => slot << 39 | random.u64(..1 << 27) << 12,
    };
    // SAFETY: not met, where nothing is mapped: the VM ends. Where something is, it is guest memory.
    core::hint::black_box(unsafe { (address as *const u64).read_volatile() });
}

//! Page tables that are hostile: filled with whatever may hurt, or made to cost the host as much as can be.

#![expect(unsafe_code, reason = "whatever address the tables lead to")]

use crate::Numbers;
use alloc::boxed::Box;
use alloc::vec::Vec;
use fastrand::Rng;
use guest_sdk::boot::info;
use guest_sdk::hv_abi::Status;
use guest_sdk::hv_abi::address::{DIRECT_MAP, KERNEL_SPACE, SLOT_255};
use guest_sdk::hv_abi::mmu::{Entry, MmuUpdate};
use guest_sdk::hv_abi::user::{RFLAGS_FIXED, UserContext, trap};
use guest_sdk::hv_abi::{GuestPhys, PAGE_SIZE};
use guest_sdk::hypercall::{block, enter_user, mmu_flush, root_create, root_destroy};
use guest_sdk::memory::phys_of;
use guest_sdk::println;

const ALL: Entry = Entry::PRESENT.union(Entry::WRITE);

/// A page.
#[repr(align(4096))]
pub struct Table(pub [u64; 512]);

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

/// A new page, and its P.
pub fn table() -> (&'static mut Table, GuestPhys) {
    let table = Box::leak(Box::new(Table([0; 512])));
    let phys = phys_of(&table.0).expect("the heap is in guest memory");
    (table, phys)
}

/// Where programs have their code, what they load at 1 GiB strides, and what they load page by page.
const CODE: u64 = 0x40_0000;
const SPARSE: u64 = 1 << 39;
const SINGLE: u64 = 200 << 39;
/// Pages of the last kind: neighbours in V are none in P, so each is a mapping of its own.
const SINGLES: u64 = 30_000;

/// Makes `roots` roots, runs programs under some of them whose pages lie as far from each other as can be, and stays, unless it is to end. All
/// roots share what is below them, so that it costs the guest next to nothing.
pub fn spread([roots, entered, ends]: Numbers) {
    let user = Entry::PRESENT | Entry::WRITE | Entry::USER;
    let (_, page) = table();
    // Every entry of three tables leads to the next one, the last one's to the page.
    let all_of = |below: GuestPhys, entries: usize| {
        let (table, phys) = table();
        table.0[..entries].fill(Entry::new(below, user).bits());
        phys
    };
    let sparse = all_of(all_of(all_of(page, 1), 1), 512);
    let singles = singles(user, page);
    let (code, code_page) = table();
    code.0[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    let first = all_of(all_of(all_of(code_page, 512), 512), 512);
    let mut made = Vec::new();
    for _ in 0..roots {
        let (root, phys) = table();
        root.0[0] = Entry::new(first, user).bits();
        root.0[1..200].fill(Entry::new(sparse, user).bits());
        root.0[200] = Entry::new(singles, user).bits();
        root_create(phys).expect("so many roots");
        made.push(phys);
    }
    for (i, root) in (0..entered).zip(made.iter().rev()) {
        loads(*root, SPARSE, 1 << 30, if i + 64 < entered { 50 } else { 300 });
    }
    loads(made[0], SINGLE, PAGE_SIZE, SINGLES);
    loads(made[0], SPARSE, 1 << 30, 10_000);
    println!("spread");
    if ends != 0 {
        return;
    }
    block(guest_sdk::hv_abi::call::NEVER);
}

/// `1: mov al, [rdi]; add rdi, rsi; dec rcx; jnz 1b; syscall`, in words.
const PROGRAM: [u64; 2] = [
    u64::from_le_bytes([0x8a, 0x07, 0x48, 0x01, 0xf7, 0x48, 0xff, 0xc9]),
    u64::from_le_bytes([0x75, 0xf6, 0x0f, 0x05, 0xcc, 0xcc, 0xcc, 0xcc]),
];

/// Tables in which `SINGLES` pages lead to two, one after the other.
fn singles(user: Entry, page: GuestPhys) -> GuestPhys {
    let ((upper, upper_phys), (middle, middle_phys)) = (table(), table());
    upper.0[0] = Entry::new(middle_phys, user).bits();
    let (_, other) = table();
    for entry in &mut middle.0[..SINGLES.div_ceil(512) as usize] {
        let (lowest, phys) = table();
        (0..512).for_each(|i| lowest.0[i] = Entry::new([page, other][i % 2], user).bits());
        *entry = Entry::new(phys, user).bits();
    }
    upper_phys
}

/// Runs a program under a root that loads `count` times, `stride` apart, from `start` on.
fn loads(root: GuestPhys, start: u64, stride: u64, count: u64) {
    let (area, xstate) = table(); // a page is enough without AMX, which is no part of what guests get
    area.0[3] = 0x1f80; // MXCSR
    let context = UserContext {
        rip: CODE,
        rdi: start,
        rsi: stride,
        rcx: count,
        xstate,
        xstate_valid: 1,
        rflags: RFLAGS_FIXED,
        ..UserContext::default()
    };
    let context = Box::leak(Box::new(context));
    // SAFETY: the program reads pages of this function's, and stores nothing. Context and area are leaked.
    while unsafe { enter_user(root, context) }.expect("a good context") == trap::INTERRUPTED {}
    assert_eq!((context.trap, context.rdi), (trap::SYSCALL, start + stride * count), "{context:x?}");
}

/// As the hypercall, of any entry.
fn mmu_update(updates: &mut [MmuUpdate], flags: u64) -> Result<(), Status> {
    // SAFETY: none is given: this guest attacks, itself included, and what it changes is what it is ended for.
    unsafe { guest_sdk::hypercall::mmu_update(updates, flags) }
}

//! The guest kernel's own page tables, and what it reaches by them.
//!
//! What they do not allow ends the VM, so that part is acts, for `tests/src/scenarios/memory.rs`.

#![expect(unsafe_code, reason = "memory, code and stacks at addresses that the tests map")]

use crate::mmu::{large_page, store};
use crate::probe::{self, SEEN};
use crate::program::{Space, TABLE, numbered, page, set, span, word};
use crate::{acts, memory_size, phys, timer_soon};
use alloc::boxed::Box;
use core::arch::asm;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use guest_sdk::boot::info;
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::address::{DIRECT_MAP, KERNEL_SPACE, SLOT_255};
use guest_sdk::hv_abi::boot::region;
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::hv_abi::mmu::{EAGER, Entry, MmuUpdate};
use guest_sdk::hv_abi::{Call, GuestPhys, PAGE_SIZE, Status};
use guest_sdk::hypercall::{mmu_flush, root_create, root_destroy, timer_set, version};

/// Where the tests map something: each level has an index of its own.
pub const SPOT: u64 = KERNEL_SPACE + (3 << 39 | 5 << 30 | 7 << 21 | 9 << 12);

/// Rights of a page: all, and not for user mode, which means nothing.
const PAGE: Entry = Entry::PRESENT.union(Entry::WRITE);

/// `ret`, and a number.
const RET: u64 = 0xc3;

/// A word that is mapped, or that is told to be by the tables.
fn load(virt: u64) -> u64 {
    at(virt).load(SeqCst)
}

fn at(virt: u64) -> &'static AtomicU64 {
    let word = core::ptr::with_exposed_provenance(virt as usize);
    // SAFETY: the reference needs memory that is there, aligned and accessed as an atomic only. The tests map pages that are
    // leaked and exposed, and look at them by this alone; where nothing is mapped the VM ends, and the test with it.
    unsafe { &*word }
}

/// Calls what is at an address: a `ret`.
fn execute(virt: u64) {
    // SAFETY: the tests have put a `ret` there, which changes nothing.
    unsafe { asm!("call {}", in(reg) virt) };
}

/// A page that can be executed, loaded and stored to.
fn callable() -> GuestPhys {
    let new = page();
    new.0[0] = RET;
    GuestPhys(phys(new))
}

/// Makes a sparse half of the lower half's addresses lead to one page: each 1 GiB has it once. Gives how many there are.
fn sparse(space: &mut Space, to: GuestPhys) -> u64 {
    let start = KERNEL_SPACE + (8 << 39);
    space.map(start, to, PAGE);
    let entries = [3, 4].map(|level| (span(level), space.entry_at(start, level)));
    let [(_, of_gib), (_, of_slot)] = entries;
    for i in 1..512 {
        set(GuestPhys(of_gib.0 + i * 8), Entry::from_bits_retain(word(of_gib)), 0).unwrap();
    }
    let slots = (SLOT_255 - start) / span(4);
    for i in 1..slots {
        set(GuestPhys(of_slot.0 + i * 8), Entry::from_bits_retain(word(of_slot)), 0).unwrap();
    }
    slots * 512
}

/// Loads from some of those addresses, spread over all.
fn touch_sparse(all: u64, range: Range<u64>, expected: u64) {
    for i in range {
        let place = i * 7919 % all;
        assert_eq!(load(KERNEL_SPACE + (8 << 39) + (place << 30)), expected, "address {place}");
    }
}

guest_sdk::tests! {
    "BOOT-016" fn the_kernels_root_is_a_page_of_zeros_of_its_own() {
        let root = info().kernel_root;
        let holds = |run: &&guest_sdk::hv_abi::boot::MemoryRegion| run.kind == region::ROOT;
        let regions: alloc::vec::Vec<_> = guest_sdk::memory::map().iter().filter(holds).collect();
        assert_eq!(regions.len(), 1, "{regions:?}");
        assert_eq!((regions[0].start, regions[0].length), (root, PAGE_SIZE));
        assert!(root.0 != 0 && (0..512).all(|i| word(GuestPhys(root.0 + i * 8)) == 0));
    }

    "ROOT_CREATE-005 ROOT_DESTROY-005 MMU_FLUSH-007" fn the_kernels_root_is_a_root_that_stays() {
        let root = info().kernel_root;
        assert_eq!((root_create(root), root_destroy(root)), (Err(Status::BUSY), Err(Status::BUSY)));
        for (start, length) in [(0, 0), (0, 1 << 47), (SPOT & !0xfff, PAGE_SIZE)] {
            assert_eq!(mmu_flush(root, start, length), Ok(()));
        }
        assert_eq!(mmu_flush(root, 1, 0), Err(Status::BAD_ARGUMENT));
    }

    "MMU_UPDATE-015 MMU_UPDATE-011" fn entries_of_the_hosts_slots_are_not_changed() {
        let (root, table) = (info().kernel_root, GuestPhys(phys(page())));
        for index in 0..512 {
            let at = GuestPhys(root.0 + index * 8);
            let allowed = (33..255).contains(&index);
            for new in [Entry::empty(), Entry::from_bits_retain(2), Entry::new(table, TABLE), Entry::empty()] {
                let expected = if allowed { Ok(()) } else { Err(Status::BAD_ARGUMENT) };
                assert_eq!(set(at, new, 0).map(drop), expected, "entry {index}");
            }
            assert_eq!(word(at), 0);
        }
    }

    "MMU-015" fn the_kernel_reads_writes_and_executes_what_its_tables_map() {
        let mut space = Space::of_the_kernel();
        let to = callable();
        for (virt, rights) in [(SPOT, PAGE), (KERNEL_SPACE, PAGE), (SLOT_255 - PAGE_SIZE, PAGE), (SPOT + (1 << 39), TABLE)] {
            space.map(virt, to, rights);
            assert_eq!(load(virt), RET);
            at(virt + 8).store(virt, SeqCst);
            assert_eq!(word(GuestPhys(to.0 + 8)), virt);
            execute(virt);
        }
        // Reading where nothing may be written, and not for user mode at any level.
        for level in 1..=4 {
            let entry = space.entry_at(SPOT, level);
            let before = Entry::from_bits_retain(word(entry));
            set(entry, (before - Entry::WRITE - Entry::USER) | Entry::NO_EXECUTE, 0).unwrap();
            assert_eq!(load(SPOT), RET, "level {level}");
            set(entry, before, 0).unwrap();
            at(SPOT + 8).store(level.into(), SeqCst);
            execute(SPOT);
        }
    }

    "MMU-016" fn image_and_direct_map_stay_whatever_the_root_says() {
        let (root, to) = (info().kernel_root, callable());
        for index in (0..33).chain(255..512) {
            for value in [Entry::new(to, TABLE).bits(), Entry::new(root, TABLE).bits(), u64::MAX] {
                store(GuestPhys(root.0 + index * 8), value);
                mmu_flush(root, 0, 0).unwrap();
                assert_eq!(version(), guest_sdk::hv_abi::ABI_VERSION);
                assert_eq!(load(DIRECT_MAP + to.0), RET);
                store(GuestPhys(root.0 + index * 8), 0);
            }
        }
    }

    "MMU-017" fn a_change_is_in_force_when_the_call_returns() {
        let (mut space, pages) = (Space::of_the_kernel(), numbered());
        for level in [1, 2, 3] {
            // Two trees that lead to the two pages, and the entry above them is changed.
            let spots = [SPOT, SPOT + span(4)];
            (0..2).for_each(|i| space.map(spots[i], pages[i], PAGE));
            let trees = spots.map(|spot| Entry::from_bits_retain(word(space.entry_at(spot, level))));
            let entry = space.entry_at(SPOT, level);
            for round in 0..100 {
                set(entry, trees[round % 2], if round % 3 == 0 { EAGER } else { 0 }).unwrap();
                assert_eq!(load(SPOT), round as u64 % 2, "level {level}, round {round}");
            }
            set(entry, trees[0], 0).unwrap();
        }
    }

    "MMU-018" fn what_is_mapped_never_faults_however_much_it_is() {
        let mut space = Space::of_the_kernel();
        let [_, one] = numbered();
        let all = sparse(&mut space, one);
        touch_sparse(all, 0..5000, 1);
        // And pages side by side, each with a neighbour from elsewhere.
        let pages = numbered();
        for i in 0..3000 {
            space.map(SPOT + i * PAGE_SIZE, pages[i as usize % 2], PAGE);
        }
        for i in (0..3000).rev().chain(0..3000) {
            assert_eq!(load(SPOT + i * PAGE_SIZE), i % 2, "page {i}");
        }
    }

    "MMU-020 MMU-018 UPCALL-010" fn calls_and_upcalls_are_made_on_a_stack_that_is_mapped() {
        const PAGES: u64 = 16;
        static ALL: AtomicU64 = AtomicU64::new(0);
        static UPDATES: AtomicU64 = AtomicU64::new(0);
        extern "C" fn on_it() {
            let (all, updates) = (ALL.load(SeqCst), UPDATES.load(SeqCst));
            // What else is touched makes an engine that has no room for all forget the stack: at any time, and in the
            // middle of a call, when all that leads to an entry is mapped anew.
            for round in 0..60 {
                touch_sparse(all, round * 211..round * 211 + 400, 1);
                assert_eq!(crate::raw(Call::MMU_UPDATE, [updates, 2, 0]), Ok(2));
                (0..20).for_each(|_| assert_eq!(version(), guest_sdk::hv_abi::ABI_VERSION));
            }
        }
        let (mut space, pages) = (Space::of_the_kernel(), numbered());
        let all = sparse(&mut space, pages[1]);
        ALL.store(all, SeqCst);
        // The one entry that all of it leads to is taken away and put back.
        let entry = space.entry(KERNEL_SPACE + (8 << 39));
        let updates = [0, word(entry)].map(|new| MmuUpdate { entry, new, ..MmuUpdate::default() });
        UPDATES.store(phys(&*Box::leak(Box::new(updates))), SeqCst);
        (0..PAGES).for_each(|i| space.map(SPOT + i * PAGE_SIZE, GuestPhys(phys(page())), PAGE));
        let top = SPOT + PAGES * PAGE_SIZE;
        probe::install(|_, _| timer_soon());
        Channel::TIMER.unmask();
        timer_soon();
        // SAFETY: the stack is mapped, aligned and nobody else's; the function keeps what its convention says, RSP is put back.
        unsafe {
            asm!("mov r12, rsp", "mov rsp, {}", "call {}", "mov rsp, r12", in(reg) top, in(reg) on_it as *const (),
                 out("r12") _, clobber_abi("sysv64"));
        }
        timer_set(NEVER);
        assert!(probe::count() > 0, "nothing has interrupted");
        assert_eq!(SEEN.in_slot_255.load(SeqCst), 0, "an upcall shows an address of the engine's");
    }

    "MMU-021" fn the_kernels_tables_are_tables_like_others() {
        let mut space = Space::of_the_kernel();
        let root = space.root;
        // A large page, whose entry has bits of the guest's; a table that is unlinked and filled by plain stores.
        let large = large_page();
        let (entry, base) = (space.entry_at(SPOT, 2), SPOT & !(span(2) - 1));
        set(entry, Entry::new(large, PAGE | Entry::LARGE) | Entry::from_bits_retain(Entry::GUEST_S | 0x60), 0).unwrap();
        assert!((0..512).step_by(7).all(|i| load(base + i * PAGE_SIZE) == i));
        let table = page();
        table.0[1] = Entry::new(GuestPhys(large.0 + 5 * PAGE_SIZE), PAGE).bits();
        set(entry, Entry::new(GuestPhys(phys(table)), TABLE), 0).unwrap();
        assert_eq!(load(base + PAGE_SIZE), 5);
        // The root as a table of its own: its last level is the tables, here to be read.
        set(GuestPhys(root.0 + 200 * 8), Entry::new(root, TABLE), 0).unwrap();
        let itself = 200_u64 << 39 | 200 << 30 | 200 << 21 | 200 << 12;
        assert_eq!(load(itself + 200 * 8), word(GuestPhys(root.0 + 200 * 8)));
        let third = 200_u64 << 39 | 200 << 30 | 200 << 21 | (SPOT >> 39) << 12;
        assert_eq!(load(third + (SPOT >> 30 & 511) * 8), word(space.entry_at(SPOT, 3)));
        // A table that a program's root reaches, too.
        let mut prober = crate::mmu::Prober::new();
        let below = prober.program.space.entry_at(SPOT, 4);
        set(below, Entry::from_bits_retain(word(space.entry_at(SPOT, 4))), 0).unwrap();
        let page = space.entry(base + 2 * PAGE_SIZE);
        let pages = numbered();
        for round in 0..20 {
            set(page, Entry::new(pages[round % 2], TABLE), 0).unwrap();
            assert_eq!(load(base + 2 * PAGE_SIZE), round as u64 % 2);
            assert_eq!(prober.load(base + 2 * PAGE_SIZE), round as u64 % 2);
        }
    }
}

/// Maps a page with all rights but one, which is missing at one level, and touches it.
pub fn entry_without(level: &str, right: &str, how: &str) {
    let mut space = Space::of_the_kernel();
    space.map(SPOT, callable(), PAGE);
    let entry = space.entry_at(SPOT, acts::number(level) as u32);
    let all = Entry::from_bits_retain(word(entry));
    let less = match right {
        "present" => all - Entry::PRESENT,
        "write" => all - Entry::WRITE,
        "execute" => all | Entry::NO_EXECUTE,
        other => panic!("no right {other:?}"),
    };
    at(SPOT + 8).store(1, SeqCst); // it has been used when it changes
    if set(entry, less, 0).is_err() {
        // It breaks a rule: by a plain store, while its table is unlinked.
        let top = space.entry_at(SPOT, 4);
        let above = Entry::from_bits_retain(word(top));
        set(top, Entry::empty(), 0).unwrap();
        store(entry, less.bits());
        set(top, above, 0).unwrap();
    }
    acts::touch(how, SPOT);
}

/// Makes an entry of the root lead to a page at all V of its slot, by a plain store, and reads in that slot: where nothing is.
pub fn fill_slot(index: u64) {
    let to = callable();
    let tables = [page(), page(), page()];
    let mut below = to;
    for table in tables {
        table.0.fill(Entry::new(below, TABLE).bits());
        below = GuestPhys(phys(&*table));
    }
    let root = info().kernel_root;
    store(GuestPhys(root.0 + index * 8), Entry::new(below, TABLE).bits());
    mmu_flush(root, 0, 0).unwrap();
    let virt = if index == DIRECT_MAP >> 39 { DIRECT_MAP + memory_size() } else { (index << 39) + 0x7000 };
    acts::touch("read", virt);
}

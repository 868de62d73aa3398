//! Page tables: what entries mean, and when a change of them is in force.

#![expect(unsafe_code, reason = "a large page of the heap, and table entries by plain stores")]

use crate::phys;
use crate::program::{CODE, DATA, HEAP, Page, Program, TABLE, TEXT, code, page, set, span, word};
use guest_sdk::hv_abi::GuestPhys;
use guest_sdk::hv_abi::mmu::{EAGER, Entry};
use guest_sdk::hv_abi::user::access::{EXECUTE, READ, WRITE};
use guest_sdk::hypercall::mmu_flush;

/// Where the tests map something: each level has an index of its own.
const SPOT: u64 = 3 << 39 | 5 << 30 | 7 << 21 | 9 << 12;

/// `syscall` at the beginning of a page that may be executed, loaded and stored to.
const CALL: u64 = 0x050f;

/// 2 MiB of memory, each page's first word its index.
pub fn large_page() -> GuestPhys {
    let layout = core::alloc::Layout::from_size_align(2 << 20, 2 << 20).expect("a good layout");
    // SAFETY: the layout's size is not 0.
    let at = unsafe { alloc::alloc::alloc_zeroed(layout) };
    assert!(!at.is_null());
    let at = at.cast::<[u64; 512]>();
    for i in 0..512 {
        // SAFETY: inside the allocation, which is aligned.
        unsafe { (*at.add(i))[0] = i as u64 };
    }
    GuestPhys(at.expose_provenance() as u64 - guest_sdk::boot::info().direct_map)
}

/// A program that loads, stores and jumps.
pub struct Prober {
    pub program: Program,
}

impl Prober {
    pub fn new() -> Self {
        Self {
            program: Program::new(code!("mov rax, [rdi]", "syscall", "mov [rdi], rax", "syscall", "jmp rdi")),
        }
    }

    /// Whether an access is allowed: otherwise it must fault, and tell it.
    #[track_caller]
    fn allowed(&mut self, virt: u64, access: u32) -> bool {
        let context = &mut self.program.context;
        context.rdi = virt;
        context.rip = TEXT + [0, 5, 10][access as usize];
        let trap = self.program.run();
        if trap == guest_sdk::hv_abi::user::trap::SYSCALL {
            return true;
        }
        assert_eq!(trap, guest_sdk::hv_abi::user::trap::PAGE_FAULT);
        assert_eq!((self.program.context.address, self.program.context.access), (virt, access));
        false
    }

    /// What is allowed, as letters.
    #[track_caller]
    pub fn rights(&mut self, virt: u64) -> [bool; 3] {
        let read = self.allowed(virt, READ);
        self.program.context.rax = CALL;
        [read, self.allowed(virt, WRITE), self.allowed(virt, EXECUTE)]
    }

    /// Loads a word.
    #[track_caller]
    pub fn load(&mut self, virt: u64) -> u64 {
        assert!(self.allowed(virt, READ), "{virt:#x}");
        self.program.context.rax
    }

    /// P of the entry for [`SPOT`] at a level.
    fn entry(&mut self, level: u32) -> GuestPhys {
        self.program.space.entry_at(SPOT, level)
    }
}

/// A page that can be called, loaded from and stored to.
fn callable() -> GuestPhys {
    let new = page();
    new.0[0] = CALL;
    GuestPhys(phys(new))
}

const NONE: [bool; 3] = [false; 3];
const ALL: [bool; 3] = [true; 3];

/// Changes `entry` in each way in which it comes to be in force.
fn put(way: usize, prober: &Prober, entry: GuestPhys, new: Entry) {
    let root = prober.program.space.root;
    set(entry, new, if way == 1 { EAGER } else { 0 }).expect("a good entry");
    match way {
        2 => mmu_flush(root, SPOT & !((1 << 39) - 1), 1 << 39).unwrap(),
        3 => mmu_flush(root, 0, 0).unwrap(),
        4 => mmu_flush(GuestPhys(0), 0, 0).unwrap(),
        _ => {}
    }
}

guest_sdk::tests! {
    "MMU-001 MMU-002 MMU-003 MMU-010" fn rights_hold_at_every_level() {
        let mut prober = Prober::new();
        let to = callable();
        prober.program.space.map(SPOT, to, TABLE);
        assert_eq!(prober.rights(SPOT), ALL);
        for level in 1..=4 {
            let entry = prober.entry(level);
            let before = Entry::from_bits_retain(word(entry));
            for (change, rights) in [
                (before - Entry::WRITE, [true, false, true]),
                (before | Entry::NO_EXECUTE, [true, true, false]),
                ((before - Entry::WRITE) | Entry::NO_EXECUTE, [true, false, false]),
                (before - Entry::USER, NONE),
                (before - Entry::PRESENT, NONE),
                (Entry::empty(), NONE),
            ] {
                for way in 0..5 {
                    put(way, &prober, entry, change);
                    assert_eq!(prober.rights(SPOT), rights, "level {level}, {change:?}");
                    put(way, &prober, entry, before);
                    assert_eq!(prober.rights(SPOT), ALL, "level {level}, back from {change:?}");
                }
            }
        }
    }

    "MMU-001 MMU-002 MMU-003" fn rights_of_all_levels_together_count() {
        let mut prober = Prober::new();
        prober.program.space.map(SPOT, callable(), TABLE);
        let entries = [1, 2, 3, 4].map(|level| prober.entry(level));
        let full = entries.map(|entry| Entry::from_bits_retain(word(entry)));
        for combination in 0..256_u32 {
            let (mut write, mut execute) = (true, true);
            for (level, (entry, full)) in entries.iter().zip(full).enumerate() {
                let (w, x) = (combination >> level & 1 != 0, combination >> (level + 4) & 1 != 0);
                (write, execute) = (write && w, execute && x);
                let without_write = if w { full } else { full - Entry::WRITE };
                set(*entry, if x { without_write } else { without_write | Entry::NO_EXECUTE }, 0).unwrap();
            }
            assert_eq!(prober.rights(SPOT), [true, write, execute], "{combination:#x}");
        }
    }

    "MMU-012 MMU-013 MMU-014" fn a_change_is_in_force_in_each_way() {
        let mut prober = Prober::new();
        let pages = crate::program::numbered();
        let entry = prober.entry(1);
        for round in 0..50 {
            for way in 0..5 {
                let to = pages[(round + way) % 2];
                put(way, &prober, entry, Entry::new(to, DATA));
                assert_eq!(prober.load(SPOT), ((round + way) % 2) as u64, "way {way}");
                if round % 3 == 0 {
                    put(way, &prober, entry, Entry::empty());
                    assert_eq!(prober.rights(SPOT), NONE);
                }
            }
        }
    }

    "MMU-004" fn a_large_page_is_512_pages() {
        let mut prober = Prober::new();
        let large = large_page();
        let entry = prober.entry(2);
        set(entry, Entry::new(large, DATA | Entry::LARGE), 0).unwrap();
        let base = SPOT & !(span(2) - 1);
        for i in (0..512).rev().step_by(7) {
            assert_eq!(prober.load(base + i * 4096), i);
        }
        assert_eq!(prober.rights(base + 8), [true, true, false]);
        assert_eq!(word(GuestPhys(large.0 + 8)), CALL);
        assert_eq!(prober.rights(base - 8), NONE);
        assert_eq!(prober.rights(base + span(2)), NONE);
        // Rights of the levels above it count, too; and it becomes a table, and a page again.
        set(entry, Entry::new(large, CODE | Entry::LARGE), 0).unwrap();
        assert_eq!(prober.rights(base + 8), [true, false, true]);
        set(entry, Entry::empty(), 0).unwrap();
        assert_eq!(prober.rights(base + 8), NONE);
        let table = page();
        table.0[1] = Entry::new(GuestPhys(large.0 + 5 * 4096), DATA).bits();
        set(entry, Entry::new(GuestPhys(phys(table)), TABLE), 0).unwrap();
        assert_eq!((prober.load(base + 4096), prober.rights(base)), (5, NONE));
        set(entry, Entry::new(large, DATA | Entry::LARGE), 0).unwrap();
        assert_eq!((prober.load(base + 4096), prober.load(base + 2 * 4096)), (1, 2));
    }

    "MMU-006 MMU_UPDATE-009" fn bits_that_are_the_guests_change_nothing() {
        let mut prober = Prober::new();
        prober.program.space.map(SPOT, callable(), TABLE);
        for level in 1..=4 {
            let entry = prober.entry(level);
            let before = word(entry);
            let bits = [5, 6, 9, 10, 11, 52, 53, 54, 55, 56, 57, 58].map(|bit| 1_u64 << bit);
            for bits in bits.into_iter().chain([Entry::GUEST_S | 0x60]) {
                assert_eq!(set(entry, Entry::from_bits_retain(before | bits), 0).map(drop), Ok(()), "{bits:#x}");
                assert_eq!(prober.rights(SPOT), ALL, "level {level}, bits {bits:#x}");
            }
            set(entry, Entry::from_bits_retain(before), 0).unwrap();
        }
    }

    "MMU-008" fn a_page_is_the_same_memory_wherever_it_is_mapped() {
        let mut two = [Prober::new(), Prober::new()];
        let data: &'static mut Page = page();
        let to = GuestPhys(phys(data));
        let places = [SPOT, SPOT + 4096, SPOT + (1 << 30), 0x7f00_0000_0000, HEAP + 0x4000];
        for prober in &mut two {
            places.iter().for_each(|place| prober.program.space.map(*place, to, DATA));
        }
        let mut value = 0;
        for writer in 0..2 {
            for place in places {
                value += 1;
                two[writer].program.context.rax = value;
                assert!(two[writer].allowed(place + 64, WRITE));
                assert_eq!(word(GuestPhys(to.0 + 64)), value);
                for prober in &mut two {
                    assert!(places.iter().all(|place| prober.load(place + 64) == value));
                }
            }
        }
    }

    "MMU-009 MMU-010" fn a_table_of_two_roots_and_of_two_places_is_one() {
        for shared in [1, 2, 3] {
            let mut two = [Prober::new(), Prober::new()];
            let to = callable();
            two[0].program.space.map(SPOT, to, TABLE);
            // The other root, and another place of the first, reach the same table.
            let table = Entry::from_bits_retain(word(two[0].entry(shared + 1)));
            let other_place = SPOT + span(shared + 1);
            for (i, place) in [(0, other_place), (1, SPOT), (1, other_place)] {
                let entry = two[i].program.space.entry_at(place, shared + 1);
                set(entry, table, 0).unwrap();
            }
            let in_all = |two: &mut [Prober; 2], rights| {
                for (i, place) in [(0, SPOT), (0, other_place), (1, SPOT), (1, other_place)] {
                    assert_eq!(two[i].rights(place), rights, "table of level {shared}, root {i}, {place:#x}");
                }
            };
            in_all(&mut two, ALL);
            for level in 1..=shared {
                let entry = two[0].entry(level);
                let before = Entry::from_bits_retain(word(entry));
                for (new, rights) in [(Entry::empty(), NONE), (before - Entry::WRITE, [true, false, true]), (before, ALL)] {
                    set(entry, new, 0).unwrap();
                    in_all(&mut two, rights);
                }
            }
            // With one root gone, it is still the other's.
            guest_sdk::hypercall::root_destroy(two[0].program.space.root).unwrap();
            let entry = two[0].entry(1);
            set(entry, Entry::empty(), 0).unwrap();
            assert_eq!((two[1].rights(SPOT), two[1].rights(other_place)), (NONE, NONE));
        }
    }

    "MMU-011 MMU-010" fn a_table_that_is_unlinked_is_plain_memory() {
        let mut prober = Prober::new();
        let pages = crate::program::numbered();
        prober.program.space.map(SPOT, pages[0], DATA);
        let (entry, above) = (prober.entry(1), prober.entry(2));
        let table = Entry::from_bits_retain(word(above));
        for round in 1..20 {
            assert_eq!(prober.load(SPOT), (round + 1) % 2);
            set(above, Entry::empty(), if round % 3 == 0 { EAGER } else { 0 }).unwrap();
            if round % 4 == 0 {
                assert_eq!(prober.rights(SPOT), NONE);
            }
            store(entry, Entry::new(pages[round as usize % 2], DATA).bits());
            set(above, table, 0).unwrap();
        }
    }

    "MMU-009" fn a_root_that_leads_to_itself_shows_its_tables() {
        let mut prober = Prober::new();
        prober.program.space.map(SPOT, callable(), TABLE);
        // The well-known trick: entry 200 is the root itself, and its last level is the tables, here to be read.
        let root = prober.program.space.root;
        set(GuestPhys(root.0 + 200 * 8), Entry::new(root, TABLE - Entry::WRITE), 0).unwrap();
        let itself = 200_u64 << 39 | 200 << 30 | 200 << 21 | 200 << 12;
        let at_4 = prober.entry(4);
        assert_eq!(prober.load(itself + 200 * 8), word(GuestPhys(root.0 + 200 * 8)));
        assert_eq!(prober.load(itself + (SPOT >> 39) * 8), word(at_4));
        let tables = 200_u64 << 39 | SPOT >> 9 & !7;
        let entry = prober.entry(1);
        assert_eq!(prober.load(tables), word(entry));
        assert!(!prober.allowed(tables, WRITE));
        set(at_4, Entry::empty(), 0).unwrap();
        assert_eq!((prober.rights(tables), prober.rights(SPOT)), (NONE, NONE));
        assert_eq!(prober.load(itself + (SPOT >> 39) * 8), 0);
    }
}

/// Changes an entry of a table that no root reaches.
pub fn store(at: GuestPhys, value: u64) {
    let virt = guest_sdk::boot::info().direct_map + at.0;
    // SAFETY: tables are leaked pages, exposed when their P was asked for, and no reference to them is in use.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(virt as usize).write_volatile(value) };
}

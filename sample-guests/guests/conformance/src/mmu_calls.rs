//! The calls that change page tables.

use crate::mmu_update;
use crate::program::{DATA, Program, TEXT, code, enter, page, word};
use crate::{memory_size, outside, phys, raw};
use alloc::boxed::Box;
use alloc::{vec, vec::Vec};
use guest_sdk::hv_abi::call::MulticallEntry;
use guest_sdk::hv_abi::mmu::{EAGER, Entry, MMU_UPDATE_MAX, MmuUpdate};
use guest_sdk::hv_abi::user::trap;
use guest_sdk::hv_abi::{Call, GuestPhys, Status};
use guest_sdk::hypercall::{mmu_flush, root_create, root_destroy};
use guest_sdk::memory::phys_of_mut;

/// A status and an old value that no update gives, to see that they are written.
fn update(entry: GuestPhys, new: u64) -> MmuUpdate {
    MmuUpdate { entry, new, old: 77, status: Status(77), reserved: 0 }
}

/// Makes one update, and gives its status and old value.
fn one(entry: GuestPhys, new: u64) -> (Status, u64) {
    let mut updates = [update(entry, new)];
    assert_eq!(mmu_update(&mut updates, 0), Ok(()));
    assert_eq!((updates[0].entry, updates[0].new, updates[0].reserved), (entry, new, 0));
    (updates[0].status, updates[0].old)
}

/// A page to change entries in.
fn table() -> GuestPhys {
    GuestPhys(phys(page()))
}

const PRESENT: u64 = 1;

guest_sdk::tests! {
    "ROOT_CREATE-001 ROOT_DESTROY-001" fn a_root_is_one_until_it_is_destroyed() {
        let mut program = Program::new(code!("syscall"));
        let root = program.space.root;
        for _ in 0..5 {
            program.context.xstate_valid = 1;
            program.calls(TEXT);
            assert_eq!(root_destroy(root), Ok(()));
            program.context.xstate_valid = 1;
            assert_eq!(enter(root, &mut program.context), Err(Status::NOT_FOUND));
            assert_eq!(mmu_flush(root, 0, 0), Err(Status::NOT_FOUND));
            assert_eq!(root_create(root), Ok(()));
        }
    }

    "ROOT_CREATE-002 ROOT_CREATE-003" fn what_is_no_page_of_memory_is_no_root() {
        let good = phys(page());
        for bad in outside(4096).into_iter().chain([0, good + 8, good + 64, good + 2048, good | 1 << 63, memory_size(), u64::MAX]) {
            assert_eq!(raw(Call::ROOT_CREATE, [bad]), Err(Status::BAD_ADDRESS), "{bad:#x}");
        }
        assert_eq!(raw(Call::ROOT_CREATE, [good]), Ok(0));
        // The last page is the heap's, which may have put something there.
        assert_ne!(raw(Call::ROOT_CREATE, [memory_size() - 4096]), Err(Status::BAD_ADDRESS));
    }

    "ROOT_CREATE-004" fn the_upper_part_of_a_root_is_zero() {
        let page = page();
        for index in 0..512 {
            for value in [1_u64, 2, 1 << 63] {
                page.0[index] = value;
                let root = GuestPhys(phys(&*page));
                let expected = if index < 255 { Ok(()) } else { Err(Status::BAD_ARGUMENT) };
                assert_eq!(root_create(root), expected, "entry {index} is {value:#x}");
                if expected.is_ok() {
                    root_destroy(root).unwrap();
                }
                page.0[index] = 0;
            }
        }
    }

    "ROOT_CREATE-005" fn a_root_is_not_made_twice() {
        let root = table();
        assert_eq!((root_create(root), root_create(root)), (Ok(()), Err(Status::BUSY)));
        assert_eq!((root_destroy(root), root_create(root)), (Ok(()), Ok(())));
    }

    "ROOT_DESTROY-002" fn what_is_no_root_is_not_destroyed() {
        let root = table();
        root_create(root).unwrap();
        for other in [0, root.0 + 8, root.0 + 4096, root.0 | 1 << 63, memory_size(), u64::MAX] {
            assert_eq!(raw(Call::ROOT_DESTROY, [other]), Err(Status::NOT_FOUND), "{other:#x}");
        }
        assert_eq!((root_destroy(root), root_destroy(root)), (Ok(()), Err(Status::NOT_FOUND)));
    }

    "ROOT_DESTROY-003" fn a_root_whose_program_has_trapped_is_not_busy() {
        for code in [code!("syscall"), code!("ud2"), code!("mov rax, [0]")] {
            let mut program = Program::new(code);
            program.run();
            assert_eq!(root_destroy(program.space.root), Ok(()));
        }
    }

    "MMU_UPDATE-001 MMU_UPDATE-003" fn updates_are_made_in_order_and_give_what_was_there() {
        let at = table();
        let other = GuestPhys(at.0 + 4088);
        let mut updates = [update(at, 2), update(other, 4), update(at, 6), update(at, 6), update(other, 0)];
        for flags in [0, EAGER] {
            let call = raw(Call::MMU_UPDATE, [phys_of_mut(&mut updates).expect("on the stack").0, 5, flags]);
            assert_eq!(call, Ok(5));
            assert!(updates.iter().all(|update| update.status.is_success()));
            let first = if flags == 0 { 0 } else { 6 };
            assert_eq!(updates.map(|update| update.old), [first, 0, 2, 6, 4]);
            assert_eq!((word(at), word(other)), (6, 0));
        }
    }

    "MMU_UPDATE-002" fn an_update_that_fails_changes_nothing_and_stops_nothing() {
        let at = table();
        let mut updates = [update(at, 2), update(GuestPhys(at.0 + 4), 4), update(at, PRESENT | 8), update(at, 6)];
        assert_eq!(mmu_update(&mut updates, 0), Ok(()));
        let results = updates.map(|update| (update.status, update.old));
        let [bad_address, bad_argument] = [Status::BAD_ADDRESS, Status::BAD_ARGUMENT].map(|status| (status, 0));
        assert_eq!(results, [(Status::SUCCESS, 0), bad_address, bad_argument, (Status::SUCCESS, 2)]);
        assert_eq!((word(at), word(GuestPhys(at.0 + 8))), (6, 0));
    }

    "MMU_UPDATE-003 MMU_UPDATE-004 MMU_UPDATE-005" fn from_none_to_the_most_are_made_and_no_more() {
        let at = table();
        let all: Vec<_> = (0..MMU_UPDATE_MAX).map(|i| update(GuestPhys(at.0 + i * 8), (i + 1) << 1)).collect();
        let mut more = all.clone();
        more.push(update(at, 0));
        let list = phys_of_mut(&mut more).expect("on the heap").0;
        for count in [MMU_UPDATE_MAX + 1, 1 << 32, u64::MAX] {
            assert_eq!(raw(Call::MMU_UPDATE, [list, count, 0]), Err(Status::OUT_OF_RANGE), "{count}");
        }
        assert_eq!((word(at), more[0].status), (0, Status(77)));
        assert_eq!(raw(Call::MMU_UPDATE, [list, 0, 0]), Ok(0));
        assert_eq!(word(at), 0);
        assert_eq!(raw(Call::MMU_UPDATE, [list, MMU_UPDATE_MAX, 0]), Ok(MMU_UPDATE_MAX));
        assert!((0..MMU_UPDATE_MAX).all(|i| word(GuestPhys(at.0 + i * 8)) == (i + 1) << 1));
    }

    "MMU_UPDATE-006" fn updates_outside_memory_or_misaligned_are_a_bad_address() {
        let at = table();
        let mut updates = vec![update(at, 2); 2];
        let list = phys_of_mut(&mut updates).expect("on the heap").0;
        for bad in outside(32).into_iter().chain([1, 2, 4, 7].map(|offset| list + offset)) {
            assert_eq!(raw(Call::MMU_UPDATE, [bad, 1, 0]), Err(Status::BAD_ADDRESS), "{bad:#x}");
        }
        assert_eq!(raw(Call::MMU_UPDATE, [memory_size() - 32, 2, 0]), Err(Status::BAD_ADDRESS));
        assert_eq!((word(at), updates[0].status), (0, Status(77)));
    }

    "MMU_UPDATE-007" fn unknown_flags_are_a_bad_argument() {
        let at = table();
        let mut updates = [update(at, 2)];
        let list = phys_of_mut(&mut updates).expect("on the stack").0;
        for bit in 1..64 {
            for flags in [1 << bit, 1 << bit | EAGER] {
                assert_eq!(raw(Call::MMU_UPDATE, [list, 1, flags]), Err(Status::BAD_ARGUMENT), "{flags:#x}");
            }
        }
        assert_eq!((word(at), updates[0].status), (0, Status(77)));
    }

    "MMU_UPDATE-008" fn an_entry_outside_memory_or_misaligned_is_a_bad_address() {
        let at = table();
        for entry in outside(8).into_iter().chain([memory_size(), u64::MAX]).chain((1..8).map(|offset| at.0 + offset)) {
            if entry <= memory_size() - 8 && entry % 8 == 0 {
                continue; // `outside` of a word has one that is inside
            }
            assert_eq!(one(GuestPhys(entry), 0), (Status::BAD_ADDRESS, 0), "{entry:#x}");
        }
        assert_eq!(one(GuestPhys(memory_size() - 8), 0).0, Status::SUCCESS);
    }

    "MMU_UPDATE-009 MMU_UPDATE-013" fn bits_that_must_be_zero_are_a_bad_argument() {
        let at = table();
        let good = at.0 | PRESENT;
        for bit in [3, 4, 8, 59, 60, 61, 62] {
            assert_eq!(one(at, good | 1 << bit), (Status::BAD_ARGUMENT, 0), "bit {bit}");
            assert_eq!(one(at, good & !PRESENT | 1 << bit).0, Status::SUCCESS, "bit {bit}, not present");
            assert_eq!(one(at, 0).0, Status::SUCCESS);
        }
        for bit in 12..21 {
            let misaligned = PRESENT | Entry::LARGE.bits() | 1 << bit;
            assert_eq!(one(at, misaligned), (Status::BAD_ARGUMENT, 0), "2 MiB, bit {bit}");
        }
        assert_eq!(one(at, PRESENT | Entry::LARGE.bits() | 2 << 20).0, Status::SUCCESS);
        for bit in [1, 2, 5, 6, 9, 10, 11, 52, 58, 63] {
            assert_eq!(one(at, good | 1 << bit).0, Status::SUCCESS, "bit {bit}");
        }
        assert_eq!(one(at, 0), (Status::SUCCESS, good | 1 << 63));
        for value in [2, u64::MAX - 1, 1 << 51, 0xffff_ffff_ffff_f000] {
            assert_eq!(one(at, value).0, Status::SUCCESS, "{value:#x}");
            assert_eq!(word(at), value);
        }
    }

    "MMU_UPDATE-010" fn a_page_that_is_not_in_memory_is_a_bad_address() {
        let at = table();
        let (size, large) = (memory_size(), Entry::LARGE.bits());
        for page in [size, size + 4096, 1 << 40, 1 << 51, 0x000f_ffff_ffff_f000] {
            assert_eq!(one(at, page | PRESENT), (Status::BAD_ADDRESS, 0), "{page:#x}");
        }
        let last = size & !0x1f_ffff;
        for page in [last, last + (2 << 20), 1 << 40, 1 << 51] {
            if page + (2 << 20) > size {
                assert_eq!(one(at, page | PRESENT | large), (Status::BAD_ADDRESS, 0), "{page:#x}");
            }
        }
        assert_eq!(one(at, (size - 4096) | PRESENT).0, Status::SUCCESS);
        assert_eq!(one(at, (last - (2 << 20)) | PRESENT | large).0, Status::SUCCESS);
        assert_eq!(one(at, PRESENT).0, Status::SUCCESS, "P 0");
        assert_eq!(one(at, 0).0, Status::SUCCESS);
    }

    "MMU_UPDATE-011" fn the_upper_part_of_a_root_is_not_changed() {
        let root = table();
        let target = phys(page());
        root_create(root).unwrap();
        for index in 0..512 {
            for new in [0, 2, target | PRESENT | DATA.bits()] {
                let expected = if index < 255 { Status::SUCCESS } else { Status::BAD_ARGUMENT };
                assert_eq!(one(GuestPhys(root.0 + index * 8), new).0, expected, "entry {index}, {new:#x}");
            }
        }
        assert!((255..512).all(|index| word(GuestPhys(root.0 + index * 8)) == 0));
        root_destroy(root).unwrap();
        assert_eq!(one(GuestPhys(root.0 + 511 * 8), 2).0, Status::SUCCESS, "no root any more");
    }

    "MMU_UPDATE-012" fn an_update_with_a_reserved_word_is_a_bad_argument() {
        let at = table();
        for reserved in [1, 1 << 31, u32::MAX] {
            let mut updates = [MmuUpdate { reserved, ..update(at, 2) }, update(GuestPhys(at.0 + 8), 2)];
            assert_eq!(mmu_update(&mut updates, 0), Ok(()));
            assert_eq!((updates[0].status, updates[0].old, word(at)), (Status::BAD_ARGUMENT, 0, 0));
            assert_eq!(updates[1].status, Status::SUCCESS);
        }
    }

    "MMU_UPDATE-014 RULE-010" fn results_are_written_behind_the_last_update() {
        // The first update changes the second's `entry`, `new`, and its results, which are then written over.
        let at = table();
        let mut updates = Box::new([update(at, 2); 5]);
        let last = phys_of_mut(&mut *updates).expect("on the heap").0 + 4 * 32;
        for (i, field) in [0, 8, 16, 24].into_iter().enumerate() {
            updates[i] = update(GuestPhys(last + field), 0x10);
        }
        let list = phys_of_mut(&mut *updates).expect("on the heap").0;
        assert_eq!(raw(Call::MMU_UPDATE, [list, 5, 0]), Ok(5));
        assert_eq!(updates[..4].iter().map(|update| update.old).collect::<Vec<_>>(), [at.0, 2, 77, 77]);
        assert_eq!(word(at), 2, "it did what it said when the call was made");
        let MmuUpdate { entry, new, old, status, reserved } = updates[4];
        assert_eq!((entry.0, new, old, status, reserved), (0x10, 0x10, 0, Status::SUCCESS, 0));
    }

    "MULTICALL-001 MMU_UPDATE-001 ROOT_CREATE-001" fn page_tables_are_changed_in_a_multicall() {
        let (root, mut updates) = (table(), [update(table(), 2), update(GuestPhys(0), 1 << 4 | PRESENT)]);
        let list = phys_of_mut(&mut updates).expect("on the stack").0;
        let entry = |call, arguments| MulticallEntry { call, arguments, ..MulticallEntry::default() };
        let mut entries = [
            entry(Call::ROOT_CREATE, [root.0, 0, 0, 0, 0]),
            entry(Call::MMU_UPDATE, [list, 2, EAGER, 0, 0]),
            entry(Call::MMU_FLUSH, [root.0, 0, 4096, 0, 0]),
            entry(Call::ROOT_DESTROY, [root.0, 0, 0, 0, 0]),
            entry(Call::MMU_FLUSH, [root.0, 0, 4096, 0, 0]),
            entry(Call::USER_XSTATE, [0; 5]),
        ];
        let all = phys_of_mut(&mut entries).expect("on the stack").0;
        assert_eq!(raw(Call::MULTICALL, [all, 6]), Ok(6));
        let results = entries.map(|entry| (entry.status, entry.value));
        let [gone, alone] = [Status::NOT_FOUND, Status::NOT_IN_MULTICALL].map(|status| (status, 0));
        let done = (Status::SUCCESS, 0);
        assert_eq!(results, [done, (Status::SUCCESS, 2), done, done, gone, alone]);
        assert_eq!(updates.map(|update| update.status), [Status::SUCCESS, Status::BAD_ARGUMENT]);
    }

    "MMU_FLUSH-001" fn a_flush_forgets_what_is_no_more() {
        let mut program = Program::new(code!("mov rax, [rdi]", "syscall"));
        let at = crate::program::HEAP + 0x10_0000;
        let pages = crate::program::numbered().map(|page| page.0);
        let root = program.space.root;
        let flushes = [(root, at, 4096), (root, at & !0x1f_ffff, 2 << 20), (root, 0, 0), (root, 0, 1 << 47), (GuestPhys(0), 0, 0)];
        let entry = program.space.entry(at);
        for round in 0..20 {
            for (i, (root, start, length)) in (round..).zip(flushes) {
                assert!(one(entry, pages[i % 2] | DATA.bits()).0.is_success());
                mmu_flush(root, start, length).unwrap();
                program.context.rdi = at;
                program.calls(TEXT);
                assert_eq!(program.context.rax, i as u64 % 2);
                assert!(one(entry, 0).0.is_success());
                mmu_flush(root, start, length).unwrap();
                program.faults(TEXT, at, 0);
            }
        }
    }

    "MMU_FLUSH-002" fn a_flush_of_what_is_no_root_is_not_found() {
        let root = table();
        for other in [root.0, 4096, memory_size(), u64::MAX] {
            assert_eq!(raw(Call::MMU_FLUSH, [other, 0, 0]), Err(Status::NOT_FOUND), "{other:#x}");
        }
        root_create(root).unwrap();
        assert_eq!(raw(Call::MMU_FLUSH, [root.0, 0, 0]), Ok(0));
        assert_eq!(raw(Call::MMU_FLUSH, [root.0 + 8, 0, 0]), Err(Status::NOT_FOUND));
    }

    "MMU_FLUSH-003 MMU_FLUSH-004 MMU_FLUSH-005" fn a_flush_of_a_range_that_cannot_be_is_a_bad_argument() {
        let root = table();
        root_create(root).unwrap();
        let half = 1_u64 << 47;
        let misaligned = [(1, 4096), (4096, 1), (8, 8), (0, 4095), (4097, 0)];
        let too_high = [(0, half + 4096), (half - 4096, 8192), (half, 4096), (1 << 63, 4096), (u64::MAX - 4095, 4096), (4096, u64::MAX - 4095)];
        for (start, length) in misaligned.into_iter().chain(too_high) {
            assert_eq!(mmu_flush(root, start, length), Err(Status::BAD_ARGUMENT), "{start:#x} + {length:#x}");
        }
        for (start, length) in [(0, 4096), (4096, 0), (4096, 4096)] {
            assert_eq!(mmu_flush(GuestPhys(0), start, length), Err(Status::BAD_ARGUMENT), "{start:#x} + {length:#x}");
        }
    }

    "MMU_FLUSH-006" fn a_flush_of_nothing_succeeds() {
        let mut program = Program::new(code!("syscall"));
        let (root, half) = (program.space.root, 1_u64 << 47);
        for (start, length) in [(0, 0), (4096, 0), (half, 0), (0, half), (half - 4096, 4096), (0, 4096), (1 << 40, 1 << 40)] {
            assert_eq!(mmu_flush(root, start, length), Ok(()), "{start:#x} + {length:#x}");
            program.calls(TEXT);
        }
        assert_eq!(mmu_flush(GuestPhys(0), 0, 0), Ok(()));
        assert_eq!(enter(root, &mut program.context), Ok(trap::EXCEPTION), "behind its one instruction");
    }
}

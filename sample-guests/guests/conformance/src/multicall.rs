//! Several calls in one crossing.

use crate::{outside, phys, raw};
use alloc::vec;
use guest_sdk::hv_abi::call::{CALLS, MULTICALL_MAX, MulticallEntry};
use guest_sdk::hv_abi::mmu::MmuUpdate;
use guest_sdk::hv_abi::{ABI_VERSION, Call, GuestPhys, Status};
use guest_sdk::memory::phys_of_mut;

fn entry(call: Call) -> MulticallEntry {
    // A status and value that no call gives, to see that they are written.
    MulticallEntry { call, status: Status(77), value: 77, ..MulticallEntry::default() }
}

/// Makes the entries with one call, and checks what is true of every multicall that is made.
#[expect(unsafe_code, reason = "a multicall")]
fn make(entries: &mut [MulticallEntry]) {
    let before: alloc::vec::Vec<_> = entries.to_vec();
    // SAFETY: the tests' entries write no memory.
    unsafe { guest_sdk::hypercall::multicall(entries) }.expect("it is made");
    for (after, before) in entries.iter().zip(before) {
        assert_eq!(
            (after.call, after.arguments, after.reserved),
            (before.call, before.arguments, before.reserved)
        );
    }
}

guest_sdk::tests! {
    "MULTICALL-001 MULTICALL-002 MULTICALL-007" fn calls_are_made_in_order_past_failures() {
        let mut close = entry(Call::EVENT_CLOSE);
        close.arguments[0] = 16;
        let mut entries = [entry(Call::VERSION), entry(Call::EVENT_ALLOCATE), close, close, entry(Call::VERSION)];
        make(&mut entries);
        let results = entries.map(|entry| (entry.status, entry.value));
        let version = (Status::SUCCESS, u64::from(ABI_VERSION));
        let expected = [version, (Status::SUCCESS, 16), (Status::SUCCESS, 0), (Status::NOT_FOUND, 0), version];
        assert_eq!(results, expected);
    }

    "MULTICALL-004 MULTICALL-005" fn what_may_not_stand_in_it_is_told_so() {
        for call in CALLS.iter().filter(|call| !call.in_multicall || !call.served) {
            let mut entries = [entry(call.call)];
            make(&mut entries);
            let expected = if call.served { Status::NOT_IN_MULTICALL } else { Status::UNKNOWN_CALL };
            assert_eq!((entries[0].status, entries[0].value), (expected, 0), "{}", call.name);
        }
        let mut entries = [entry(Call(u32::MAX))];
        make(&mut entries);
        assert_eq!(entries[0].status, Status::UNKNOWN_CALL);
    }

    "MULTICALL-006" fn an_entry_with_a_reserved_word_is_not_made() {
        let mut entries = [MulticallEntry { reserved: 1, ..entry(Call::EVENT_ALLOCATE) }, entry(Call::EVENT_ALLOCATE)];
        make(&mut entries);
        assert_eq!(entries[0].status, Status::BAD_ARGUMENT);
        assert_eq!((entries[1].status, entries[1].value), (Status::SUCCESS, 16), "the first channel is still free");
    }

    "MULTICALL-003 MULTICALL-009 MULTICALL-010" fn none_and_the_most_are_made() {
        assert_eq!(raw(Call::MULTICALL, [phys(&0_u64), 0]), Ok(0));
        let entries = vec![entry(Call::VERSION); MULTICALL_MAX as usize];
        assert_eq!(raw(Call::MULTICALL, [phys(&entries[0]), MULTICALL_MAX]), Ok(MULTICALL_MAX));
    }

    "MULTICALL-011" fn more_than_the_most_is_out_of_range_and_none_is_made() {
        let entries = vec![entry(Call::EVENT_ALLOCATE); MULTICALL_MAX as usize + 1];
        for count in [MULTICALL_MAX + 1, 1 << 32, u64::MAX] {
            assert_eq!(raw(Call::MULTICALL, [phys(&entries[0]), count]), Err(Status::OUT_OF_RANGE), "{count}");
        }
        assert_eq!(raw(Call::EVENT_ALLOCATE, [0]), Ok(16));
    }

    "MULTICALL-014 MMU_UPDATE-001" fn a_call_that_changes_a_later_entry_changes_nothing_of_its_call() {
        let mut entries = [entry(Call::MMU_UPDATE), entry(Call::EVENT_ALLOCATE)];
        // The later entry's first word, its call and status, as if it were an entry of a page table.
        let at = phys(&entries[1]);
        let mut update = [MmuUpdate { entry: GuestPhys(at), ..MmuUpdate::default() }];
        entries[0].arguments = [phys_of_mut(&mut update).expect("on the stack").0, 1, 0, 0, 0];
        assert_eq!(raw(Call::MULTICALL, [phys_of_mut(&mut entries).expect("on the stack").0, 2]), Ok(2));
        assert_eq!(update[0].old, u64::from(Call::EVENT_ALLOCATE.0) | 77 << 32);
        assert_eq!((entries[1].call, entries[1].status, entries[1].value), (Call(0), Status::SUCCESS, 16));
    }

    "MULTICALL-012" fn entries_outside_memory_or_misaligned_are_a_bad_address() {
        let entries = [entry(Call::EVENT_ALLOCATE); 2];
        for start in outside(64).into_iter().chain([1, 2, 4].map(|offset| phys(&entries) + offset)) {
            assert_eq!(raw(Call::MULTICALL, [start, 1]), Err(Status::BAD_ADDRESS), "{start:#x}");
        }
        assert_eq!(raw(Call::EVENT_ALLOCATE, [0]), Ok(16));
    }
}

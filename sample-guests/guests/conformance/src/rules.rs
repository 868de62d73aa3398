//! Rules of all calls.

use crate::program::{TEXT, context, page};
use crate::registers::call;
use crate::{after, in_a_storm, memory_size, outside, phys, raw};
use alloc::{boxed::Box, vec, vec::Vec};
use core::sync::atomic::Ordering::SeqCst;
use guest_sdk::hv_abi::call::{
    CALLS, CONSOLE_READ_MAX, CONSOLE_WRITE_MAX, MULTICALL_MAX, MulticallEntry, PANIC_TEXT_MAX, PanicReport,
};
use guest_sdk::hv_abi::mmu::MMU_UPDATE_MAX;
use guest_sdk::hv_abi::pages::PAGE_RUNS_MAX;
use guest_sdk::hv_abi::vcpu::{EVENT_CHANNELS, FIRST_DYNAMIC_CHANNEL};
use guest_sdk::hv_abi::{Call, GuestPhys, Status};

/// A call with arguments for each error that a served call can give: all fail.
fn failing() -> Vec<(Call, [u64; 2], Status)> {
    let outside = memory_size();
    let past = u64::from(EVENT_CHANNELS);
    let mut all = vec![
        (Call::VERSION, [1, 0], Status::BAD_ARGUMENT),
        (Call::FEATURES, [1, 0], Status::BAD_ARGUMENT),
        (Call::CONSOLE_WRITE, [outside, 1], Status::BAD_ADDRESS),
        (Call::CONSOLE_WRITE, [0, CONSOLE_WRITE_MAX + 1], Status::OUT_OF_RANGE),
        (Call::CONSOLE_READ, [0, CONSOLE_READ_MAX + 1], Status::OUT_OF_RANGE),
        (Call::CONSOLE_READ, [0, 1], Status::NOT_FOUND), // nobody types for a test
        (Call::SHUTDOWN, [256, 0], Status::BAD_ARGUMENT),
        (Call::SHUTDOWN, [0, 1], Status::BAD_ARGUMENT),
        (Call::PANIC, [outside, 0], Status::BAD_ADDRESS),
        (Call::PANIC, [0, 1], Status::BAD_ARGUMENT),
        (Call::YIELD, [1, 0], Status::BAD_ARGUMENT),
        (Call::TIMER_SET, [0, 1], Status::BAD_ARGUMENT),
        (Call::EVENT_ALLOCATE, [64, 0], Status::NOT_FOUND),
        (Call::EVENT_ALLOCATE, [0, 1], Status::BAD_ARGUMENT),
        (Call::MULTICALL, [outside, 1], Status::BAD_ADDRESS),
        (Call::MULTICALL, [0, MULTICALL_MAX + 1], Status::OUT_OF_RANGE),
        (Call::ROOT_CREATE, [outside, 0], Status::BAD_ADDRESS),
        (Call::ROOT_CREATE, [0, 1], Status::BAD_ARGUMENT),
        (Call::ROOT_DESTROY, [0, 0], Status::NOT_FOUND),
        (Call::MMU_UPDATE, [outside, 1], Status::BAD_ADDRESS),
        (Call::MMU_UPDATE, [0, MMU_UPDATE_MAX + 1], Status::OUT_OF_RANGE),
        (Call::MMU_FLUSH, [4096, 0], Status::NOT_FOUND),
        (Call::MMU_FLUSH, [0, 1], Status::BAD_ARGUMENT),
        (Call::USER_XSTATE, [outside, 0], Status::BAD_ADDRESS),
        (Call::PAGES_REPORT, [outside, 1], Status::BAD_ADDRESS),
        (Call::PAGES_REPORT, [0, PAGE_RUNS_MAX + 1], Status::OUT_OF_RANGE),
        (Call::PAGES_CLAIM, [outside, 1], Status::BAD_ADDRESS),
        (Call::PAGES_CLAIM, [0, PAGE_RUNS_MAX + 1], Status::OUT_OF_RANGE),
        (Call::BALLOON, [0, 1], Status::BAD_ARGUMENT),
    ];
    for of_a_channel in [Call::EVENT_CLOSE, Call::EVENT_SEND, Call::EVENT_BIND] {
        all.push((of_a_channel, [past, 0], Status::OUT_OF_RANGE));
        all.push((of_a_channel, [past - 1, 0], Status::NOT_FOUND)); // no test opens the last one
    }
    let unknown =
        CALLS.iter().filter(|call| !call.served).map(|call| call.call).chain([Call(1000), Call(u32::MAX)]);
    all.extend(unknown.map(|call| (call, [0, 0], Status::UNKNOWN_CALL)));
    all
}

/// Takes and gives back every channel again and again while the timer interrupts: a call that were made twice, or not
/// at all, would leave another number of channels, or give another answer.
fn take_and_give_back() {
    let end = after(100);
    while guest_sdk::time::Instant::now() < end {
        let mut taken = [false; EVENT_CHANNELS as usize];
        for _ in FIRST_DYNAMIC_CHANNEL..EVENT_CHANNELS {
            let channel = raw(Call::EVENT_ALLOCATE, [0]).expect("one is free") as usize;
            assert!(!core::mem::replace(&mut taken[channel], true), "{channel} was given twice");
        }
        assert_eq!(raw(Call::EVENT_ALLOCATE, [0]), Err(Status::NO_SPACE));
        for channel in FIRST_DYNAMIC_CHANNEL..EVENT_CHANNELS {
            assert_eq!(raw(Call::EVENT_CLOSE, [channel.into()]), Ok(0));
        }
    }
}

guest_sdk::tests! {
    "RULE-001" fn unknown_numbers_give_unknown_call() {
        for number in [CALLS.len() as u32, 1000, 1 << 31, u32::MAX] {
            assert_eq!(raw(Call(number), []), Err(Status::UNKNOWN_CALL), "call {number}");
            assert_eq!(raw(Call(number), [1, 2, 3, 4, 5]), Err(Status::UNKNOWN_CALL), "call {number}");
        }
    }

    "RULE-001 RULE-002" fn calls_that_are_not_served_give_unknown_call() {
        for call in CALLS.iter().filter(|call| !call.served) {
            assert_eq!(raw(call.call, []), Err(Status::UNKNOWN_CALL), "{}", call.name);
            assert_eq!(raw(call.call, [u64::MAX; 5]), Err(Status::UNKNOWN_CALL), "{}", call.name);
        }
    }

    "RULE-003" fn arguments_that_a_call_does_not_have_must_be_zero() {
        for call in CALLS.iter().filter(|call| call.served) {
            for unused in call.arguments.len()..5 {
                for value in [1, 1 << 32, 1 << 63] {
                    let mut arguments = [0; 5];
                    arguments[unused] = value;
                    assert_eq!(raw(call.call, arguments), Err(Status::BAD_ARGUMENT), "{} {unused}", call.name);
                }
            }
        }
    }

    "RULE-004" fn the_value_is_0_when_a_call_fails() {
        for (number, arguments, status) in failing() {
            let answer = call(number, arguments);
            assert_eq!((answer.status, answer.value), (status.0, 0), "{number:?} {arguments:?}");
        }
    }

    "RULE-005" fn the_value_is_0_when_there_is_none() {
        assert_eq!(raw(Call::EVENT_ALLOCATE, [0]), Ok(16));
        let context = Box::new(context(TEXT));
        let good = [
            (Call::YIELD, [0, 0]),
            (Call::YIELD_TO, [0, 0]),
            (Call::TIMER_SET, [u64::MAX, 0]),
            (Call::EVENT_SEND, [16, 0]),
            (Call::EVENT_BIND, [16, 0]),
            (Call::EVENT_CLOSE, [16, 0]),
            (Call::ROOT_CREATE, [phys(page()), 0]),
            (Call::MMU_FLUSH, [0, 0]),
            (Call::USER_XSTATE, [phys(&*context), 0]),
            (Call::TRACE_RING, [0, 0]),
        ];
        for (number, arguments) in good {
            let answer = call(number, arguments);
            assert_eq!((answer.status, answer.value), (0, 0), "{number:?}");
        }
        let root = phys(page());
        assert_eq!((raw(Call::ROOT_CREATE, [root]), call(Call::ROOT_DESTROY, [root]).value), (Ok(0), 0));
        let ends = [Call::SHUTDOWN, Call::PANIC, Call::ROOT_DESTROY, Call::VCPU_START, Call::VCPU_STOP];
        let of_devices = [Call::DEVICE_WRITE, Call::DEVICE_NOTIFY]; // where there are some: `device_calls`
        let without_value = CALLS.iter().filter(|call| call.served && call.result == "none");
        let without_value = without_value.map(|call| call.call);
        let mut without_value = without_value.filter(|call| !ends.contains(call) && !of_devices.contains(call));
        assert!(without_value.all(|call| good.iter().any(|good| good.0 == call)), "one is missing");
    }

    "RULE-006" fn a_call_that_fails_changes_nothing() {
        let channel = guest_sdk::events::Channel::allocate().unwrap();
        let page = guest_sdk::events::vcpu_page();
        let bits = || (0..8).map(|i| (page.pending[i].load(SeqCst), page.masked[i].load(SeqCst))).collect::<Vec<_>>();
        let before = (bits(), page.upcall.load(SeqCst));
        for (number, mut arguments, _) in failing() {
            assert!(raw(number, arguments).is_err(), "{number:?} {arguments:?}");
            // And with a channel that is open, so that only the argument too many is wrong.
            if [Call::EVENT_CLOSE, Call::EVENT_SEND, Call::EVENT_BIND].contains(&number) {
                arguments[0] = channel.number().into();
                assert!(raw(number, [arguments[0], 0, 1]).is_err(), "{number:?}");
            }
        }
        assert_eq!((bits(), page.upcall.load(SeqCst)), before);
        assert_eq!(channel.close(), Ok(()), "the channel was still open");
        assert_eq!(raw(Call::EVENT_ALLOCATE, [0]), Ok(16), "no other was taken");
    }

    "RULE-006" fn a_call_that_fails_writes_nothing() {
        let entry = MulticallEntry { status: Status(77), value: 77, ..MulticallEntry::default() };
        let entries = vec![entry; MULTICALL_MAX as usize + 1];
        let at = phys(&entries[0]);
        for arguments in [[at, MULTICALL_MAX + 1], [at + 4, 1], [at, 1 << 32], [at, u64::MAX]] {
            assert!(raw(Call::MULTICALL, arguments).is_err(), "{arguments:x?}");
        }
        assert!(core::hint::black_box(&entries).iter().all(|found| *found == entry));
        // Two entries, of which the first is the last one in memory.
        let last = memory_size() - 64;
        let before = crate::direct(GuestPhys(last), 64).to_vec();
        assert_eq!(raw(Call::MULTICALL, [last, 2]), Err(Status::BAD_ADDRESS));
        assert_eq!(crate::direct(GuestPhys(last), 64), before);
    }

    "RULE-007" fn a_call_that_is_interrupted_is_made_once() {
        in_a_storm(take_and_give_back);
    }

    "RULE-008" fn ranges_outside_memory_are_bad_addresses() {
        for start in outside(64) {
            assert_eq!(raw(Call::CONSOLE_WRITE, [start, 64]), Err(Status::BAD_ADDRESS), "{start:#x}");
            assert_eq!(raw(Call::MULTICALL, [start, 1]), Err(Status::BAD_ADDRESS), "{start:#x}");
            assert_eq!(raw(Call::MMU_UPDATE, [start, 2, 0]), Err(Status::BAD_ADDRESS), "{start:#x}");
            let report = PanicReport { message: GuestPhys(start), message_length: 64, ..PanicReport::default() };
            assert_eq!(raw(Call::PANIC, [phys(&report)]), Err(Status::BAD_ADDRESS), "{start:#x}");
        }
        for start in outside(size_of::<PanicReport>() as u64) {
            assert_eq!(raw(Call::PANIC, [start]), Err(Status::BAD_ADDRESS), "{start:#x}");
        }
        // The longest ranges that wrap around 2^64.
        for start in [u64::MAX - CONSOLE_WRITE_MAX + 2, u64::MAX - PANIC_TEXT_MAX + 2, u64::MAX] {
            assert_eq!(raw(Call::CONSOLE_WRITE, [start, CONSOLE_WRITE_MAX]), Err(Status::BAD_ADDRESS), "{start:#x}");
        }
    }

    "RULE-008" fn misaligned_structures_are_bad_addresses() {
        let words = [0_u64; 32];
        for offset in [1, 2, 4, 7] {
            assert_eq!(raw(Call::MULTICALL, [phys(&words) + offset, 1]), Err(Status::BAD_ADDRESS), "{offset}");
            assert_eq!(raw(Call::PANIC, [phys(&words) + offset]), Err(Status::BAD_ADDRESS), "{offset}");
            assert_eq!(raw(Call::MMU_UPDATE, [phys(&words) + offset, 1, 0]), Err(Status::BAD_ADDRESS), "{offset}");
        }
    }

    "RULE-009" fn an_empty_range_is_good_wherever_it_starts_if_it_is_aligned() {
        for start in [0, 8, memory_size(), 1 << 63, u64::MAX - 7] {
            assert_eq!(raw(Call::CONSOLE_WRITE, [start, 0]), Ok(0), "{start:#x}");
            assert_eq!(raw(Call::MULTICALL, [start, 0]), Ok(0), "{start:#x}");
            assert_eq!(raw(Call::MMU_UPDATE, [start, 0, 0]), Ok(0), "{start:#x}");
            assert_eq!(raw(Call::CONSOLE_WRITE, [start | 7, 0]), Ok(0), "{start:#x}: bytes are always aligned");
            assert_eq!(raw(Call::MULTICALL, [start | 7, 0]), Err(Status::BAD_ADDRESS), "{start:#x}");
        }
    }

    "RULE-010" fn a_store_behind_a_multicall_changes_nothing() {
        let mut entries = [MulticallEntry { call: Call::EVENT_ALLOCATE, ..MulticallEntry::default() }; 2];
        assert_eq!(raw(Call::MULTICALL, [phys(&entries), 2]), Ok(2));
        for entry in &mut entries {
            entry.call = Call::EVENT_CLOSE;
            entry.arguments[0] = 16;
        }
        core::hint::black_box(&mut entries);
        assert_eq!(raw(Call::EVENT_ALLOCATE, [0]), Ok(18), "both channels are still open");
    }
}

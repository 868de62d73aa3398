//! Event channels and upcalls.

use crate::raw;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use guest_sdk::events::{Channel, without_upcalls};
use guest_sdk::hv_abi::vcpu::{EVENT_CHANNELS, FIRST_DYNAMIC_CHANNEL};
use guest_sdk::hv_abi::{Call, Status};
use guest_sdk::time::{Duration, Instant, timer};

static COUNT: AtomicU32 = AtomicU32::new(0);

fn count(_: Channel) {
    COUNT.fetch_add(1, SeqCst);
}

/// Calls that take a channel, with what else they take.
const OF_A_CHANNEL: [(Call, &[u64]); 3] =
    [(Call::EVENT_CLOSE, &[]), (Call::EVENT_SEND, &[]), (Call::EVENT_BIND, &[0])];

fn of_channel(call: Call, channel: u64, rest: &[u64]) -> Result<u64, Status> {
    raw(call, [channel, rest.first().copied().unwrap_or(0)])
}

guest_sdk::tests! {
    "EVENT_ALLOCATE-001 EVENT_ALLOCATE-004 EVENT_ALLOCATE-005" fn all_dynamic_channels_can_be_had_once() {
        let mut taken = [false; EVENT_CHANNELS as usize];
        for _ in FIRST_DYNAMIC_CHANNEL..EVENT_CHANNELS {
            let channel = raw(Call::EVENT_ALLOCATE, [0]).expect("one is free") as usize;
            assert!((FIRST_DYNAMIC_CHANNEL as usize..EVENT_CHANNELS as usize).contains(&channel), "{channel}");
            assert!(!core::mem::replace(&mut taken[channel], true), "{channel} was given twice");
        }
        assert_eq!(raw(Call::EVENT_ALLOCATE, [0]), Err(Status::NO_SPACE));
        assert_eq!(raw(Call::EVENT_CLOSE, [100]), Ok(0));
        assert_eq!(raw(Call::EVENT_ALLOCATE, [0]), Ok(100));
    }

    "EVENT_ALLOCATE-002 EVENT_CLOSE-002" fn a_new_channel_is_masked_and_not_pending() {
        let channel = Channel::allocate().unwrap();
        channel.mask();
        channel.send().unwrap();
        channel.close().unwrap();
        let again = Channel::allocate().unwrap();
        assert_eq!(again, channel, "the lowest free channel");
        assert!(!again.take(), "it is pending");
        again.send().unwrap();
        assert_eq!(COUNT.load(SeqCst), 0);
        assert!(again.take());
    }

    "EVENT_ALLOCATE-003" fn channels_for_a_vcpu_that_is_not_there() {
        for vcpu in [guest_sdk::boot::info().vcpus.into(), 64, 1 << 32, u64::MAX] {
            assert_eq!(raw(Call::EVENT_ALLOCATE, [vcpu]), Err(Status::NOT_FOUND), "{vcpu}");
        }
    }

    "EVENT_CLOSE-003 EVENT_SEND-003 EVENT_BIND-005" fn channels_past_the_last_are_out_of_range() {
        for (call, rest) in OF_A_CHANNEL {
            for channel in [EVENT_CHANNELS.into(), 1 << 32, u64::MAX] {
                assert_eq!(of_channel(call, channel, rest), Err(Status::OUT_OF_RANGE), "{call:?} {channel}");
            }
        }
    }

    "EVENT_CLOSE-004 EVENT_SEND-004 EVENT_BIND-006" fn channels_that_are_not_open_are_not_found() {
        for (call, rest) in OF_A_CHANNEL {
            for channel in [0, 1, u64::from(FIRST_DYNAMIC_CHANNEL) - 1, FIRST_DYNAMIC_CHANNEL.into(), 511] {
                assert_eq!(of_channel(call, channel, rest), Err(Status::NOT_FOUND), "{call:?} {channel}");
            }
        }
    }

    "EVENT_CLOSE-001" fn a_closed_channel_is_not_found() {
        let channel = Channel::allocate().unwrap();
        assert_eq!(channel.close(), Ok(()));
        assert_eq!(channel.close(), Err(Status::NOT_FOUND));
        assert_eq!(channel.send(), Err(Status::NOT_FOUND));
    }

    "EVENT_BIND-004 EVENT_BIND-007" fn binding_to_the_own_vcpu_changes_nothing_and_to_none_is_not_found() {
        let channel = Channel::allocate().unwrap();
        channel.send().unwrap();
        let number = channel.number().into();
        assert_eq!(raw(Call::EVENT_BIND, [number, 0]), Ok(0));
        assert_eq!(raw(Call::EVENT_BIND, [number, 1 << 32]), Err(Status::NOT_FOUND));
        assert_eq!(raw(Call::EVENT_BIND, [number, 64]), Err(Status::NOT_FOUND));
        assert!(channel.take(), "the pending bit is gone");
    }

    "EVENT_SEND-001 EVENT_SEND-002 CALL-005" fn a_handler_has_run_when_send_returns() {
        let channel = Channel::allocate().unwrap();
        channel.on_event(count);
        for i in 1..=1000 {
            channel.send().unwrap();
            assert_eq!(COUNT.load(SeqCst), i);
        }
    }

    "UPCALL-003" fn no_upcall_comes_while_upcalls_are_masked() {
        let channel = Channel::allocate().unwrap();
        channel.on_event(count);
        without_upcalls(|| {
            (0..10).for_each(|_| channel.send().unwrap());
            assert_eq!(COUNT.load(SeqCst), 0);
        });
        assert_eq!(COUNT.load(SeqCst), 1, "ten events that nobody took are one");
    }

    "UPCALL-001 TIMER_SET-001" fn an_upcall_comes_to_code_that_makes_no_calls() {
        timer::set(Instant::now() + Duration::from_millis(1), count);
        while COUNT.load(SeqCst) == 0 {
            core::hint::spin_loop();
        }
    }

    "UPCALL_RETURN-003 UPCALL_RETURN-004" fn events_that_fire_inside_a_handler_are_not_lost() {
        static AGAIN: AtomicU32 = AtomicU32::new(0);
        let channel = Channel::allocate().unwrap();
        channel.on_event(|channel| {
            if AGAIN.fetch_add(1, SeqCst) < 100 {
                channel.send().unwrap();
            }
        });
        channel.send().unwrap();
        assert_eq!(AGAIN.load(SeqCst), 101);
    }
}

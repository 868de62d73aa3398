//! Waiting for one of a set of channels.

use crate::{after, outside, phys, raw};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use guest_sdk::events::{Channel, poll, vcpu_page, without_upcalls};
use guest_sdk::hv_abi::vcpu::{EVENT_CHANNELS, upcall};
use guest_sdk::hv_abi::{Call, Status};
use guest_sdk::hypercall::timer_set;
use guest_sdk::smp;
use guest_sdk::time::{Duration, Instant};

/// Longer than any of these tests.
fn long() -> Instant {
    after(30_000)
}

fn channels<const N: usize>() -> [Channel; N] {
    core::array::from_fn(|_| Channel::allocate().expect("a channel"))
}

guest_sdk::tests! {
    "POLL-001 POLL-004" fn the_lowest_that_is_pending_is_given_at_once_and_stays() {
        let [a, b, c] = channels();
        c.send().unwrap();
        b.send().unwrap();
        for _ in 0..3 {
            assert_eq!(poll(&[a, b, c], long()), Some(b));
            assert_eq!(poll(&[c, a], long()), Some(c));
        }
        let bits = vcpu_page().masked[0].load(SeqCst);
        assert!([a, b, c].iter().all(|channel| bits & 1 << channel.number() != 0), "they are masked as before");
        assert!(b.take() && c.take() && !a.take());
    }

    "POLL-002" fn a_channel_that_fires_masked_ends_it() {
        timer_set((Instant::now() + Duration::from_millis(5)).as_nanos());
        assert_eq!(poll(&[Channel::TIMER], long()), Some(Channel::TIMER));
        // And one that another vCPU sends.
        let [channel] = channels();
        for _ in 0..200 {
            static GO_ON: AtomicBool = AtomicBool::new(false);
            GO_ON.store(false, SeqCst);
            smp::start(1, move || channel.send().unwrap()).unwrap();
            assert_eq!(poll(&[channel], long()), Some(channel));
            assert!(channel.take());
            while smp::is_started(1) {
                guest_sdk::hypercall::yield_now();
            }
        }
    }

    "POLL-003" fn it_ends_at_the_deadline_and_not_before() {
        let [channel, other] = channels();
        other.send().unwrap();
        for milliseconds in [0, 1, 10] {
            let deadline = after(milliseconds);
            assert_eq!(poll(&[channel], deadline), None);
            assert!(Instant::now() >= deadline);
        }
        assert_eq!(poll(&[], after(2)), None);
    }

    "POLL-005" fn a_pending_upcall_ends_it() {
        let [channel, other] = channels();
        without_upcalls(|| {
            other.on_event(|_| {});
            other.send().unwrap();
            assert_ne!(vcpu_page().upcall.load(SeqCst) & upcall::PENDING, 0);
            assert_eq!(poll(&[channel], long()), None);
            channel.send().unwrap();
            assert_eq!(poll(&[channel], long()), Some(channel), "but what is asked for comes first");
        });
        // One that comes while it waits, most likely.
        channel.take();
        without_upcalls(|| {
            smp::start(1, move || other.send().unwrap()).unwrap();
            assert_eq!(poll(&[channel], long()), None);
            assert_ne!(vcpu_page().upcall.load(SeqCst) & upcall::PENDING, 0);
        });
    }

    "POLL-006" fn a_set_that_is_not_in_memory_is_a_bad_address() {
        for at in outside(64) {
            assert_eq!(raw(Call::POLL, [at, 0]), Err(Status::BAD_ADDRESS), "{at:#x}");
        }
        let set = [0_u64; 9];
        assert_eq!(raw(Call::POLL, [phys(&set) + 4, 0]), Err(Status::BAD_ADDRESS));
        assert_eq!(raw(Call::POLL, [phys(&set), 0]), Ok(EVENT_CHANNELS.into()));
    }

    "POLL-007" fn a_channel_of_another_vcpu_never_comes() {
        let other = Channel::allocate_for(1).unwrap();
        other.send().unwrap();
        assert_eq!(poll(&[other], after(10)), None);
        other.bind(0).unwrap();
        assert_eq!(poll(&[other], long()), Some(other));
    }
}

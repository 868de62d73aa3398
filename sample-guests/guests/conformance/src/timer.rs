//! The vCPU's timer, `block` and the clock.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use guest_sdk::events::{Channel, without_upcalls};
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::hypercall::{block, timer_set};
use guest_sdk::time::{Duration, Instant, timer};

static FIRED: AtomicU64 = AtomicU64::new(0);

fn note_time(_: Channel) {
    FIRED.store(Instant::now().as_nanos(), SeqCst);
}

fn after(milliseconds: u64) -> Instant {
    Instant::now() + Duration::from_millis(milliseconds)
}

guest_sdk::tests! {
    "TIMER_SET-002" fn the_timer_does_not_fire_early() {
        for milliseconds in [1, 2, 3] {
            let deadline = after(milliseconds);
            FIRED.store(0, SeqCst);
            timer::set(deadline, note_time);
            while FIRED.load(SeqCst) == 0 {
                block(NEVER);
            }
            assert!(FIRED.load(SeqCst) >= deadline.as_nanos(), "{} before {deadline:?}", FIRED.load(SeqCst));
        }
    }

    "TIMER_SET-001" fn the_timer_fires_beside_calls_that_never_end() {
        FIRED.store(0, SeqCst);
        timer::set(after(2), note_time);
        while FIRED.load(SeqCst) == 0 {
            guest_sdk::hypercall::version();
        }
    }

    "TIMER_SET-003" fn a_deadline_that_has_passed_fires_at_once() {
        Channel::TIMER.unmask();
        timer_set(0);
        Channel::TIMER.wait();
    }

    "TIMER_SET-004 TIMER_SET-005" fn a_replaced_or_cleared_timer_does_not_fire() {
        timer::set(after(1), |_| panic!("the first deadline fired"));
        timer::set(after(1000), |_| panic!("the second deadline fired"));
        let end = after(20);
        while Instant::now() < end {
            block(end.as_nanos());
        }
        timer_set(NEVER);
        assert!(!Channel::TIMER.take());
    }

    "TIMER_SET-006" fn setting_the_timer_leaves_what_is_pending() {
        Channel::TIMER.mask();
        timer_set(0);
        while !pending(Channel::TIMER) {
            core::hint::spin_loop();
        }
        timer_set(NEVER);
        assert!(pending(Channel::TIMER));
    }

    "BLOCK-003 BLOCK-004" fn block_ends_at_its_deadline_and_not_before() {
        for milliseconds in [0, 1, 3] {
            let deadline = after(milliseconds);
            while !block(deadline.as_nanos()) {}
            assert!(Instant::now() >= deadline);
        }
        assert!(block(0), "a deadline in the past");
    }

    "BLOCK-001 BLOCK-008" fn block_returns_at_once_when_an_event_is_pending() {
        let channel = Channel::allocate().unwrap();
        channel.unmask();
        without_upcalls(|| {
            channel.send().unwrap();
            assert!(!block(NEVER));
            assert!(!block(NEVER), "nobody has taken it");
            assert!(channel.take());
        });
    }

    "BLOCK-002 BLOCK-007" fn block_ends_with_an_unmasked_event_and_its_handler_has_run() {
        timer::set(after(2), note_time);
        while FIRED.load(SeqCst) == 0 {
            assert!(!block(NEVER), "NEVER came");
        }
    }

    "BLOCK-006" fn a_masked_channel_does_not_end_a_block() {
        let channel = Channel::allocate().unwrap();
        channel.mask();
        channel.send().unwrap();
        let deadline = after(5);
        while !block(deadline.as_nanos()) {}
        assert!(Instant::now() >= deadline);
        assert!(channel.take());
    }

    "CLOCK-002" fn the_clock_never_steps_back() {
        let mut last = Instant::now();
        for _ in 0..200_000 {
            let now = Instant::now();
            assert!(now >= last, "{last:?} then {now:?}");
            last = now;
        }
    }
}

/// Whether a channel's pending bit is set; leaves it.
fn pending(channel: Channel) -> bool {
    let was = channel.take();
    if was {
        let (word, bit) = (channel.number() as usize / 64, 1 << (channel.number() % 64));
        guest_sdk::events::vcpu_page().pending[word].fetch_or(bit, SeqCst);
    }
    was
}

//! The vCPU's timer, `block` and the clock.

use crate::{INTERRUPTIONS, after, in_a_storm};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use guest_sdk::events::{Channel, without_upcalls};
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::hv_abi::vcpu::upcall;
use guest_sdk::hypercall::{block, timer_set};
use guest_sdk::time::{Instant, timer};

static FIRED: AtomicU64 = AtomicU64::new(0);

fn note_time(_: Channel) {
    FIRED.store(Instant::now().as_nanos(), SeqCst);
}

guest_sdk::tests! {
    "TIMER_SET-002" fn the_timer_does_not_fire_early() {
        for milliseconds in [1, 2, 3] {
            let deadline = after(milliseconds);
            FIRED.store(0, SeqCst);
            timer::set(deadline, note_time);
            while FIRED.load(SeqCst) == 0 {
                block(after(10).as_nanos());
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
        let hour = 3600 * 1_000_000_000;
        for second in [NEVER, Instant::now().as_nanos() + hour] {
            let mut judged = false;
            while !judged {
                let first = after(5);
                timer_set(first.as_nanos());
                timer_set(second);
                judged = Instant::now() < first; // else it may have fired before it was replaced
                let end = after(20);
                while Instant::now() < end {
                    block(end.as_nanos());
                }
                assert!(!Channel::TIMER.take() || !judged, "the first deadline fired");
            }
        }
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

    "BLOCK-001" fn block_returns_at_once_when_an_event_is_pending_and_upcalls_come() {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let channel = Channel::allocate().unwrap();
        channel.on_event(|_| { COUNT.fetch_add(1, SeqCst); });
        let page = guest_sdk::events::vcpu_page();
        for i in 1..=100 {
            page.upcall.fetch_or(upcall::MASKED, SeqCst);
            channel.send().unwrap();
            page.upcall.fetch_and(!upcall::MASKED, SeqCst);
            assert!(!block(NEVER));
            assert_eq!(COUNT.load(SeqCst), i);
        }
    }

    "BLOCK-005" fn block_without_a_deadline_never_says_that_it_has_passed() {
        in_a_storm(|| while INTERRUPTIONS.load(SeqCst) < 500 {
            assert!(!block(NEVER));
        });
    }

    "BLOCK-002" fn block_ends_with_an_event_that_fires_while_it_waits() {
        Channel::TIMER.unmask();
        // Masked, so that no handler takes the event before the guest blocks.
        without_upcalls(|| for _ in 0..3 {
            timer_set(after(2).as_nanos());
            while !Channel::TIMER.take() {
                assert!(!block(NEVER), "NEVER came");
            }
            guest_sdk::events::vcpu_page().upcall.fetch_and(!upcall::PENDING, SeqCst);
        });
    }

    "BLOCK-006" fn a_masked_channel_does_not_end_a_block() {
        Channel::TIMER.mask();
        // A block may end early for no reason, but not each time.
        let waits_to_its_end = || {
            timer_set(after(1).as_nanos());
            let deadline = after(3);
            block(deadline.as_nanos()) && Instant::now() >= deadline
        };
        assert!((0..50).any(|_| waits_to_its_end()), "each ended when the timer fired");
        while !Channel::TIMER.take() {
            core::hint::spin_loop();
        }
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

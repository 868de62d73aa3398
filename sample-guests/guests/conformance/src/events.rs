//! Event channels.

use crate::raw;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use guest_sdk::events::{Channel, vcpu_page, without_upcalls};
use guest_sdk::hv_abi::vcpu::{EVENT_CHANNELS, FIRST_DYNAMIC_CHANNEL, upcall};
use guest_sdk::hv_abi::{Call, Status};
use guest_sdk::time::Instant;

static COUNT: AtomicU32 = AtomicU32::new(0);

/// The vCPU page's `upcall`.
fn summary() -> u32 {
    vcpu_page().upcall.load(SeqCst)
}

fn clear_summary() {
    vcpu_page().upcall.fetch_and(!upcall::PENDING, SeqCst);
}

/// The words of `pending` and of `masked`.
fn bits() -> ([u64; 8], [u64; 8]) {
    let page = vcpu_page();
    (
        page.pending.each_ref().map(|word| word.load(SeqCst)),
        page.masked.each_ref().map(|word| word.load(SeqCst)),
    )
}

fn is_masked(channel: Channel) -> bool {
    bits().1[channel.number() as usize / 64] & 1 << (channel.number() % 64) != 0
}

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

    "EVENT_BIND-007" fn binding_to_a_vcpu_that_is_not_there() {
        let channel = Channel::allocate().unwrap();
        channel.send().unwrap();
        for vcpu in [guest_sdk::boot::info().vcpus.into(), 64, 1 << 32, u64::MAX] {
            assert_eq!(raw(Call::EVENT_BIND, [channel.number().into(), vcpu]), Err(Status::NOT_FOUND), "{vcpu}");
        }
        assert!(channel.take(), "the pending bit is gone");
    }

    "EVENT_BIND-004" fn binding_to_the_own_vcpu_changes_nothing() {
        let channel = Channel::allocate().unwrap();
        let bind = || assert_eq!(raw(Call::EVENT_BIND, [channel.number().into(), 0]), Ok(0));
        without_upcalls(|| {
            channel.unmask();
            channel.send().unwrap();
            clear_summary();
            let before = bits();
            bind(); // pending and unmasked, but it does not fire anew
            assert_eq!((bits(), summary()), (before, upcall::MASKED));
            channel.mask();
            let before = bits();
            bind();
            assert_eq!((bits(), summary()), (before, upcall::MASKED));
            assert!(channel.take());
        });
    }

    // One vCPU today, so a channel moves from vCPU 0 to vCPU 0: it fires there still, once, and with what was pending.
    "EVENT_BIND-001 EVENT_BIND-002 EVENT_BIND-003" fn a_channel_that_was_bound_fires_where_it_is_bound() {
        let channel = Channel::allocate().unwrap();
        let bind = || assert_eq!(raw(Call::EVENT_BIND, [channel.number().into(), 0]), Ok(0));
        channel.send().unwrap();
        bind();
        assert!(is_masked(channel), "it was masked before");
        assert!(channel.take(), "what was pending has moved with it");
        channel.on_event(count);
        bind();
        assert!(!is_masked(channel), "it was unmasked before");
        channel.send().unwrap();
        assert_eq!(COUNT.load(SeqCst), 1);
    }

    "EVENT-001 EVENT-003" fn a_masked_channel_becomes_pending_and_is_not_summed_up() {
        let channel = Channel::allocate().unwrap();
        assert_eq!(summary(), 0);
        channel.send().unwrap();
        assert_eq!((summary(), channel.take()), (0, true));
        without_upcalls(|| {
            channel.send().unwrap();
            assert_eq!((summary(), channel.take()), (upcall::MASKED, true));
            vcpu_page().upcall.fetch_or(upcall::PENDING, SeqCst);
            channel.send().unwrap();
            assert_eq!((summary(), channel.take()), (upcall::MASKED | upcall::PENDING, true));
        });
    }

    "EVENT-001 EVENT-002" fn a_channel_is_pending_before_the_summary_says_so() {
        Channel::TIMER.unmask();
        without_upcalls(|| for _ in 0..1000 {
            crate::timer_soon();
            // The timer fires while the guest looks, so the order in which it sees the two is the host's.
            while summary() & upcall::PENDING == 0 {
                core::hint::spin_loop();
            }
            assert!(Channel::TIMER.take(), "the summary was there before the bit");
            clear_summary();
        });
    }

    "EVENT-004" fn a_channel_fires_again_though_it_is_pending() {
        let channel = Channel::allocate().unwrap();
        channel.unmask();
        without_upcalls(|| {
            for _ in 0..3 {
                channel.send().unwrap();
                assert_eq!(summary(), upcall::MASKED | upcall::PENDING);
                clear_summary();
            }
            assert!(channel.take());
        });
    }

    "EVENT-005" fn the_host_clears_no_pending_bit_by_itself() {
        let channel = Channel::allocate().unwrap();
        let other = Channel::allocate().unwrap();
        let all = [u64::MAX; 8];
        without_upcalls(|| {
            vcpu_page().pending.iter().for_each(|word| word.store(u64::MAX, SeqCst));
            for _ in 0..100 {
                for call in [Call::VERSION, Call::FEATURES, Call::YIELD, Call::TIMER_SET] {
                    raw(call, []).unwrap();
                }
                channel.send().unwrap();
                guest_sdk::hypercall::block(0);
                guest_sdk::hypercall::block(Instant::now().as_nanos() + 10_000);
                assert_eq!(bits().0, all);
            }
            // The named channel's own, in the calls that say so, and no other.
            let without = |channel: Channel| [all[0] & !(1 << channel.number()), all[1]];
            channel.close().unwrap();
            assert_eq!(bits().0[..2], without(channel));
            vcpu_page().pending[0].store(u64::MAX, SeqCst);
            assert_eq!(Channel::allocate(), Ok(channel));
            assert_eq!(bits().0[..2], without(channel));
            assert_eq!(raw(Call::EVENT_BIND, [other.number().into(), 0]), Ok(0));
            assert_eq!(bits().0[..2], without(channel));
            vcpu_page().pending.iter().for_each(|word| word.store(0, SeqCst));
        });
    }

    "EVENT-006" fn the_host_leaves_the_bits_of_other_channels_while_they_change() {
        let channel = Channel::allocate().unwrap();
        let others = !(1 << channel.number() | 1);
        let page = vcpu_page();
        // The timer's bit is in the same word, and so is that of the channel that is opened and closed.
        page.masked[0].store(u64::MAX, SeqCst);
        for i in 0..20_000_u64 {
            let pattern = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) & others;
            page.pending[0].fetch_and(!others, SeqCst);
            page.pending[0].fetch_or(pattern, SeqCst);
            page.masked[0].fetch_xor(others, SeqCst);
            let masked = page.masked[0].load(SeqCst) & others;
            match i % 3 {
                0 => crate::timer_soon(),
                1 => channel.send().unwrap(),
                _ => {
                    channel.close().unwrap();
                    assert_eq!(Channel::allocate(), Ok(channel));
                }
            }
            assert_eq!((page.pending[0].load(SeqCst) & others, page.masked[0].load(SeqCst) & others), (pattern, masked));
        }
        page.masked[0].store(u64::MAX, SeqCst);
        page.pending[0].store(0, SeqCst);
    }

    "EVENT_SEND-001 EVENT_SEND-002 CALL-005" fn a_handler_has_run_when_send_returns() {
        let channel = Channel::allocate().unwrap();
        channel.on_event(count);
        for i in 1..=1000 {
            channel.send().unwrap();
            assert_eq!(COUNT.load(SeqCst), i);
        }
    }

    "UPCALL_RETURN-003" fn events_that_fire_inside_a_handler_are_not_lost() {
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

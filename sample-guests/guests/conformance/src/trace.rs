//! Rings of trace records.

use crate::{outside, phys, raw};
use alloc::boxed::Box;
use guest_sdk::hv_abi::trace::{TRACE_RECORDS_MAX, TraceRecord, TraceRing};
use guest_sdk::hv_abi::{Call, Status};

const RECORDS: u64 = 8;

/// A ring in which the test has written what it would find again.
#[repr(C)]
struct Ring {
    state: TraceRing,
    records: [TraceRecord; RECORDS as usize],
}

fn ring() -> &'static Ring {
    let record = TraceRecord { sequence: 1, kind: 7, value: 0xa5a5, ..TraceRecord::default() };
    let state = TraceRing::default();
    state.dropped.store(3, core::sync::atomic::Ordering::SeqCst);
    Box::leak(Box::new(Ring { state, records: [record; RECORDS as usize] }))
}

fn is_as_it_was(ring: &Ring) -> bool {
    use core::sync::atomic::Ordering::SeqCst;
    let TraceRing { head, tail, dropped, .. } = &ring.state;
    let state = (head.load(SeqCst), tail.load(SeqCst), dropped.load(SeqCst));
    state == (0, 0, 3)
        && ring.records.iter().all(|record| (record.sequence, record.kind, record.value) == (1, 7, 0xa5a5))
}

guest_sdk::tests! {
    "VCPU-009" fn nobody_watches_a_test() {
        assert!(!guest_sdk::trace::enabled());
    }

    "TRACE_RING-001 TRACE_RING-005 TRACE-001" fn a_ring_that_nobody_watches_is_left_alone_and_can_be_taken_back() {
        let ring = ring();
        for _ in 0..3 {
            assert_eq!(raw(Call::TRACE_RING, [phys(ring), RECORDS]), Ok(0));
            ring.state.head.store(0, core::sync::atomic::Ordering::SeqCst);
            guest_sdk::hypercall::block(crate::after(1).as_nanos());
            assert!(is_as_it_was(ring));
        }
        for at in [phys(ring), 0, 1, u64::MAX] {
            assert_eq!(raw(Call::TRACE_RING, [at, 0]), Ok(0), "{at:#x}");
        }
        assert!(is_as_it_was(ring));
    }

    "TRACE_RING-002 TRACE_RING-003" fn a_ring_has_a_power_of_two_of_records_and_not_too_many() {
        let at = phys(ring());
        for records in [TRACE_RECORDS_MAX * 2, 1 << 32, 1 << 63] {
            assert_eq!(raw(Call::TRACE_RING, [at, records]), Err(Status::OUT_OF_RANGE), "{records:#x}");
        }
        for records in [3, 5, 6, 7, 1000] {
            assert_eq!(raw(Call::TRACE_RING, [at, records]), Err(Status::BAD_ARGUMENT), "{records}");
        }
        for records in [1, 2, 4, 8] {
            assert_eq!(raw(Call::TRACE_RING, [at, records]), Ok(0), "{records}");
        }
    }

    "TRACE_RING-004" fn a_ring_outside_memory_or_misaligned_is_a_bad_address() {
        let at = phys(ring());
        let length = 64 + RECORDS * 64;
        for start in outside(length).into_iter().chain([at + 8, at + 32, at + 1]) {
            assert_eq!(raw(Call::TRACE_RING, [start, RECORDS]), Err(Status::BAD_ADDRESS), "{start:#x}");
        }
        assert_eq!(raw(Call::TRACE_RING, [crate::memory_size() - length, RECORDS]), Ok(0));
        assert_eq!(raw(Call::TRACE_RING, [crate::memory_size() - length + 64, RECORDS]), Err(Status::BAD_ADDRESS));
        assert_eq!(raw(Call::TRACE_RING, [0, 0]), Ok(0));
    }
}

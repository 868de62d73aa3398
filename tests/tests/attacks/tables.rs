//! Page tables that are hostile, and pages that are reported as free while they are in use.

use crate::arena::{Arena, Attack, factor};
use crate::common::PATIENCE;
use hv_core::End;
use hv_core::engine::Fault;
use std::cell::Cell;
use std::time::Duration;

#[test]
fn a_kernels_own_tables_lead_to_its_own_memory_and_nowhere_else() {
    let arena = Arena::enter();
    let attacks =
        (0..400 * factor()).map(|seed| Attack { limit: PATIENCE, ..Attack::new("tables", &[seed, 60]) });
    arena.send(attacks, |attack, report| match &report.end {
        End::Shutdown { code: 0 } => {}
        // It has touched what its tables do not map.
        End::Crash { fault: Fault::PageFault { .. }, .. } => {}
        other => panic!("{attack:?} {other:?} {:#?}", report.backtrace),
    });
    arena.leave();
}

#[test]
fn pages_reported_as_free_while_they_are_in_use_harm_their_guest_alone() {
    let arena = Arena::enter();
    let limit = Duration::from_secs(2);
    let attacks = (0..100 * factor()).map(|seed| Attack { limit, ..Attack::new("free", &[seed, 1000]) });
    let (to_the_end, rewritten) = (Cell::new(0), Cell::new(0));
    arena.send(attacks, |attack, report| {
        rewritten.set(rewritten.get() + report.counters.rewritten);
        match &report.end {
            End::Shutdown { code: 0 } => to_the_end.set(to_the_end.get() + 1),
            End::Stopped | End::Crash { .. } | End::Panic { .. } => {}
            other => panic!("{attack:?} {other:?} {:#?}", report.backtrace),
        }
    });
    assert!(to_the_end.get() > 0, "some do not report what they stand on");
    assert!(rewritten.get() > 0, "code that was rewritten was reported");
    arena.leave();
}

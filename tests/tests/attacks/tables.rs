//! Page tables that are hostile, and pages that are reported as free while they are in use.

use crate::arena::{Arena, Attack, factor};
use crate::common::PATIENCE;
use hv_core::End;
use hv_core::engine::Fault;

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
    let attacks = (0..300 * factor()).map(|seed| Attack::new("free", &[seed, 2000]));
    arena.send(attacks, |attack, report| match &report.end {
        End::Shutdown { code: 0 } | End::Stopped | End::Crash { .. } | End::Panic { .. } => {}
        other => panic!("{attack:?} {other:?} {:#?}", report.backtrace),
    });
    arena.leave();
}

//! Page tables that are hostile.

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

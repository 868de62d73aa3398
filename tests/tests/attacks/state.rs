//! Traps with the processor in a state that breaks careless handlers, and guests that do not want to stop.

use crate::arena::{Arena, Attack, factor};
use hv_core::{Breakpoints, End};
use std::time::Duration;

/// Traps that the guest knows.
const TRAPS: u64 = 30;

#[test]
fn traps_with_any_flags_segments_and_stack_are_told_or_end_the_vm() {
    let arena = Arena::enter();
    let attacks = (0..TRAPS).flat_map(|trap| (0..40 * factor()).map(move |seed| (trap, seed)));
    let attacks = attacks.map(|(trap, seed)| Attack {
        breakpoints: if seed % 2 == 0 { Breakpoints::Continue } else { Breakpoints::Crash },
        ..Attack::new("state", &[seed * TRAPS + trap, trap])
    });
    arena.send(attacks, |attack, report| {
        assert!(
            !matches!(report.end, End::Shutdown { .. } | End::Panic { .. }),
            "{attack:?}: {:?}",
            report.end
        );
    });
    arena.leave();
}

#[test]
fn no_hiding_place_keeps_a_stop_from_returning() {
    let arena = Arena::enter();
    let attacks =
        (0..6).map(|how| Attack { limit: Duration::from_millis(100), ..Attack::new("hide", &[how]) });
    arena.send(attacks, |attack, report| {
        let ended =
            matches!(report.end, End::Stopped | End::Unanswered | End::Died { .. } | End::Crash { .. });
        assert!(ended, "{attack:?}: {:?}", report.end);
    });
    arena.leave();
}

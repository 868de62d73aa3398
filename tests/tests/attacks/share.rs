//! Guests that want more of the processors than they may have.

use crate::arena::{Arena, Attack, factor};
use crate::common::{self, cpu_time};
use hv_core::{End, Vm};
use std::time::{Duration, Instant};

/// Percent of one processor.
const CAP: u32 = 20;

/// Lets it run under a cap for the attack's time, or until it has ended itself; tells how, and percent of a processor that the
/// host says its sandboxes had. What one that ended had is not known.
fn capped(attack: &Attack) -> (End, f64) {
    let arguments: Vec<_> = attack.arguments.iter().map(String::as_str).collect();
    let (mut config, _) = common::config("attack", &arguments);
    config.cpu.cap = Some(CAP);
    let start = Instant::now();
    let vm = Vm::start(config).expect("the VM starts");
    match vm.wait_timeout(attack.limit) {
        Ok(report) => (report.end, 0.0),
        Err(vm) => {
            let used = cpu_time(&vm).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
            (vm.stop().end, used)
        }
    }
}

/// Each place where a guest can hide from a stop, and states that are not true: it runs while it says that it waits.
#[test]
fn a_guest_that_hides_or_forges_its_states_stays_within_its_cap() {
    let arena = Arena::enter();
    let hiding = (0..6).map(|how| Attack::new("hide", &[how]));
    let forging =
        (0..10 * factor()).flat_map(|seed| [Attack::new("forge", &[seed]), Attack::new("pages", &[seed, 1])]);
    for attack in hiding.chain(forging) {
        let attack = Attack { limit: Duration::from_secs(1), ..attack };
        let (end, used) = capped(&attack);
        assert!(used < f64::from(CAP) * 2.0, "{attack:?} had {used} % and ended as {end:?}");
    }
    arena.leave();
}

/// Programs that hide from being interrupted, each in a sandbox of its own.
#[test]
fn programs_do_not_help_a_guest_beyond_its_cap() {
    let arena = Arena::enter();
    for way in 0..8 {
        let attack = Attack { limit: Duration::from_secs(1), ..Attack::new("user", &[way, 0, 1000]) };
        let (end, used) = capped(&attack);
        assert!(used < f64::from(CAP) * 2.0, "{attack:?} had {used} % and ended as {end:?}");
    }
    arena.leave();
}

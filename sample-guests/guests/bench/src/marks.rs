//! Marks in a trace: what they cost, and some that a test knows.

use alloc::vec::Vec;
use guest_sdk::hypercall;
use guest_sdk::time::{Duration, Instant, sleep};
use guest_sdk::{println, trace, trace_span};

/// Marks in a row: fewer than a ring has room for, so that none is lost where somebody watches.
const MARKS: u64 = 500;

/// Whether `what` is one of these; then it is done.
pub(crate) fn measure(what: &str, samples: usize) -> bool {
    match what {
        "mark" => crate::print_all((0..samples).map(|_| marks()).collect::<Vec<_>>().into_iter()),
        "known" => known(samples as u64),
        _ => return false,
    }
    true
}

/// Picoseconds for one.
fn marks() -> u64 {
    sleep(Duration::from_millis(20)); // whoever watches takes what there was
    let start = Instant::now();
    (0..MARKS).for_each(|number| trace!("mark", number));
    start.elapsed().as_nanos() as u64 * 1000 / MARKS
}

/// In each round: a null hypercall, a mark, and a span around a hypercall and a block.
fn known(rounds: u64) {
    println!("known");
    for round in 0..rounds {
        hypercall::version();
        trace!("round", round);
        let _span = trace_span!("work", round);
        hypercall::features();
        sleep(Duration::from_micros(10));
    }
}

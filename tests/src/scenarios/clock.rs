//! The guest clock beside the host's, and processor time (`docs/abi.md`, chapters CLOCK and BLOCK).
//!
//! No assertion depends on how fast anything is: what is compared are bounds that hold however long things take.

use super::{Stand, holds, scenarios, wrong};
use crate::{End, Judgement};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The host's wall time.
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the host's clock is set")
}

/// Numbers that the guest wrote, as durations.
fn nanoseconds(text: &str) -> Judgement<Vec<Duration>> {
    let numbers: Result<_, _> =
        text.split_whitespace().map(|n| n.parse().map(Duration::from_nanos)).collect();
    numbers.or_else(|_| wrong(format!("the guest wrote {text:?}")))
}

/// The clock of a guest early in its life, and its wall time at 0.
fn early_reading(stand: &Stand<'_>) -> Judgement<(Duration, Duration)> {
    match nanoseconds(&stand.run(&["clock"]).done()?.text())?[..] {
        [now, wall_base] => Ok((now, wall_base)),
        ref other => wrong(format!("the guest wrote {other:?}")),
    }
}

scenarios! {
    "CLOCK-001" fn the_clock_begins_with_the_vm(stand) {
        for _ in 0..3 {
            let start = Instant::now();
            let (now, _) = early_reading(stand)?;
            holds(now < start.elapsed(), || format!("{now:?} after {:?}", start.elapsed()))?;
        }
        Ok(())
    }

    "CLOCK-004" fn wall_time_is_the_hosts(stand) {
        let tolerance = Duration::from_millis(100);
        let before = wall();
        let (now, wall_base) = early_reading(stand)?;
        let after = wall();
        // The VM was started after `before`, and early enough to have read `now` before `after`.
        holds((before - tolerance..=after - now + tolerance).contains(&wall_base), || {
            format!("the clock showed 0 at {wall_base:?}, between {before:?} and {after:?} - {now:?}")
        })
    }

    "CLOCK-003" fn the_clock_runs_at_the_hosts_rate(stand) {
        let run = stand.run(&["rate"]).done()?;
        let text = run.text();
        let readings = nanoseconds(text.trim_start_matches("now\n"))?;
        let lines: Vec<Instant> = run.console.iter().filter(|(_, piece)| piece == b"now\n").map(|(at, _)| *at).collect();
        // Each line came between two readings. The closest pair tells best when, in each half.
        let closest = |half: usize| (half * 10..half * 10 + 10).min_by_key(|i| readings[2 * i + 1] - readings[2 * i]);
        let (Some(first), Some(last), 20, 40) = (closest(0), closest(1), lines.len(), readings.len()) else {
            return wrong(format!("the guest wrote {} lines and {} readings", lines.len(), readings.len()));
        };
        let host = lines[last] - lines[first];
        let (least, most) = (readings[2 * last] - readings[2 * first + 1], readings[2 * last + 1] - readings[2 * first]);
        holds(host.mul_f64(1.001) >= least && host.mul_f64(0.999) <= most, || {
            format!("{host:?} on the host's clock were {least:?} to {most:?} on the guest's")
        })
    }

    "VCPU-008" fn time_for_which_a_vcpu_is_held_back_is_stolen(stand) {
        let mut machine = stand.machine(&["steal", "300"]);
        machine.cpu_cap = Some(30);
        let text = stand.boot(machine).done()?.text();
        match nanoseconds(&text)?[..] {
            [time, stolen] => holds((time / 3..=time).contains(&stolen), || format!("{stolen:?} of {time:?} were stolen")),
            ref other => wrong(format!("the guest wrote {other:?}")),
        }
    }

    // Processor time is that of the guest's code. It is far less than what a guest that waited by looking would have
    // used; one that has not even come to wait has used less, too.
    "BLOCK-010" fn a_guest_that_waits_uses_no_processor_time(stand) {
        let mut machine = stand.machine(&["block"]);
        machine.limit = Duration::from_secs(1).min(stand.limit);
        let limit = machine.limit;
        match stand.boot(machine).end {
            End::TimedOut { cpu_time, .. } => holds(cpu_time < limit / 4, || format!("{cpu_time:?} of {limit:?}")),
            other => wrong(format!("a guest that waits for ever ended as {other:?}")),
        }
    }
}

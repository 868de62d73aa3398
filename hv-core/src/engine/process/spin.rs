//! How long to spin before sleeping.
//!
//! Waking a sleeper costs a few microseconds on one core and some tens across cores, so it pays to spin for a
//! request that comes sooner than that, if there is a core to spare. Whether it will is guessed from the last
//! waits: one that would have been caught sets the limit to its most, one that would not halves it, so an idle
//! guest is soon not spun for at all.

use std::sync::OnceLock;
use std::time::Instant;

/// The longest spin of the monitor for a request, in nanoseconds: about what a wake-up across cores costs.
const HOST_NS: u64 = 50_000;
/// The longest spin of a vCPU for an answer, in nanoseconds. Most answers take less than one microsecond.
const GUEST_NS: u64 = 20_000;

/// Cost of one turn of a spinning loop, in picoseconds.
fn turn_ps() -> u64 {
    static TURN: OnceLock<u64> = OnceLock::new();
    *TURN.get_or_init(|| {
        const TURNS: u64 = 500;
        let measure = || {
            let start = Instant::now();
            (0..TURNS).for_each(|_| core::hint::spin_loop());
            start.elapsed().as_nanos() as u64 * 1000 / TURNS
        };
        (0..3).map(|_| measure()).min().expect("three measurements").max(100)
    })
}

/// Turns of a spinning loop in nanoseconds.
pub(super) fn to_ns(turns: u64) -> u64 {
    turns.saturating_mul(turn_ps()) / 1000
}

fn turns(ns: u64) -> u32 {
    (ns * 1000 / turn_ps()) as u32
}

/// Whether a thread may spin while another runs: there is more than one processor for this process.
fn spare_core() -> bool {
    std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1)
}

/// How often a vCPU may spin for an answer.
pub(super) fn guest_limit() -> u32 {
    if spare_core() { turns(GUEST_NS) } else { 0 }
}

/// The monitor's own limit for one vCPU.
#[derive(Debug)]
pub(super) struct Spin {
    limit: u32,
    most: u32,
    total: u64,
}

impl Spin {
    pub(super) fn new() -> Self {
        let most = if spare_core() { turns(HOST_NS) } else { 0 };
        Self { limit: most, most, total: 0 }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Turns spent in all.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// A spin of `turns` ended with a request, or in vain.
    pub(super) fn spun(&mut self, turns: u32, caught: bool) {
        self.total += u64::from(turns);
        if !caught {
            self.limit /= 2;
        }
    }

    /// A sleep ended after `ns`: would a spin have caught it?
    pub(super) fn slept(&mut self, ns: u64) {
        if ns < HOST_NS {
            self.limit = self.most;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_guest_is_soon_not_spun_for_and_a_busy_one_is_again() {
        let mut spin = Spin { limit: 1024, most: 1024, total: 0 };
        for _ in 0..11 {
            spin.spun(spin.limit(), false);
            spin.slept(10_000_000);
        }
        assert_eq!(spin.limit(), 0);
        assert_eq!(spin.total(), 2047);
        spin.slept(5_000);
        assert_eq!(spin.limit(), 1024);
        spin.spun(10, true);
        assert_eq!(spin.limit(), 1024);
    }
}

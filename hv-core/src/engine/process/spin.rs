//! How long to spin before sleeping.
//!
//! Waking a sleeper costs a few microseconds on one core and some tens across cores, so it pays to spin for a
//! request that comes sooner than that, if there is a core to spare. Whether it will is guessed from the last
//! waits: one that would have been caught sets the limit to its most, one that would not halves it, so an idle
//! guest is soon not spun for at all.
//!
//! Spinning on the very processor that the other side needs is the worst case, and a scheduler that woke both
//! there has no reason to part them. So each side tells where it runs; when they meet, the monitor's thread does
//! not spin but moves away; and a guest kernel that often meets a program of its own asks the monitor to part them.

use super::handover::Handover;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The longest spin of the monitor for a request, in nanoseconds: about what a wake-up across cores costs.
const HOST_NS: u64 = 50_000;
/// The longest spin of a vCPU for an answer, in nanoseconds. Most answers take less than one microsecond.
const GUEST_NS: u64 = 20_000;

/// The longest spin for a new sandbox, in nanoseconds.
const START_NS: u64 = 300_000;

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
pub(crate) fn to_ns(turns: u64) -> u64 {
    turns.saturating_mul(turn_ps()) / 1000
}

fn turns(ns: u64) -> u32 {
    (ns * 1000 / turn_ps()) as u32
}

/// Whether a thread may spin while another runs: there is more than one processor for this thread.
fn spare_core() -> bool {
    sched_getaffinity(None).is_ok_and(|allowed| allowed.count() > 1)
}

/// How often to spin for a new sandbox's vCPU thread, which takes some 100 us.
pub(super) fn start_limit() -> u32 {
    if spare_core() { turns(START_NS) } else { 0 }
}

/// How often a vCPU may spin for an answer.
pub(super) fn guest_limit() -> u32 {
    // It looks where the other is whenever a multiple of so many is left, and not at the beginning.
    const LOOK: u32 = super::stub::SPIN_LOOK_MASK + 1;
    if spare_core() { turns(GUEST_NS).next_multiple_of(LOOK) } else { 0 }
}

/// The monitor's own limit for one vCPU.
#[derive(Debug)]
pub(super) struct Spin {
    limit: u32,
    most: u32,
    moved: Instant,
}

/// Moving more often than this would be fighting with the scheduler.
const BETWEEN_MOVES: Duration = Duration::from_millis(5);

/// Moves this thread to another processor than the one it is on, if it may run on another.
fn move_away() -> rustix::io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    let mut others = allowed;
    others.unset(rustix::thread::sched_getcpu());
    if others.count() > 0 {
        sched_setaffinity(None, &others)?;
        sched_setaffinity(None, &allowed)?;
    }
    Ok(())
}

/// How often a guest kernel finds its program on its own processor before it asks for another.
const TOGETHER: u32 = 256;
/// If it took less than this, spinning on two processors would have been cheaper than taking turns on one.
const TOGETHER_TIME: Duration = Duration::from_nanos(HOST_NS * TOGETHER as u64);

/// Keeps a guest kernel and the programs that it enters by itself on two processors, if they trap often.
#[derive(Debug)]
pub(super) struct Parting {
    since: Instant,
    /// The program's thread that is kept from its guest kernel's processor, and where it may run otherwise.
    parted: Option<(Pid, CpuSet)>,
}

impl Parting {
    pub(super) fn new(kernel: &Handover) -> Self {
        kernel.together_left.store(TOGETHER, Relaxed);
        Self { since: Instant::now(), parted: None }
    }

    /// The guest kernel enters the program of `thread`, which waits. If they met too often, it goes on elsewhere.
    pub(super) fn entering(&mut self, kernel: &Handover, thread: Option<Pid>) {
        let left = kernel.together_left.swap(TOGETHER, Relaxed) as i32;
        if left > 0 {
            return;
        }
        let often = self.since.elapsed() < TOGETHER_TIME;
        self.since = Instant::now();
        let Some((thread, allowed)) = thread.filter(|_| often).zip(sched_getaffinity(thread).ok()) else {
            return;
        };
        let mut others = allowed;
        others.unset(kernel.cpu.load(Relaxed) as usize);
        if others.count() > 0 && sched_setaffinity(Some(thread), &others).is_ok() {
            self.parted = Some((thread, allowed));
        }
    }

    /// The program has run, and has trapped: it is where it should be, and may be moved again as any other.
    pub(super) fn trapped(&mut self) {
        if let Some((thread, allowed)) = self.parted.take() {
            let _ = sched_setaffinity(Some(thread), &allowed); // it may be dead
        }
    }
}

impl Spin {
    pub(super) fn new() -> Self {
        let most = if spare_core() { turns(HOST_NS) } else { 0 };
        Self { limit: most, most, moved: Instant::now() }
    }

    /// How often to spin now. `together`: both sides were last seen on one processor.
    pub(super) fn limit(&mut self, together: bool) -> u32 {
        if !together || self.limit == 0 {
            return self.limit;
        }
        if self.moved.elapsed() < BETWEEN_MOVES {
            return 0;
        }
        self.moved = Instant::now();
        match move_away() {
            Ok(()) => self.limit,
            Err(_) => 0, // the host does not let us; then the two take turns
        }
    }

    /// How often to spin before looking where both sides are.
    pub(super) fn brief(&self) -> u32 {
        self.limit.min(64)
    }

    /// The limit was reached without a request.
    pub(super) fn in_vain(&mut self) {
        self.limit /= 2;
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
        let mut spin = Spin { limit: 1024, most: 1024, moved: Instant::now() };
        let mut spun = 0;
        for _ in 0..11 {
            spun += spin.limit(false);
            spin.in_vain();
            spin.slept(10_000_000);
        }
        assert_eq!(spin.limit(false), 0);
        assert_eq!(spun, 2047);
        spin.slept(5_000);
        assert_eq!(spin.limit(false), 1024);
        assert_eq!(spin.limit(true), 0, "both on one processor, and just moved");
    }
}

//! What a vCPU's crossings cost, counted where others can read it while it runs.
//!
//! Only the vCPU's own thread in the monitor counts, so a count is a load and a store, and no locked instruction. It is
//! read now and then, by whoever wants to know, and may be a moment old.

use super::process::spin;
use super::{CALL_KINDS, CallCounts, Counters, TrapCounts, UserCause};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that one thread raises and any reads.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Only ever on one thread.
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Traps, by what they are: see [`TrapCounts`].
#[derive(Debug, Default)]
pub(crate) struct Traps {
    system_calls: Count,
    page_faults: Count,
    exceptions: Count,
    interrupted: Count,
    killed: Count,
    pub mended: Count,
    pub kernel: Count,
}

impl Traps {
    /// Those of programs that came back so.
    pub(crate) fn came_back(&self, cause: UserCause) -> &Count {
        match cause {
            UserCause::SystemCall => &self.system_calls,
            UserCause::PageFault { .. } => &self.page_faults,
            UserCause::Exception { .. } => &self.exceptions,
            UserCause::Interrupted => &self.interrupted,
            UserCause::Killed => &self.killed,
        }
    }

    fn counts(&self) -> TrapCounts {
        TrapCounts {
            system_calls: self.system_calls.get(),
            page_faults: self.page_faults.get(),
            exceptions: self.exceptions.get(),
            interrupted: self.interrupted.get(),
            killed: self.killed.get(),
            mended: self.mended.get(),
            kernel: self.kernel.get(),
        }
    }
}

/// One vCPU's counts. Aligned, so that no vCPU's slow another's down.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Tally {
    /// By [`CallCounts::kind_of`].
    pub calls: [Count; CALL_KINDS],
    pub traps: Traps,
    pub rewritten: Count,
    pub not_rewritten: Count,
    pub sleeps: Count,
    pub exits: Count,
    /// Turns of the spinning loop.
    pub host_spins: Count,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            calls: std::array::from_fn(|_| Count::default()),
            traps: Traps::default(),
            rewritten: Count::default(),
            not_rewritten: Count::default(),
            sleeps: Count::default(),
            exits: Count::default(),
            host_spins: Count::default(),
        }
    }
}

impl Tally {
    /// What was counted so far; what the vCPU's thread says that it span, in turns; and how often it was told of events.
    pub(crate) fn counters(&self, guest_spins: u64, upcalls: u64) -> Counters {
        let calls = CallCounts(self.calls.each_ref().map(Count::get));
        let trap_kinds = self.traps.counts();
        Counters {
            hypercalls: calls.total(),
            calls,
            traps: trap_kinds.total(),
            trap_kinds,
            upcalls,
            rewritten: self.rewritten.get(),
            not_rewritten: self.not_rewritten.get(),
            sleeps: self.sleeps.get(),
            exits: self.exits.get(),
            host_spin_ns: spin::to_ns(self.host_spins.get()),
            guest_spin_ns: spin::to_ns(guest_spins),
        }
    }
}

//! What a vCPU's crossings cost, counted where others can read it while it runs.
//!
//! Only the vCPU's own thread in the monitor counts, so a count is a load and a store, and no locked instruction. It is
//! read now and then, by whoever wants to know, and may be a moment old.

use super::spin;
use crate::engine::Counters;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that one thread raises and any reads.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    /// Only ever on one thread.
    pub(super) fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One vCPU's counts. Aligned, so that no vCPU's slow another's down.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Tally {
    pub hypercalls: Count,
    pub traps: Count,
    pub rewritten: Count,
    pub not_rewritten: Count,
    pub sleeps: Count,
    /// Turns of the spinning loop.
    pub host_spins: Count,
}

impl Tally {
    /// What was counted so far, and what the vCPU's thread says that it span, in turns.
    pub(super) fn counters(&self, guest_spins: u64) -> Counters {
        Counters {
            hypercalls: self.hypercalls.get(),
            traps: self.traps.get(),
            rewritten: self.rewritten.get(),
            not_rewritten: self.not_rewritten.get(),
            sleeps: self.sleeps.get(),
            host_spin_ns: spin::to_ns(self.host_spins.get()),
            guest_spin_ns: spin::to_ns(guest_spins),
        }
    }
}

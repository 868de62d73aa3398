//! Steal time: the guest is told of time for which a vCPU wanted to run and could not.
//!
//! Two parts: what it waited for a processor of the host's, which the host counts for each thread and the vCPU's own
//! thread in the monitor passes on when a timer of the guest's fires ([`Delay`]); and what the VM was held back
//! ([`HeldBack`]). What is in the vCPU page already is a claim of the guest's, and only added to.

use crate::engine::Control;
use crate::events::VcpuPages;
use hv_abi::vcpu::run_state;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

/// How often the host is asked at the most: a system call or two.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What a vCPU waited for a processor.
#[derive(Debug)]
pub(crate) struct Delay {
    vcpu: u32,
    told: u64,
    looked: Instant,
}

impl Delay {
    /// From here on: what an earlier thread of the vCPU had waited has been told.
    pub(crate) fn new(vcpu: u32, control: &dyn Control) -> Self {
        Self { vcpu, told: control.run_delay(vcpu), looked: Instant::now() }
    }

    /// Adds what is new to the vCPU's page, unless that was done just now.
    pub(crate) fn tell(&mut self, control: &dyn Control, pages: &VcpuPages) {
        if self.looked.elapsed() < BETWEEN_LOOKS {
            return;
        }
        self.looked = Instant::now();
        let delay = control.run_delay(self.vcpu);
        pages.page(self.vcpu).steal_ns.fetch_add(delay.saturating_sub(self.told), SeqCst);
        self.told = delay;
    }
}

/// The vCPUs of a VM that is held back.
#[derive(Debug)]
pub(super) struct HeldBack<'a> {
    pages: &'a VcpuPages,
    /// Those that did not sleep.
    wanted: Vec<u32>,
}

impl<'a> HeldBack<'a> {
    /// To be made before it is held back.
    pub(super) fn new(pages: &'a VcpuPages) -> Self {
        let runs = |vcpu: &u32| pages.page(*vcpu).run_state.load(SeqCst) != run_state::BLOCKED;
        Self { pages, wanted: (0..pages.vcpus()).filter(runs).collect() }
    }

    /// No guest code runs any more.
    pub(super) fn begins(&self) {
        (0..self.pages.vcpus()).for_each(|vcpu| self.pages.page(vcpu).preempted.store(1, Relaxed));
    }

    /// It is about to run again, after this time.
    pub(super) fn ends(&self, time: Duration) {
        for vcpu in &self.wanted {
            self.pages.page(*vcpu).steal_ns.fetch_add(time.as_nanos() as u64, SeqCst);
        }
        (0..self.pages.vcpus()).for_each(|vcpu| self.pages.page(vcpu).preempted.store(0, SeqCst));
    }
}

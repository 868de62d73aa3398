//! Stopping points: all vCPUs of a VM are brought to one, and go on from there.
//!
//! Start at [`Vm::pause`].

use super::{Message, Vm};
use crate::coredump::CoreDump;
use crate::engine::Registers;
use crate::memory::GuestMemory;
use crate::report::Report;
use crate::vcpu::Order;
use crate::view::{AddressSpace, View};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// A vCPU that used this much processor time after it was asked to stop will not. Where the host is a virtual machine itself,
/// its own hypervisor may take a processor away for 10 ms and more: the signal does not come so long, and the time is counted.
const STOP_CPU_TIME: Duration = Duration::from_millis(100);
/// One that used this much while it said that it stood did not.
const STANDING_CPU_TIME: Duration = Duration::from_millis(10);
/// How often one is asked.
const ASK_AGAIN: Duration = Duration::from_millis(1);
/// Nor one that took this long.
const STOP_WALL_TIME: Duration = Duration::from_secs(1);

impl Vm {
    /// Stops all vCPUs at their next stopping points.
    ///
    /// # Errors
    ///
    /// The report, if the VM ended meanwhile, or had to be ended since a vCPU did not answer.
    #[expect(clippy::result_large_err, reason = "a report is made once in a VM's life")]
    pub fn pause(self) -> Result<Paused, Report> {
        let mut vm = self;
        match vm.stop_vcpus() {
            Stop::Stopped => Ok(Paused(vm)),
            Stop::Ended(message) => Err(vm.finish(Some(message))),
            Stop::Unanswered(_) => Err(vm.stop()),
        }
    }

    /// Asks all vCPUs to stop until they do, repeating the request, for one can miss it. Those of a paused VM have.
    pub(super) fn stop_vcpus(&mut self) -> Stop {
        let gate = self.gate.clone();
        let _lifted = gate.lift(); // they are to come to their stopping points at once
        self.shared.stopping.iter().for_each(|stopping| stopping.store(true, SeqCst));
        let mut asked = BTreeMap::new();
        loop {
            // One that runs may start another, until it has stopped itself.
            let mut left = self.shared.vcpus().started();
            left.retain(|vcpu| !self.standing.contains_key(vcpu));
            if left.is_empty() {
                self.shared.devices().pause();
                self.shared.paused.store(true, SeqCst);
                return Stop::Stopped;
            }
            for vcpu in left {
                self.control.request_stop(vcpu);
                let used = self.control.cpu_time(vcpu).unwrap_or(0);
                let (since, used_then) = asked.entry(vcpu).or_insert((Instant::now(), used));
                let used = used.saturating_sub(*used_then);
                if used > STOP_CPU_TIME.as_nanos() as u64 || since.elapsed() > STOP_WALL_TIME {
                    return Stop::Unanswered(vcpu);
                }
            }
            let until = Instant::now() + ASK_AGAIN;
            while let Ok(message) = self.messages.recv_deadline(until) {
                let Message::Stopped { vcpu, registers, .. } = message else { return Stop::Ended(message) };
                self.stands(vcpu, registers);
                if self.standing.len() >= self.shared.vcpus().started().len() {
                    break;
                }
            }
        }
    }

    /// After one vCPU has ended the VM, brings the others to stopping points, to see where they are. Those that do not come,
    /// or have ended, too, are left out.
    pub(super) fn stop_others(&mut self, ended: u32, registers: Registers) {
        self.standing.insert(ended, Standing { registers, cpu_time: None });
        if let Stop::Unanswered(vcpu) = self.stop_vcpus() {
            tracing::warn!(vcpu, "a vCPU did not stop, and is not in the core");
        }
    }

    /// A vCPU stands, and waits for an order.
    pub(super) fn stands(&mut self, vcpu: u32, registers: Registers) {
        self.control.cancel_stop(vcpu);
        let cpu_time = self.control.cpu_time(vcpu);
        self.standing.insert(vcpu, Standing { registers, cpu_time });
    }

    /// Has vCPUs that stand run on: all, or only some. A guest that ran while it said that it stood is ended instead: nobody could rely on
    /// its pauses.
    pub(super) fn resume_vcpus(&mut self, only: Option<&[u32]>) {
        let (going, staying) = std::mem::take(&mut self.standing)
            .into_iter()
            .partition(|(vcpu, _)| only.is_none_or(|only| only.contains(vcpu)));
        self.standing = staying;
        let going: BTreeMap<u32, Standing> = going;
        for (vcpu, Standing { cpu_time, .. }) in &going {
            let now = self.control.cpu_time(*vcpu);
            let ran = now.zip(*cpu_time).map_or(0, |(now, then)| now.saturating_sub(then));
            if ran > STANDING_CPU_TIME.as_nanos() as u64 {
                tracing::warn!(vcpu, ran_ns = ran, "a paused vCPU ran on, and its VM is ended");
                self.control.kill();
            }
        }
        self.shared.paused.store(false, SeqCst);
        self.shared.devices().resume();
        let stays = |vcpu: u32| self.standing.contains_key(&vcpu);
        let stopping = (0..).zip(&self.shared.stopping);
        stopping.filter(|(vcpu, _)| !stays(*vcpu)).for_each(|(_, stopping)| stopping.store(false, SeqCst));
        going.keys().for_each(|vcpu| self.shared.vcpus().order(*vcpu, Order::Resume));
    }
}

/// How asking all vCPUs to stop went.
#[expect(
    clippy::large_enum_variant,
    reason = "it is looked at where it is made, and the large one is a VM's last"
)]
pub(super) enum Stop {
    /// All stand.
    Stopped,
    Ended(Message),
    /// By this one.
    Unanswered(u32),
}

/// A VM whose vCPUs stand at stopping points.
pub struct Paused(Vm);

/// A vCPU that has stopped.
pub(super) struct Standing {
    pub(super) registers: Registers,
    /// Its processor time when it said that it had stopped.
    cpu_time: Option<u64>,
}

impl Paused {
    /// Where each vCPU that is started goes on, in the order of their numbers; in a hypercall only RSP and RBP are known.
    pub fn registers(&self) -> impl Iterator<Item = (u32, &Registers)> {
        self.0.standing.iter().map(|(vcpu, standing)| (*vcpu, &standing.registers))
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.0.shared.memory
    }

    /// Guest memory by the addresses of the guest kernel or of one of its programs.
    pub fn view(&self, space: AddressSpace) -> View<'_> {
        self.0.shared.view(space)
    }

    /// A core of it as it stands, to be written before it goes on.
    ///
    /// # Panics
    ///
    /// Never: a VM has a vCPU that is started.
    pub fn core(&self) -> CoreDump {
        let (vcpu, standing) = self.0.standing.first_key_value().expect("a VM has a vCPU that is started");
        self.0.core((*vcpu, standing.registers), None)
    }

    /// Runs on. A guest that ran while it said that it stood is ended instead: nobody could rely on its pauses.
    pub fn resume(mut self) -> Vm {
        self.0.resume_vcpus(None);
        self.0
    }
}

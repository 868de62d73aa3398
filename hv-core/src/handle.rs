//! A running VM, reached from another thread than the one that waits for it: to pause it, to let it run on, to look at it.
//!
//! What changes the VM is a request to the thread in [`Vm::wait`](crate::Vm::wait), so only one thread ever does. What is
//! looked at is read where the vCPUs' threads count it, and costs them nothing.
//!
//! Start at [`VmHandle`].

use crate::devices::DeviceStats;
use crate::engine::{Control, Counters, SpaceCounts};
use crate::presence::MemoryStats;
use crate::profile::{ProfileError, Profiler};
use crate::trace::Session;
use crate::vm::Shared;
use crossbeam_channel::{Sender, bounded};
use hv_abi::vcpu::run_state;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Weak};

/// Why a request came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is no VM any more.
    #[error("the VM has ended")]
    Ended,
    /// It runs on.
    #[error(
        "the VM came to no stopping point in time, and runs on: its console may not be read, or its guest hides"
    )]
    Unanswered,
    /// A debugger has it stand.
    #[error("a debugger holds the VM, and lets it go on")]
    Debugged,
}

/// Why a VM cannot be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// There is no VM any more.
    #[error("the VM has ended")]
    Ended,
    /// A trace is one person's at a time: two would take events away from each other.
    #[error(
        "the VM is being traced already, and by one at a time: wait for the end of that trace, or end it"
    )]
    Taken,
}

/// What is asked of the thread that waits for a VM.
pub(crate) struct Request {
    pub wanted: Wanted,
    pub answer: Sender<Result<(), RequestError>>,
}

/// What a VM is to do.
pub(crate) enum Wanted {
    Pause,
    Resume,
    /// A debugger lets these vCPUs go on, or all.
    Go(Option<Vec<u32>>),
}

/// Reaches a VM from other threads. It keeps nothing of a VM that has ended.
#[derive(Clone)]
pub struct VmHandle {
    shared: Weak<Shared>,
    control: Weak<dyn Control>,
    requests: Sender<Request>,
}

/// What there is to see of a running VM.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// It was paused, and has not gone on.
    pub paused: bool,
    /// Its memory.
    pub memory: MemoryStats,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuStats>,
    /// What was done for its address spaces so far.
    pub spaces: SpaceCounts,
    /// Nanoseconds for which its guest code was held back so far, to keep its share of the processors.
    pub held_back_ns: u64,
    /// Host processes that carry its guest code.
    pub processes: Vec<u32>,
    /// What its devices did so far, in the order of the guest's table.
    pub devices: Vec<DeviceStats>,
}

/// What there is to see of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// What it does.
    pub state: VcpuState,
    /// Nanoseconds for which its guest code was ready to run and had no processor, as the host says.
    #[serde(default)]
    pub steal_ns: u64,
    /// Processor time of its thread that runs the guest kernel; of programs only their VM's is known.
    #[serde(default)]
    pub kernel_cpu_ns: u64,
    /// Processor time of the monitor's thread that serves it, since it was started.
    #[serde(default)]
    pub monitor_cpu_ns: u64,
    /// What its crossings cost so far.
    #[serde(default)]
    pub counters: Counters,
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VcpuState {
    /// It is not started, or has stopped itself.
    Stopped,
    /// It runs, or would if it had a processor.
    Running,
    /// It waits for an event, as it says.
    Blocked,
    /// Something that a later hv knows.
    #[serde(other)]
    Other,
}

impl VmHandle {
    pub(crate) fn new(shared: &Arc<Shared>, control: &Arc<dyn Control>, requests: Sender<Request>) -> Self {
        Self { shared: Arc::downgrade(shared), control: Arc::downgrade(control), requests }
    }

    /// Stops all vCPUs at their next stopping point, and waits until they have. A VM that is paused stays so.
    ///
    /// It is served while a thread is in [`Vm::wait`](crate::Vm::wait), and waits for one.
    ///
    /// # Errors
    ///
    /// [`RequestError`]: it has ended, or runs on.
    pub fn pause(&self) -> Result<(), RequestError> {
        self.request(Wanted::Pause)
    }

    /// Lets a paused VM run on; one that runs, runs on. Served as [`pause`](Self::pause).
    ///
    /// # Errors
    ///
    /// [`RequestError::Ended`], or [`RequestError::Debugged`].
    pub fn resume(&self) -> Result<(), RequestError> {
        self.request(Wanted::Resume)
    }

    pub(crate) fn request(&self, wanted: Wanted) -> Result<(), RequestError> {
        let (answer, answered) = bounded(1);
        self.requests.send(Request { wanted, answer }).map_err(|_| RequestError::Ended)?;
        answered.recv().unwrap_or(Err(RequestError::Ended))
    }

    /// Samples its stacks, from now on.
    ///
    /// # Errors
    ///
    /// [`ProfileError`]: it has ended, or is being profiled.
    pub fn profile(&self) -> Result<Profiler, ProfileError> {
        Profiler::new(self.shared.clone(), self.control.clone())
    }

    /// Watches each crossing from now on, until the session is dropped.
    ///
    /// # Errors
    ///
    /// [`TraceError`].
    pub fn trace(&self) -> Result<Session, TraceError> {
        let shared = self.shared.upgrade().ok_or(TraceError::Ended)?;
        Session::begin(&shared).ok_or(TraceError::Taken)
    }

    /// What there is to see at the moment.
    ///
    /// # Errors
    ///
    /// [`RequestError::Ended`].
    pub fn stats(&self) -> Result<Stats, RequestError> {
        let shared = self.shared.upgrade().ok_or(RequestError::Ended)?;
        let control = self.control.upgrade().ok_or(RequestError::Ended)?;
        Ok(Stats {
            paused: shared.paused.load(SeqCst),
            memory: shared.memory.stats(),
            vcpus: vcpus(&shared, &*control),
            spaces: control.space_counts(),
            held_back_ns: control.held_back().as_nanos() as u64,
            processes: control.processes(),
            devices: shared.devices().stats(),
        })
    }
}

fn vcpus(shared: &Shared, control: &dyn Control) -> Vec<VcpuStats> {
    let of = |(vcpu, monitor_cpu): (u32, Option<u64>)| VcpuStats {
        state: match (monitor_cpu, shared.pages.page(vcpu).run_state.load(SeqCst)) {
            (None, _) => VcpuState::Stopped,
            (Some(_), run_state::BLOCKED) => VcpuState::Blocked,
            (Some(_), _) => VcpuState::Running,
        },
        steal_ns: control.run_delay(vcpu),
        kernel_cpu_ns: control.cpu_time(vcpu).unwrap_or(0),
        monitor_cpu_ns: monitor_cpu.unwrap_or(0),
        counters: control.counters(vcpu),
    };
    (0..).zip(shared.vcpus().cpu_times()).map(of).collect()
}

//! The vCPUs of a VM: which of them are started, and the monitor's threads that serve them.
//!
//! Only vCPU 0 is started with the VM. A guest starts the others (`VCPU_START`), and each may stop itself (`VCPU_STOP`); a
//! vCPU that is not started costs its page, and no thread.
//!
//! Start at [`Vcpus::start`].

use crate::clock::GuestClock;
use crate::cpu_clock::{self, ThreadClock};
use crate::cpu_share::steal;
use crate::engine::{Control, EngineError, Registers, VcpuRunner};
use crate::vcpu::{Debugged, Order, VcpuThread};
use crate::vm::{Message, Shared};
use crossbeam_channel::{Sender, bounded};
use hv_abi::Status;
use hv_abi::vcpu::run_state;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// Interrupts enabled, and the bit that is always set.
const FIRST_FLAGS: u64 = 0x202;

pub(crate) struct Vcpus {
    control: Arc<dyn Control>,
    clock: Arc<Mutex<GuestClock>>,
    messages: Sender<Message>,
    inner: Mutex<Inner>,
}

struct Inner {
    vcpus: Vec<State>,
    /// No more are started.
    ending: bool,
    /// Those of the threads of vCPUs that are started.
    clocks: Vec<Option<ThreadClock>>,
    /// Processor time of threads whose vCPUs have stopped, in nanoseconds.
    stopped_cpu_time: u64,
}

enum State {
    Stopped,
    /// Another vCPU starts it.
    Starting,
    /// It stops itself, and cannot be started until it has.
    Stopping,
    Started(Started),
}

struct Started {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

/// Why a vCPU was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotStarted {
    #[error("it is started already, or the VM ends")]
    Busy,
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("its thread could not be made")]
    Thread(std::io::Error),
}

impl Vcpus {
    /// None is started.
    pub(crate) fn new(
        vcpus: u32,
        control: Arc<dyn Control>,
        clock: GuestClock,
        messages: Sender<Message>,
    ) -> Self {
        let inner = Mutex::new(Inner {
            vcpus: (0..vcpus).map(|_| State::Stopped).collect(),
            ending: false,
            clocks: vec![None; vcpus as usize],
            stopped_cpu_time: 0,
        });
        Self { control, clock: Arc::new(Mutex::new(clock)), messages, inner }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no thread panics with the lock held")
    }

    /// Starts a vCPU of `vm`, whose vCPUs these are, at V `entry` with `argument` in RDI.
    pub(crate) fn start(
        &self,
        vm: &Arc<Shared>,
        vcpu: u32,
        entry: u64,
        argument: u64,
    ) -> Result<(), NotStarted> {
        {
            let mut inner = self.lock();
            if inner.ending || !matches!(inner.vcpus[vcpu as usize], State::Stopped) {
                return Err(NotStarted::Busy);
            }
            inner.vcpus[vcpu as usize] = State::Starting;
        }
        let first = Registers { rip: entry, rdi: argument, rflags: FIRST_FLAGS, ..Registers::default() };
        // Not with the lock held: a hostile guest can make it take long.
        let runner = self.control.clone().start_vcpu(vcpu, &first);
        let started = runner.map_err(NotStarted::from).and_then(|runner| self.run(vm, vcpu, runner));
        if started.is_err() {
            vm.pages.page(vcpu).run_state.store(run_state::STOPPED, SeqCst);
            self.lock().vcpus[vcpu as usize] = State::Stopped;
        }
        started
    }

    /// Runs a vCPU that is ready, on a thread of its own.
    fn run(&self, vm: &Arc<Shared>, vcpu: u32, runner: Box<dyn VcpuRunner>) -> Result<(), NotStarted> {
        vm.pages.start(vcpu);
        // Held until the thread is known: it may stop the vCPU at once.
        let mut inner = self.lock();
        let (orders, orders_out) = bounded(1);
        let thread = VcpuThread {
            vm: vm.clone(),
            vcpu,
            runner,
            control: self.control.clone(),
            clock: self.clock.clone(),
            delay: steal::Delay::new(vcpu, &*self.control),
            messages: self.messages.clone(),
            orders: orders_out,
            debugged: vm.debug.clone().map(Debugged::new),
        };
        let builder = std::thread::Builder::new().name(format!("hv-vcpu{vcpu}"));
        let thread = builder.spawn(move || thread.run()).map_err(NotStarted::Thread)?;
        inner.clocks[vcpu as usize] = ThreadClock::of(&thread);
        inner.vcpus[vcpu as usize] = State::Started(Started { orders, thread });
        tracing::debug!(vcpu, "started");
        Ok(())
    }

    /// A vCPU is to stop itself, which it does unless it is the last.
    pub(crate) fn begin_stop(&self, vcpu: u32) -> Result<(), Status> {
        let mut inner = self.lock();
        let started = inner.vcpus.iter().filter(|state| matches!(state, State::Started(_))).count();
        if started < 2 {
            return Err(Status::BUSY);
        }
        inner.vcpus[vcpu as usize] = State::Stopping; // its thread ends by itself
        Ok(())
    }

    /// On its thread: it has stopped, and may be started again; `then` is done before that can be.
    pub(crate) fn has_stopped(&self, vcpu: u32, then: impl FnOnce()) {
        let mut inner = self.lock();
        inner.clocks[vcpu as usize] = None;
        inner.stopped_cpu_time += cpu_clock::this_thread();
        then();
        inner.vcpus[vcpu as usize] = State::Stopped;
        tracing::debug!(vcpu, "stopped");
    }

    /// Those that are started, or are about to stop themselves. Whoever starts another is one of them until that is one, too.
    pub(crate) fn started(&self) -> Vec<u32> {
        let inner = self.lock();
        let started = (0..).zip(&inner.vcpus);
        let started = started.filter(|(_, state)| !matches!(state, State::Stopped | State::Starting));
        started.map(|(vcpu, _)| vcpu).collect()
    }

    /// Processor time that the threads which serve the vCPUs have had, in nanoseconds.
    pub(crate) fn cpu_time(&self) -> u64 {
        let inner = self.lock();
        inner.stopped_cpu_time + inner.clocks.iter().flatten().filter_map(|clock| clock.read()).sum::<u64>()
    }

    /// The same for each vCPU that is started.
    pub(crate) fn cpu_times(&self) -> Vec<Option<u64>> {
        self.lock().clocks.iter().map(|clock| clock.as_ref()?.read()).collect()
    }

    /// Tells a vCPU that has stopped for the host what to do.
    pub(crate) fn order(&self, vcpu: u32, order: Order) {
        if let State::Started(started) = &self.lock().vcpus[vcpu as usize] {
            let _ = started.orders.send(order); // its thread may have ended
        }
    }

    /// Waits for all threads, after their guest code has been ended.
    pub(crate) fn end(&self) {
        self.lock().ending = true;
        // One after the other, for until it has ended each may start another.
        while let Some(Started { orders, thread }) = self.take_started() {
            // It may yet serve what the guest had published, and then wait for an order: without anyone to give one, it ends.
            drop(orders);
            let _ = thread.join();
        }
    }

    /// One that is started, and is to be no more.
    fn take_started(&self) -> Option<Started> {
        let mut inner = self.lock();
        let state = inner.vcpus.iter_mut().find(|state| matches!(state, State::Started(_)))?;
        match std::mem::replace(state, State::Stopping) {
            State::Started(started) => Some(started),
            _ => None,
        }
    }
}

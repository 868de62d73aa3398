//! The vCPUs of a VM: which of them are started, and the monitor's threads that serve them.
//!
//! Only vCPU 0 is started with the VM. A guest starts the others (`VCPU_START`), and each may stop itself (`VCPU_STOP`); a
//! vCPU that is not started costs its page, and no thread.
//!
//! Start at [`Vcpus::start`].

use crate::clock::GuestClock;
use crate::engine::{Control, EngineError, Registers};
use crate::vcpu::{Order, VcpuThread};
use crate::vm::{Message, Shared};
use crossbeam_channel::{Sender, bounded};
use hv_abi::Status;
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
}

enum State {
    Stopped,
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
        let vcpus = (0..vcpus).map(|_| State::Stopped).collect();
        let inner = Mutex::new(Inner { vcpus, ending: false });
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
        let mut inner = self.lock();
        if inner.ending || !matches!(inner.vcpus[vcpu as usize], State::Stopped) {
            return Err(NotStarted::Busy);
        }
        let first = Registers { rip: entry, rdi: argument, rflags: FIRST_FLAGS, ..Registers::default() };
        let runner = self.control.clone().start_vcpu(vcpu, &first)?;
        vm.pages.start(vcpu);
        let (orders, orders_out) = bounded(1);
        let thread = VcpuThread {
            vm: vm.clone(),
            vcpu,
            runner,
            control: self.control.clone(),
            clock: self.clock.clone(),
            messages: self.messages.clone(),
            orders: orders_out,
        };
        let builder = std::thread::Builder::new().name(format!("hv-vcpu{vcpu}"));
        let thread = builder.spawn(move || thread.run()).map_err(NotStarted::Thread)?;
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

    /// It has stopped, and may be started again; `then` is done before that can be.
    pub(crate) fn has_stopped(&self, vcpu: u32, then: impl FnOnce()) {
        let mut inner = self.lock();
        then();
        inner.vcpus[vcpu as usize] = State::Stopped;
        tracing::debug!(vcpu, "stopped");
    }

    /// Those that are started, or are about to stop themselves.
    pub(crate) fn started(&self) -> Vec<u32> {
        let inner = self.lock();
        let started = (0..).zip(&inner.vcpus).filter(|(_, state)| !matches!(state, State::Stopped));
        started.map(|(vcpu, _)| vcpu).collect()
    }

    /// Tells a vCPU that has stopped for the host what to do.
    pub(crate) fn order(&self, vcpu: u32, order: Order) {
        if let State::Started(started) = &self.lock().vcpus[vcpu as usize] {
            let _ = started.orders.send(order); // its thread may have ended
        }
    }

    /// Waits for all threads, after their guest code has been ended.
    pub(crate) fn end(&self) {
        let started: Vec<_> = {
            let mut inner = self.lock();
            inner.ending = true;
            inner.vcpus.iter_mut().map(|state| std::mem::replace(state, State::Stopping)).collect()
        };
        for state in started {
            let State::Started(Started { orders, thread }) = state else { continue };
            // It may yet serve what the guest had published, and then wait for an order: without anyone to give one, it ends.
            drop(orders);
            let _ = thread.join();
        }
    }
}

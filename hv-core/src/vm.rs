//! A virtual machine: started from a [`Config`], stopped or waited for, and what is said of it at its end.
//!
//! One thread per vCPU that is started serves it (`vcpus`, `vcpu`); whoever holds the [`Vm`] hears from them over a channel. Guest
//! code runs elsewhere, where the engine put it.
//!
//! Start at [`Vm::start`].

mod shared;
mod stopping;

pub(crate) use shared::Shared;
pub use stopping::Paused;

use crate::backtrace::{self, MOST_FRAMES};
use crate::boot::{self, Boot};
use crate::clock::GuestClock;
use crate::config::{Config, StartError, check};
use crate::console_input::ConsoleInput;
use crate::coredump::CoreDump;
use crate::cpu_share::{Gate, Keeper, Measured};
use crate::debug::{self, Debugger};
use crate::devices::{Devices, Plan};
use crate::engine::{self, Control, Registers, Setup};
use crate::events::VcpuPages;
use crate::handle::{Request, RequestError, VmHandle, Wanted};
use crate::image::Image;
use crate::ledger::Ledger;
use crate::memory::GuestMemory;
use crate::presence::MemoryStats;
use crate::report::{End, Report};
use crate::trace::Session;
use crate::vcpu::Order;
use crate::vcpus::{NotStarted, Vcpus};
use crate::view::AddressSpace;
use crossbeam_channel::{Receiver, Sender, after, bounded, never, select, unbounded};
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use stopping::{Standing, Stop};

/// What a vCPU's thread tells.
pub(crate) enum Message {
    Stopped {
        vcpu: u32,
        registers: Registers,
        /// It stands by itself, until it is let go.
        held: bool,
    },
    /// By the first vCPU that ends; the others are silent.
    Ended { vcpu: u32, end: End, registers: Registers },
}

/// A running virtual machine. Dropping it ends it.
pub struct Vm {
    shared: Arc<Shared>,
    control: Arc<dyn Control>,
    gate: Arc<Gate>,
    keeper: Option<Keeper>,
    image: Image,
    command_line: String,
    messages: Receiver<Message>,
    stop_requests: (Sender<()>, Receiver<()>),
    requests: (Sender<Request>, Receiver<Request>),
    /// The vCPUs that have stopped for the host, and wait for an order.
    standing: BTreeMap<u32, Standing>,
    trace: Option<Session>,
    /// What its debugger is to hear of, until there is one.
    debug_events: Option<Receiver<debug::Event>>,
}

/// Ends a VM from another thread than the one that waits for it.
#[derive(Clone, Debug)]
pub struct Stopper(Sender<()>);

impl Stopper {
    /// Makes [`Vm::wait`] stop the guest and return. Does not wait for that; asking twice is asking once.
    pub fn stop(&self) {
        let _ = self.0.try_send(()); // full: it has been asked for; disconnected: the VM is gone
    }
}

/// Looks at a VM's memory, and asks for some of it back, from any thread. It does not keep the VM.
#[derive(Clone)]
pub struct MemoryControl(Weak<Shared>);

/// Why the balloon cannot be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalloonError {
    /// It has ended.
    #[error("the VM has ended")]
    Ended,
    /// It would never hear of it.
    #[error(
        "the guest has no balloon: its image does not ask for the feature PAGE_REPORTING, and the VM has no device for it"
    )]
    NoBalloon,
}

impl MemoryControl {
    /// What of the VM's memory is there; `None` once the VM is gone.
    pub fn stats(&self) -> Option<MemoryStats> {
        self.0.upgrade().map(|vm| vm.memory.stats())
    }

    /// Asks the guest to give up so many bytes, rounded down to pages and at most all, until it is asked for another number. A
    /// guest follows if it likes and as far as it can: [`MemoryStats::ballooned`] says how far it has.
    ///
    /// # Errors
    ///
    /// There is nobody to ask.
    pub fn set_balloon(&self, bytes: u64) -> Result<(), BalloonError> {
        let vm = self.0.upgrade().ok_or(BalloonError::Ended)?;
        if vm.set_balloon(bytes) { Ok(()) } else { Err(BalloonError::NoBalloon) }
    }
}

impl Vm {
    /// Makes a VM and runs it.
    ///
    /// # Errors
    ///
    /// [`StartError`] says what is wrong with the configuration or what the host refused.
    pub fn start(config: Config) -> Result<Self, StartError> {
        check(&config)?;
        let host = |what| move |source| StartError::Host { what, source };
        let features = crate::offered_features() & (config.image.note.needed | config.image.note.liked);
        let memory = GuestMemory::new(config.memory)
            .map_err(|source| StartError::Memory { memory: config.memory, source })?;
        let plan = Plan::new(config.devices);
        let engine = engine::choose(config.engine, config.debug)?;
        let boot = Boot {
            image: &config.image,
            ramdisk: &config.ramdisk,
            command_line: &config.command_line,
            features,
            vcpus: config.vcpus,
            devices: &plan,
            xstate: engine.xstate(),
        };
        let loaded = boot.load(&memory)?;
        let pages = Arc::new(VcpuPages::new(config.vcpus).map_err(host("the vCPU pages"))?);
        let mappings = boot::mappings(&config.image, memory.size());
        let gate = Arc::new(Gate::new());
        let setup = Setup {
            gate: &gate,
            memory: &memory,
            pages: &pages,
            mappings: &mappings,
            rewrite: config.rewrite && !config.debug,
            kernel_root: boot::kernel_root(features),
            sees_entries: config.check_tables || config.debug,
        };
        let control = engine.start(&setup)?;
        let mut shared = Shared::new(
            memory,
            pages,
            control.clone(),
            control.clone(),
            features,
            config.breakpoints,
            config.console,
        );
        shared.console_input = ConsoleInput::new(shared.events.clone(), config.console_input);
        shared.xstate = engine.xstate();
        shared.mappings = mappings;
        shared.leaves_core = config.core;
        shared.ledger = config.check_tables.then(|| Ledger::new(&shared.memory, shared.roots.kernel()));
        let devices = Devices::new(plan, &loaded.devices, &shared.memory, &shared.events, control.clone());
        shared.devices = Some(devices.map_err(host("a device"))?);
        let (state, debug_events) = config
            .debug
            .then(|| debug::State::new(&shared.memory, &shared.mappings, shared.roots.kernel()))
            .unzip();
        shared.debug = state;
        let (messages_in, messages) = unbounded();
        let clock = GuestClock::start(shared.pages.clock());
        shared.vcpus = Some(Vcpus::new(config.vcpus, control.clone(), clock, messages_in));
        let shared = Arc::new(shared);
        let trace = if config.trace { Session::begin(&shared) } else { None };
        match shared.vcpus().start(&shared, 0, config.image.entry, loaded.info) {
            Ok(()) => {}
            Err(NotStarted::Engine(error)) => return Err(error.into()),
            Err(NotStarted::Thread(source)) => {
                return Err(StartError::Host { what: "a vCPU's thread", source });
            }
            Err(NotStarted::Busy) => unreachable!("no vCPU is started yet"),
        }
        tracing::debug!(memory = config.memory, ?features, "started");
        let mut vm = Self {
            shared,
            control,
            gate,
            keeper: None,
            image: config.image,
            command_line: config.command_line.join(" "),
            messages,
            stop_requests: bounded(1),
            requests: unbounded(),
            standing: BTreeMap::new(),
            trace,
            debug_events,
        };
        vm.keeper = Keeper::start(config.cpu, &vm.gate, &vm.control, &vm.shared)
            .map_err(host("the thread that keeps its share of the processors"))?;
        Ok(vm)
    }

    /// Waits until the VM has ended, or until a [`Stopper`] ends it.
    pub fn wait(self) -> Report {
        match self.wait_until(never()) {
            Ok(report) => report,
            Err(_) => unreachable!("`never` does not come"),
        }
    }

    /// As [`wait`](Self::wait), for at most `time`.
    ///
    /// # Errors
    ///
    /// Gives the VM back if it runs on.
    #[expect(clippy::result_large_err, reason = "the error is the VM, given back")]
    pub fn wait_timeout(self, time: Duration) -> Result<Report, Self> {
        self.wait_until(after(time))
    }

    #[expect(clippy::result_large_err, reason = "the error is the VM, given back")]
    fn wait_until(mut self, end: Receiver<Instant>) -> Result<Report, Self> {
        let (messages, stop, requests) =
            (self.messages.clone(), self.stop_requests.1.clone(), self.requests.1.clone());
        loop {
            select! {
                recv(messages) -> message => match message {
                    // Too late: the request was taken back.
                    Ok(Message::Stopped { vcpu, held: false, .. }) => {
                        self.shared.vcpus().order(vcpu, Order::Resume);
                    }
                    Ok(Message::Stopped { vcpu, registers, held: true }) => self.stands(vcpu, registers),
                    message => return Ok(self.finish(message.ok())),
                },
                recv(requests) -> request => {
                    if let Ok(Some(report)) = request.map(|request| self.serve(&request)) {
                        return Ok(report);
                    }
                }
                recv(stop) -> _ => return Ok(self.stop()),
                recv(end) -> _ => return Err(self),
            }
        }
    }

    /// Does what a [`VmHandle`] asks for. The report, if the VM has ended meanwhile.
    fn serve(&mut self, request: &Request) -> Option<Report> {
        let done = match request.wanted {
            Wanted::Resume if self.shared.debug.as_ref().is_some_and(|debug| debug.holds()) => {
                Err(RequestError::Debugged)
            }
            Wanted::Resume => {
                self.resume_vcpus(None);
                Ok(())
            }
            Wanted::Go(ref only) => {
                self.resume_vcpus(only.as_deref());
                Ok(())
            }
            Wanted::Pause => match self.stop_vcpus() {
                Stop::Stopped => Ok(()),
                Stop::Unanswered(_) => {
                    self.shared.vcpus().started().into_iter().for_each(|vcpu| self.control.cancel_stop(vcpu));
                    self.resume_vcpus(None);
                    Err(RequestError::Unanswered)
                }
                Stop::Ended(message) => return Some(self.finish(Some(message))),
            },
        };
        let _ = request.answer.send(done); // whoever asked may have gone
        None
    }

    /// Something by which other threads can pause this VM, and look at it.
    pub fn handle(&self) -> VmHandle {
        VmHandle::new(&self.shared, &self.control, self.requests.0.clone())
    }

    /// Something by which another thread holds this VM and looks into it, if it was [made for that](Config::debug). There is
    /// one: it is had once.
    pub fn debugger(&mut self) -> Option<Debugger> {
        let (state, events) = (self.shared.debug.clone()?, self.debug_events.take()?);
        Some(Debugger::new(state, events, self.handle()))
    }

    /// Something by which another thread can end this VM.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop_requests.0.clone())
    }

    /// Ends the VM from outside, at stopping points if its vCPUs come to them.
    pub fn stop(mut self) -> Report {
        match self.stop_vcpus() {
            Stop::Stopped => {
                let (first, _) = self.standing.pop_first().expect("a VM has a vCPU that is started");
                self.shared.vcpus().order(first, Order::End);
                let message = self.messages.recv();
                self.finish(message.ok())
            }
            Stop::Ended(message) => self.finish(Some(message)),
            Stop::Unanswered(vcpu) => {
                let (end, registers) = (End::Unanswered, Registers::default());
                self.finish(Some(Message::Ended { vcpu, end, registers }))
            }
        }
    }

    /// Fires an event channel on vCPU 0, as a device would. For measuring and testing.
    pub fn raise_event(&self, channel: u32) {
        if channel < hv_abi::vcpu::EVENT_CHANNELS {
            self.shared.events.raise(0, channel);
        }
    }

    /// The trace from the first instruction on, if [`Config::trace`] asked for it, and it has not been taken yet.
    pub fn take_trace(&mut self) -> Option<Session> {
        self.trace.take()
    }

    /// Where to type for the guest, if [`Config::console_input`] says that somebody will.
    pub fn console_input(&self) -> ConsoleInput {
        self.shared.console_input.clone()
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// What of guest memory is there, and what it costs the host.
    pub fn memory_stats(&self) -> MemoryStats {
        self.shared.memory.stats()
    }

    /// Something by which other threads look at the VM's memory and set its balloon.
    pub fn memory_control(&self) -> MemoryControl {
        MemoryControl(Arc::downgrade(&self.shared))
    }

    /// Host processes that carry the VM's guest code.
    pub fn processes(&self) -> Vec<u32> {
        self.control.processes()
    }

    /// Ends the guest's code and its threads. Gives what its share of the processors came to.
    fn end_threads(&mut self) -> Option<Measured> {
        self.control.kill();
        self.shared.console_input.let_go();
        self.shared.vcpus().end();
        self.shared.devices().end();
        self.keeper.take().map(Keeper::finish)
    }

    /// A core of the vCPUs that stand, with one of them first.
    fn core(&self, first: (u32, Registers), end: Option<&End>) -> CoreDump {
        let others = self.standing.iter().map(|(vcpu, standing)| (*vcpu, standing.registers));
        let threads = std::iter::once(first).chain(others.filter(|(vcpu, _)| *vcpu != first.0));
        let view = self.shared.view(AddressSpace::Kernel);
        CoreDump::new(&self.shared.memory, &view, threads, end, &self.command_line)
    }

    /// Ends everything and writes the report.
    fn finish(&mut self, message: Option<Message>) -> Report {
        let wants_core = self.shared.leaves_core
            && matches!(&message, Some(Message::Ended { end, .. }) if end.is_failure());
        if let Some(Message::Ended { vcpu, registers, .. }) = message.as_ref().filter(|_| wants_core) {
            self.stop_others(*vcpu, *registers);
        }
        let cpu = self.end_threads();
        let counters = self.shared.counters(&*self.control).into_iter().sum();
        let (vcpu, end, registers) = match message {
            Some(Message::Ended { vcpu, end, registers }) => (vcpu, end, registers),
            Some(Message::Stopped { vcpu, registers, .. }) => (vcpu, End::Stopped, registers),
            None => (0, End::Died { reason: "its vCPUs' threads ended".into() }, Registers::default()),
        };
        let view = self.shared.view(AddressSpace::Kernel);
        let end = match end {
            End::Crash { fault, hint: None } => {
                End::Crash { fault, hint: backtrace::hint(fault, &registers, &view) }
            }
            end => end,
        };
        let backtrace = match end {
            End::Shutdown { .. } => Vec::new(),
            _ => {
                let stack = backtrace::walk(&view, &registers, MOST_FRAMES);
                backtrace::symbolise(&self.image.bytes, &stack.addresses)
            }
        };
        self.control.wait_until_gone();
        if let Some(debug) = &self.shared.debug {
            debug.ended(&end);
        }
        tracing::debug!(%end, "ended");
        let core = wants_core.then(|| self.core((vcpu, registers), Some(&end)));
        let devices = self.shared.devices().stats();
        Report { end, vcpu, registers, backtrace, counters, cpu, devices, core }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.end_threads();
        self.control.wait_until_gone();
    }
}

//! A virtual machine: started from a [`Config`], stopped or waited for, and what is said of it at its end.
//!
//! One thread per vCPU serves that vCPU (`vcpu`); whoever holds the [`Vm`] hears from them over a channel. Guest
//! code runs elsewhere, where the engine put it.
//!
//! Start at [`Vm::start`].

use crate::backtrace::{self, View};
use crate::boot::{self, Boot};
use crate::clock::GuestClock;
use crate::config::{Breakpoints, Config, StartError, check};
use crate::console_input::ConsoleInput;
use crate::cpu_clock::ThreadClock;
use crate::cpu_share::{Gate, Keeper, Measured, steal};
use crate::engine::process::ProcessEngine;
use crate::engine::{AddressSpaces, Control, Counters, Engine, EngineKind, Mapping, Registers, Setup};
use crate::events::{Events, Notify, VcpuPages};
use crate::image::Image;
use crate::ledger::Ledger;
use crate::memory::GuestMemory;
use crate::mmu::Roots;
use crate::report::{End, Report};
use crate::vcpu::{Order, VcpuThread};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded, never, select, unbounded};
use hv_abi::Features;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What a vCPU's thread tells.
pub(crate) enum Message {
    Stopped { vcpu: u32, registers: Registers },
    Ended { vcpu: u32, end: End, registers: Registers, counters: Counters },
}

/// What a VM's threads share.
pub(crate) struct Shared {
    pub memory: GuestMemory,
    pub pages: Arc<VcpuPages>,
    pub events: Arc<Events>,
    pub console_input: ConsoleInput,
    pub roots: Roots,
    /// What live page tables should hold, if somebody wants to know.
    pub ledger: Option<Ledger>,
    /// What the engine keeps of page tables and user programs.
    pub spaces: Arc<dyn AddressSpaces>,
    pub features: Features,
    pub breakpoints: Breakpoints,
    /// Per vCPU: somebody waits for it to stop.
    pub stopping: Vec<AtomicBool>,
    console: Mutex<Option<Box<dyn Write + Send>>>,
}

impl Shared {
    pub(crate) fn new(
        memory: GuestMemory,
        pages: Arc<VcpuPages>,
        notify: Arc<dyn Notify>,
        spaces: Arc<dyn AddressSpaces>,
        features: Features,
        breakpoints: Breakpoints,
        console: Box<dyn Write + Send>,
    ) -> Self {
        let events = Arc::new(Events::new(pages.clone(), notify));
        Self {
            memory,
            console_input: ConsoleInput::new(events.clone(), false),
            events,
            roots: Roots::new(boot::kernel_root(features)),
            ledger: None,
            spaces,
            features,
            breakpoints,
            stopping: (0..pages.vcpus()).map(|_| AtomicBool::new(false)).collect(),
            console: Mutex::new(Some(console)),
            pages,
        }
    }

    /// Writes to the console. Output that nobody takes is dropped: it is no fault of the guest's.
    pub(crate) fn write_console(&self, bytes: &[u8]) {
        let mut console = self.console.lock().expect("no thread panics with the lock held");
        if let Some(writer) = console.as_mut()
            && let Err(error) = writer.write_all(bytes).and_then(|()| writer.flush())
        {
            tracing::warn!(%error, "the console's output is gone; what the guest writes from here on is dropped");
            *console = None;
        }
    }
}

/// A running virtual machine. Dropping it ends it.
pub struct Vm {
    shared: Arc<Shared>,
    control: Arc<dyn Control>,
    gate: Arc<Gate>,
    keeper: Option<Keeper>,
    image: Image,
    mappings: Vec<Mapping>,
    messages: Receiver<Message>,
    orders: Sender<Order>,
    stop_requests: (Sender<()>, Receiver<()>),
    thread: Option<JoinHandle<()>>,
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

/// One vCPU until several are served.
const VCPUS: u32 = 1;

/// A vCPU that used this much processor time after it was asked to stop will not.
const STOP_CPU_TIME: Duration = Duration::from_millis(10);
/// Nor one that took this long.
const STOP_WALL_TIME: Duration = Duration::from_secs(1);

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
        let boot = Boot {
            image: &config.image,
            ramdisk: &config.ramdisk,
            command_line: &config.command_line,
            features,
            vcpus: VCPUS,
        };
        let argument = boot.load(&memory)?;
        let pages = Arc::new(VcpuPages::new(VCPUS).map_err(host("the vCPU pages"))?);
        let mappings = boot::mappings(&config.image, memory.size());
        let gate = Arc::new(Gate::new());
        let setup = Setup {
            gate: &gate,
            memory: &memory,
            pages: &pages,
            mappings: &mappings,
            rewrite: config.rewrite,
            entry: config.image.entry,
            argument,
            kernel_root: boot::kernel_root(features),
            sees_entries: config.check_tables,
        };
        let engine = match config.engine {
            EngineKind::Auto | EngineKind::Process => ProcessEngine,
        };
        let mut running = engine.start(&setup)?;
        let control = running.control;
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
        shared.ledger = config.check_tables.then(|| Ledger::new(&shared.memory, shared.roots.kernel()));
        let shared = Arc::new(shared);
        let ((messages_in, messages), (orders, orders_out)) = (unbounded(), bounded(1));
        let thread = VcpuThread {
            vm: shared.clone(),
            vcpu: 0,
            runner: running.vcpus.remove(0),
            control: control.clone(),
            clock: GuestClock::start(shared.pages.clock()),
            delay: steal::Delay::new(0),
            messages: messages_in,
            orders: orders_out,
        };
        let thread = std::thread::Builder::new()
            .name("hv-vcpu0".into())
            .spawn(move || thread.run())
            .map_err(host("a vCPU's thread"))?;
        tracing::debug!(memory = config.memory, ?features, "started");
        let mut vm = Self {
            shared,
            control,
            gate,
            keeper: None,
            image: config.image,
            mappings,
            messages,
            orders,
            stop_requests: bounded(1),
            thread: Some(thread),
        };
        let clocks: Vec<_> = vm.thread.iter().filter_map(ThreadClock::of).collect();
        vm.keeper = Keeper::start(config.cpu, &vm.gate, &vm.control, &vm.shared.pages, &clocks)
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
        let (messages, stop) = (self.messages.clone(), self.stop_requests.1.clone());
        select! {
            recv(messages) -> message => Ok(self.finish(message.ok())),
            recv(stop) -> _ => Ok(self.stop()),
            recv(end) -> _ => Err(self),
        }
    }

    /// Something by which another thread can end this VM.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop_requests.0.clone())
    }

    /// Ends the VM from outside, at a stopping point if its vCPU comes to one.
    pub fn stop(mut self) -> Report {
        match self.stop_vcpu(0) {
            Stop::Stopped(_) => {
                let _ = self.orders.send(Order::End);
                let message = self.messages.recv();
                self.finish(message.ok())
            }
            Stop::Ended(message) => self.finish(Some(message)),
            Stop::Unanswered => {
                let (registers, counters) = Default::default();
                self.finish(Some(Message::Ended { vcpu: 0, end: End::Unanswered, registers, counters }))
            }
        }
    }

    /// Stops all vCPUs at their next stopping point, and gives the registers of the first.
    ///
    /// # Errors
    ///
    /// The report, if the VM ended meanwhile, or had to be ended since a vCPU did not answer.
    #[expect(clippy::result_large_err, reason = "a report is made once in a VM's life")]
    pub fn pause(self) -> Result<Paused, Report> {
        let mut vm = self;
        match vm.stop_vcpu(0) {
            Stop::Stopped(registers) => {
                let cpu_time = vm.control.cpu_time(0);
                Ok(Paused { vm, registers, cpu_time })
            }
            Stop::Ended(message) => Err(vm.finish(Some(message))),
            Stop::Unanswered => Err(vm.stop()),
        }
    }

    /// Fires an event channel on vCPU 0, as a device would. For measuring and testing.
    pub fn raise_event(&self, channel: u32) {
        if channel < hv_abi::vcpu::EVENT_CHANNELS {
            self.shared.events.raise(0, channel);
        }
    }

    /// Where to type for the guest, if [`Config::console_input`] says that somebody will.
    pub fn console_input(&self) -> ConsoleInput {
        self.shared.console_input.clone()
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// Host processes that carry the VM's guest code.
    pub fn processes(&self) -> Vec<u32> {
        self.control.processes()
    }

    /// Asks a vCPU to stop until it does, repeating the request, for it can miss one.
    fn stop_vcpu(&mut self, vcpu: u32) -> Stop {
        let gate = self.gate.clone();
        let _lifted = gate.lift(); // it is to come to its stopping point at once
        self.shared.stopping[vcpu as usize].store(true, SeqCst);
        let start = Instant::now();
        let cpu_at_start = self.control.cpu_time(vcpu);
        loop {
            self.control.request_stop(vcpu);
            match self.messages.recv_timeout(Duration::from_millis(1)) {
                Ok(Message::Stopped { registers, .. }) => {
                    self.control.cancel_stop(vcpu);
                    return Stop::Stopped(registers);
                }
                Ok(ended) => return Stop::Ended(ended),
                Err(RecvTimeoutError::Disconnected) => return Stop::Unanswered,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let used = self
                .control
                .cpu_time(vcpu)
                .zip(cpu_at_start)
                .map_or(0, |(now, then)| now.saturating_sub(then));
            if used > STOP_CPU_TIME.as_nanos() as u64 || start.elapsed() > STOP_WALL_TIME {
                return Stop::Unanswered;
            }
        }
    }

    /// Ends the guest's code and its threads. Gives what the one that kept its share measured.
    fn end_threads(&mut self) -> Option<Measured> {
        self.control.kill();
        self.shared.console_input.let_go();
        // The thread may yet serve what the guest had published, and then wait for an order: without anyone to give
        // one, it ends.
        (self.orders, _) = bounded(0);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.keeper.take().map(Keeper::finish)
    }

    /// Ends everything and writes the report.
    fn finish(&mut self, message: Option<Message>) -> Report {
        let cpu = self.end_threads();
        let (vcpu, end, registers, counters) = match message {
            Some(Message::Ended { vcpu, end, registers, counters }) => (vcpu, end, registers, counters),
            Some(Message::Stopped { vcpu, registers }) => {
                (vcpu, End::Stopped, registers, Counters::default())
            }
            None => (
                0,
                End::Died { reason: "its vCPU's thread ended".into() },
                Registers::default(),
                Counters::default(),
            ),
        };
        let view =
            View { memory: &self.shared.memory, mappings: &self.mappings, root: self.shared.roots.kernel() };
        let end = match end {
            End::Crash { fault, hint: None } => {
                End::Crash { fault, hint: backtrace::hint(fault, &registers, &view) }
            }
            end => end,
        };
        let backtrace = match end {
            End::Shutdown { .. } => Vec::new(),
            _ => {
                let addresses = backtrace::walk(&view, &registers);
                backtrace::symbolise(&self.image.bytes, &addresses)
            }
        };
        self.control.wait_until_gone();
        tracing::debug!(%end, "ended");
        Report { end, vcpu, registers, backtrace, counters, cpu }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.end_threads();
        self.control.wait_until_gone();
    }
}

/// How asking a vCPU to stop went.
enum Stop {
    Stopped(Registers),
    Ended(Message),
    Unanswered,
}

/// A VM whose vCPUs stand at stopping points.
pub struct Paused {
    vm: Vm,
    registers: Registers,
    /// Processor time of vCPU 0 when it said that it had stopped.
    cpu_time: Option<u64>,
}

impl Paused {
    /// Where vCPU 0 goes on; in a hypercall only RSP and RBP are known.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.vm.shared.memory
    }

    /// Runs on. A guest that ran while it said that it stood is ended instead: nobody could rely on its pauses.
    pub fn resume(self) -> Vm {
        let ran =
            self.vm.control.cpu_time(0).zip(self.cpu_time).map_or(0, |(now, then)| now.saturating_sub(then));
        if ran > STOP_CPU_TIME.as_nanos() as u64 {
            tracing::warn!(ran_ns = ran, "a paused vCPU ran on, and is ended");
            self.vm.control.kill();
        }
        self.vm.shared.stopping[0].store(false, SeqCst);
        let _ = self.vm.orders.send(Order::Resume);
        self.vm
    }
}

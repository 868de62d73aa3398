//! One sandbox process: a guest address space, its mapping thread, its vCPU threads, and what is shared with them.
//!
//! The guest kernel has one, and so has each guest user address space that is in use. Both are alike but for what is
//! mapped where the vCPU page is: the guest kernel has the real one, a user program a page of no meaning, so that the
//! stub's code is right for both.
//!
//! Start at [`Sandbox::start`].

use super::handover::{self, Handover, Machine, Wait};
use super::layout::{self, Command};
use super::mapper::{self, Mapper};
use super::processes::Processes;
use super::spawn::{self, Child, Death, Spawning, Stage};
use super::{frame, spin, vcpu};
use crate::cpu_share::Gate;
use crate::engine::{EngineError, Registers};
use crate::events::VcpuPages;
use crate::memory::GuestMemory;
use crate::shared::SharedFile;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How long a sandbox may take to be ready. It takes a fraction of a millisecond; a starved host is no reason to fail.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a further vCPU's thread may take, which guest code can hold up: in a program's sandbox, where its guest kernel waits
/// with all its vCPUs.
const THREAD_PATIENCE: Duration = Duration::from_millis(200);
/// In the guest kernel's own, where the vCPU that asks for it waits.
const KERNEL_PATIENCE: Duration = Duration::from_secs(1);

/// How long a program may take to leave the gate; some microseconds, if its host does not starve.
const GATE_PATIENCE: Duration = Duration::from_millis(200);

/// Whose address space it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Kernel,
    /// With the hand-over pages of this slot of the file of links.
    User {
        slot: u32,
    },
}

/// The files of a VM that all its sandboxes have.
pub(super) struct Files {
    pub memory: GuestMemory,
    pub pages: Arc<VcpuPages>,
    pub links: Arc<SharedFile>,
    pub rewritten: Arc<SharedFile>,
    pub processes: Arc<Processes>,
    /// Commands to the mapping threads are made while it is open.
    pub gate: Arc<Gate>,
    /// How often a program's system call traps before the monitor looks at it.
    pub look_after: u32,
}

/// A running sandbox process. Dropping it kills the process.
pub(super) struct Sandbox {
    pub shared: Arc<Shared>,
    child: Child,
    mapper: Mutex<Mapper>,
    /// The only processor that the mapping thread may run on; at first, any.
    mapper_cpu: AtomicUsize,
}

/// What the monitor's threads share about one sandbox, the one that sees it die included.
pub(super) struct Shared {
    kind: Kind,
    exchange: SharedFile,
    links: Arc<SharedFile>,
    /// Set when the process is gone.
    dead: AtomicBool,
    death: Mutex<Option<Death>>,
    /// Set when nothing of it is left on the host, either.
    gone: Mutex<bool>,
    is_gone: Condvar,
    pid: AtomicI32,
    processes: Arc<Processes>,
    /// Host thread numbers of the vCPU threads, or 0, taken where guest code could not change them.
    threads: Vec<AtomicI32>,
    /// What each has waited for a processor, when it was last looked at, in nanoseconds.
    delays: Vec<AtomicU64>,
    /// How often a program's system call traps before the monitor looks at it.
    look_after: u32,
}

/// A sandbox that is being made, on the spawner's thread and in its own process.
pub(super) struct Starting {
    shared: Arc<Shared>,
    mapper: Mapper,
    vcpu: u32,
    /// Commands of its first batch.
    commands: usize,
    child: Spawning,
}

impl Starting {
    /// Has a process made with the stub and the shared pages, then what `mappings` say, and the thread of one vCPU in it.
    pub(super) fn new(
        kind: Kind,
        files: &Files,
        vcpu: u32,
        mappings: &[Command],
    ) -> Result<Self, EngineError> {
        let host = |what| move |source| EngineError::Host { what, source };
        let vcpus = files.pages.vcpus();
        let mut exchange = SharedFile::new("hv-exchange", u64::from(vcpus) * layout::EXCHANGE_STRIDE)
            .map_err(host("making the exchange pages"))?;
        let mut mapper = Mapper::new().map_err(host("making the control pages"))?;
        let mut commands = mapper::first_commands(kind, vcpus, vcpu);
        // The filter comes last, so that the mappings before it need no room in it.
        let filter = commands.pop().expect("the filter");
        commands.extend(mappings);
        commands.push(filter);
        commands.push(mapper.vcpu_thread(kind, vcpu));
        mapper.post(&commands);

        let own =
            |file: BorrowedFd<'_>| file.try_clone_to_owned().map_err(host("sharing the files of the VM"));
        let descriptors = [
            own(files.memory.file())?,
            mapper.take_file(),
            own(files.pages.file().as_fd())?,
            exchange.take_file(),
            own(files.links.as_fd())?,
            own(files.rewritten.as_fd())?,
        ];
        let shared = Arc::new(Shared {
            kind,
            exchange,
            links: files.links.clone(),
            dead: AtomicBool::new(false),
            death: Mutex::new(None),
            gone: Mutex::new(false),
            is_gone: Condvar::new(),
            pid: AtomicI32::new(0),
            processes: files.processes.clone(),
            threads: (0..vcpus).map(|_| AtomicI32::new(0)).collect(),
            delays: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            look_after: files.look_after,
        });
        shared.ready_handover(vcpu);
        let notice = {
            let shared = shared.clone();
            Box::new(move |stage: Stage<'_>| shared.has_come_to(stage))
        };
        let child = spawn::spawn(descriptors, notice, files.processes.bill()).map_err(host(STARTING))?;
        Ok(Self { shared, mapper, vcpu, commands: commands.len(), child })
    }

    /// Waits until its first vCPU's thread is there, which waits for its first context.
    pub(super) fn finish(self) -> Result<Sandbox, EngineError> {
        let (commands, vcpu) = (self.commands, self.vcpu);
        let sandbox = self.process()?;
        let shared = &sandbox.shared;
        {
            let mapper = sandbox.mapper.lock().expect("no thread panics with the lock held");
            shared.wait_for_vcpu_thread(vcpu, PATIENCE, || mapper.failure(commands))?;
        }
        // No guest code has run in the sandbox yet, so what it has written is evidence still.
        let thread = shared.handover(vcpu).thread.load(Acquire);
        shared.threads[vcpu as usize].store(thread as i32, SeqCst);
        Ok(sandbox)
    }

    /// Waits until there is a process, which may do no more than be killed.
    pub(super) fn process(self) -> Result<Sandbox, EngineError> {
        let child = self.child.wait().map_err(|source| EngineError::Host { what: STARTING, source })?;
        let mapper = Mutex::new(self.mapper);
        Ok(Sandbox { shared: self.shared, child, mapper, mapper_cpu: AtomicUsize::new(usize::MAX) })
    }
}

const STARTING: &str = "starting a sandbox process";

impl Sandbox {
    /// Has the mapping thread make these commands, and waits until they are made.
    pub(super) fn command(&self, commands: &[Command]) -> Result<(), EngineError> {
        if commands.is_empty() {
            return Ok(()); // nor is its first batch waited for
        }
        let mut mapper = self.mapper.lock().expect("no thread panics with the lock held");
        self.make(&mut mapper, commands)
    }

    /// Sees to it that a vCPU has a thread here, which waits for its first context if it is new.
    pub(super) fn ensure_vcpu(&self, vcpu: u32) -> Result<(), EngineError> {
        let shared = &self.shared;
        if shared.thread(vcpu).is_some() {
            return Ok(());
        }
        let mut mapper = self.mapper.lock().expect("no thread panics with the lock held");
        shared.ready_handover(vcpu);
        let areas = match shared.kind {
            Kind::Kernel => Vec::new(), // they are there from the start
            Kind::User { .. } => mapper::areas(shared.kind, shared.threads.len() as u32, vcpu..vcpu + 1),
        };
        let thread = mapper.vcpu_thread(shared.kind, vcpu);
        let commands: Vec<_> = areas.into_iter().chain([thread]).collect();
        self.make(&mut mapper, &commands)?;
        // Other vCPUs run guest code here, which may write what the new thread writes. So that there is a thread, and which,
        // is asked of the host; until it has its filter, the thread runs nothing but the stub, on registers alone.
        let thread = self.new_thread().ok_or_else(|| EngineError::SandboxDied { how: shared.death() })?;
        if let Ok(allowed) = sched_getaffinity(None) {
            let _ = sched_setaffinity(Pid::from_raw(thread), &allowed); // not where the mapping thread is kept
        }
        shared.threads[vcpu as usize].store(thread, SeqCst);
        let patience = if shared.kind == Kind::Kernel { KERNEL_PATIENCE } else { THREAD_PATIENCE };
        shared.wait_for_vcpu_thread(vcpu, patience, || None)
    }

    /// The thread that is neither the mapping thread nor a vCPU's that is known.
    fn new_thread(&self) -> Option<i32> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.pid)).ok()?;
        let mut threads = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
        let known = |thread| self.shared.threads.iter().any(|known| known.load(Relaxed) == thread);
        threads.find(|thread| *thread != self.child.pid && !known(*thread))
    }

    fn make(&self, mapper: &mut Mapper, commands: &[Command]) -> Result<(), EngineError> {
        let done = |mapper: &Mapper| {
            let waited = mapper.wait(|| self.shared.dead.load(Acquire), PATIENCE);
            if waited { Ok(()) } else { Err(EngineError::SandboxDied { how: self.shared.death() }) }
        };
        // The first batch makes the thread that `start` waits for, and is reported only after that: a batch that is posted
        // in between would be taken for done.
        done(mapper)?;
        self.bring_mapper();
        for batch in commands.chunks(layout::MAX_COMMANDS) {
            mapper.post(batch);
            done(mapper)?;
            if let Some(error) = mapper.failure(batch.len()) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Keeps the mapping thread on this thread's processor. This one sleeps while that one works, and to wake it there costs a
    /// tenth of what it costs elsewhere.
    fn bring_mapper(&self) {
        let here = rustix::thread::sched_getcpu();
        if self.mapper_cpu.swap(here, Relaxed) != here {
            let mut only = CpuSet::new();
            only.set(here);
            // If the host does not let us, it takes longer.
            let _ = sched_setaffinity(Pid::from_raw(self.child.pid), &only);
        }
    }

    pub(super) fn kill(&self) {
        self.child.kill();
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.pid as u32
    }
}

impl Shared {
    pub(super) fn handover(&self, vcpu: u32) -> &Handover {
        match self.kind {
            Kind::Kernel => self.exchange.at(vcpu::handover_offset(vcpu)),
            Kind::User { slot } => self.links.at(layout::link_offset(self.threads.len() as u32, slot, vcpu)),
        }
    }

    pub(super) fn exchange(&self) -> &SharedFile {
        &self.exchange
    }

    /// Whether nothing of it is left on the host.
    pub(super) fn is_gone(&self) -> bool {
        *self.gone()
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Acquire)
    }

    /// On the spawner's thread.
    fn has_come_to(&self, stage: Stage<'_>) {
        match stage {
            Stage::Started { pid, handle } => {
                self.pid.store(pid, SeqCst);
                self.processes.started(pid, handle);
            }
            Stage::Dead(death) => {
                self.processes.died(self.pid.load(SeqCst));
                self.died(death);
            }
            Stage::Gone => {
                *self.gone() = true;
                self.is_gone.notify_all();
            }
        }
    }

    /// The process has ended, and so has everyone who could write its pages.
    fn died(&self, death: Death) {
        *self.death.lock().expect("no thread panics with the lock held") = Some(death);
        self.dead.store(true, SeqCst);
        for vcpu in 0..self.threads.len() as u32 {
            if self.kind != Kind::Kernel {
                // Its guest kernel may wait for it, or be about to, and looks in the other order.
                self.handover(vcpu).is_dead.store(1, SeqCst);
                self.handover(vcpu).turn.store(handover::TURN_DEAD, SeqCst);
            }
            self.look(vcpu);
        }
    }

    /// Makes the monitor's thread that waits for a vCPU look around.
    pub(super) fn look(&self, vcpu: u32) {
        handover::kick::<Machine>(&self.handover(vcpu).host_sleeps);
    }

    fn gone(&self) -> MutexGuard<'_, bool> {
        self.gone.lock().expect("no thread panics with the lock held")
    }

    /// Waits until nothing of it is left on the host, after it was killed.
    pub(super) fn wait_until_gone(&self) {
        let gone = self.gone();
        drop(self.is_gone.wait_while(gone, |gone| !*gone).expect("no thread panics with the lock held"));
    }

    /// How it ended, in words.
    pub(super) fn death(&self) -> String {
        match *self.death.lock().expect("no thread panics with the lock held") {
            Some(Death::Signal(signal)) => {
                let name = signal_name(signal);
                format!("the host ended its sandbox process with signal {signal} ({name})")
            }
            Some(Death::Unknown) => "another part of this program waited for its sandbox process".into(),
            Some(Death::Exit(code)) => format!("its sandbox process exited with code {code}"),
            None => "its sandbox process is gone".into(),
        }
    }

    /// Readies the page on which a vCPU's thread, which is not made yet, will meet others.
    fn ready_handover(&self, vcpu: u32) {
        let handover = self.handover(vcpu);
        handover.reset();
        handover.spin.store(spin::guest_limit(), Relaxed);
        handover.is_user.store((self.kind != Kind::Kernel).into(), Relaxed);
        handover.look_after.store(self.look_after, Relaxed);
    }

    /// Waits until a new vCPU thread reports itself, which it does only after all commands before it.
    fn wait_for_vcpu_thread(
        &self,
        vcpu: u32,
        patience: Duration,
        failure: impl Fn() -> Option<EngineError>,
    ) -> Result<(), EngineError> {
        let server = handover::Server(vcpu::words(self.handover(vcpu)));
        let start = Instant::now();
        let mut published = server.spin(spin::start_limit()).0;
        while published != Some(handover::TURN_TRAP) {
            if let Some(error) = failure() {
                return Err(error);
            }
            if self.is_dead() {
                return Err(EngineError::SandboxDied { how: self.death() });
            }
            if start.elapsed() > patience {
                return Err(EngineError::SandboxDied { how: format!("it was not ready after {patience:?}") });
            }
            // A command that fails wakes nobody here, so look now and then.
            let look_again = Instant::now() + Duration::from_millis(20);
            let wait = server
                .sleep(|| self.is_dead(), || look_again.checked_duration_since(Instant::now()).map(Some));
            published = match wait {
                Wait::Published(turn) => Some(turn),
                Wait::Interrupted | Wait::TimedOut => None,
            };
        }
        let signal = self.handover(vcpu).signal.load(Relaxed);
        if signal != 0 {
            return Err(EngineError::SandboxDied { how: format!("its vCPU thread got signal {signal}") });
        }
        Ok(())
    }

    /// Writes the context from which a vCPU's thread goes on, which waits and runs no guest code.
    pub(super) fn write_first_context(&self, vcpu: u32, registers: &Registers) {
        let context = frame::write_first(&self.exchange, vcpu, registers);
        self.handover(vcpu).frame.store(context, Relaxed);
    }

    /// Asks a vCPU's thread to stop at its next stopping point. It can miss that, so the request is to be repeated.
    pub(super) fn request_stop(&self, vcpu: u32) {
        self.handover(vcpu).stop.store(1, SeqCst);
        self.signal(vcpu);
    }

    /// Has a program that waits at the gate wait in a signal handler instead, so that its extended state is in memory. If
    /// it does not, it is not honest, and has none.
    pub(super) fn leave_gate(&self, vcpu: u32) {
        let handover = self.handover(vcpu);
        if handover.frame.load(SeqCst) != 0 {
            return;
        }
        // It goes on, finds that it is to stop, and comes to that.
        handover.stop.store(1, SeqCst);
        let server = handover::Server(vcpu::words(handover));
        server.answer();
        if server.spin(handover.spin.load(Relaxed).min(spin::guest_limit())).0.is_none() {
            let until = Instant::now() + GATE_PATIENCE;
            server.sleep(|| self.is_dead(), || until.checked_duration_since(Instant::now()).map(Some));
        }
        self.cancel_stop(vcpu);
    }

    /// Takes the request back.
    pub(super) fn cancel_stop(&self, vcpu: u32) {
        self.handover(vcpu).stop.store(0, SeqCst);
    }

    /// A vCPU's thread, as the host knows it.
    pub(super) fn thread(&self, vcpu: u32) -> Option<Pid> {
        Pid::from_raw(self.threads[vcpu as usize].load(Relaxed))
    }

    /// Interrupts a vCPU's thread.
    #[expect(unsafe_code, reason = "tgkill has no safe wrapper")]
    pub(super) fn signal(&self, vcpu: u32) {
        let (pid, thread) = (self.pid.load(Relaxed), self.threads[vcpu as usize].load(Relaxed));
        if thread != 0 && !self.dead.load(Relaxed) {
            // SAFETY: `tgkill` takes integers. The pair names a thread of our own child, which has not been reaped,
            // since `dead` is set before that; at worst, in between, no thread has these numbers and the call fails.
            unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, layout::KICK_SIGNAL) };
        }
    }

    /// Processor time, in nanoseconds, that a vCPU's thread has had; `None` when it is gone.
    pub(super) fn cpu_time(&self, vcpu: u32) -> Option<u64> {
        self.of_thread(vcpu, "schedstat")?.split(' ').next()?.parse().ok()
    }

    /// Nanoseconds for which a vCPU's thread has waited for a processor since this was last asked.
    pub(super) fn new_delay(&self, vcpu: u32) -> u64 {
        let schedstat = self.of_thread(vcpu, "schedstat");
        let now: u64 = schedstat.and_then(|text| text.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        now.saturating_sub(self.delays[vcpu as usize].fetch_max(now, Relaxed))
    }

    /// Whether a vCPU's thread sleeps and is not about to wake.
    pub(super) fn sleeps(&self, vcpu: u32) -> bool {
        // Its name comes before the state, in parentheses.
        let stat = self.of_thread(vcpu, "stat");
        stat.is_some_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S')))
    }

    /// What the host says of a vCPU's thread.
    fn of_thread(&self, vcpu: u32, file: &str) -> Option<String> {
        let (pid, thread) = (self.pid.load(Relaxed), self.threads[vcpu as usize].load(Relaxed));
        std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/{file}")).ok()
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV: it left no stack for a signal to land on",
        libc::SIGSYS => "SIGSYS",
        libc::SIGBUS => "SIGBUS: is the host out of memory?",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGFPE => "SIGFPE",
        libc::SIGINT => "SIGINT",
        libc::SIGTERM => "SIGTERM",
        _ => "unexpected",
    }
}

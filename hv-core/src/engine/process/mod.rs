//! The process engine: guest code in deprivileged host processes.
//!
//! The guest kernel's address space is a *sandbox process*. In it are the guest's own pages and, in PML4 slot 255,
//! the stub and the pages it shares with the monitor; nothing else. One thread in it, the *mapping thread*, makes
//! the system calls that the monitor commands; one thread per vCPU runs guest code, may make no system call but
//! the stub's futex, and hands control over through memory.
//!
//! Start at [`ProcessEngine::start`](Engine::start). `layout` says where everything is, `stub` (assembly) is the code
//! in the sandbox, `handover` the protocol between it and the monitor, `filter` what its threads may call.

mod elf;
mod filter;
mod frame;
pub(crate) mod handover;
#[cfg(test)]
mod handover_model;
pub(crate) mod layout;
mod mapper;
mod spawn;
mod spin;
mod stub;
mod vcpu;

use super::{Control, Engine, EngineError, Mapping, Running, Setup, VcpuRunner};
use crate::events::{Notify, VcpuPages};
use crate::shared::SharedFile;
use handover::{Atomics, Handover, Machine, TURN_GUEST, Wait};
use hv_abi::vcpu::{run_state, upcall};
use layout::descriptor;
use mapper::Mapper;
use rustix::fd::{AsFd, AsRawFd};
use spawn::{Child, Death, Stage};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long a sandbox may take to be ready. It takes a fraction of a millisecond; a starved host is no reason to fail.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the file that sandboxes are started from, if that has not been done.
pub(crate) fn prepare() -> std::io::Result<()> {
    elf::executable().map(drop)
}

/// Runs guest code in host processes.
pub(crate) struct ProcessEngine;

impl Engine for ProcessEngine {
    fn start(&self, setup: &Setup<'_>) -> Result<Running, EngineError> {
        let host = |what| move |source| EngineError::Host { what, source };
        let vcpus = setup.pages.vcpus();
        let exchange = SharedFile::new("hv-exchange", u64::from(vcpus) * layout::EXCHANGE_STRIDE)
            .map_err(host("making the exchange pages"))?;
        let mut mapper = Mapper::new().map_err(host("making the control pages"))?;
        let mut commands = mapper::first_commands(setup.pages);
        // The filter comes last, so that the mappings before it need no room in it.
        let filter = commands.pop().expect("the filter");
        commands.extend(setup.mappings.iter().map(guest_mapping));
        commands.push(filter);
        commands.push(mapper.vcpu_thread(0));
        mapper.post(&commands);

        let shared = Arc::new(Shared {
            pages: setup.pages.clone(),
            exchange,
            dead: AtomicBool::new(false),
            death: Mutex::new(None),
            gone: Mutex::new(false),
            is_gone: Condvar::new(),
            pid: AtomicI32::new(0),
            threads: (0..vcpus).map(|_| AtomicI32::new(0)).collect(),
        });
        let descriptors = [
            setup.memory.file().as_raw_fd(),
            mapper.file().as_fd().as_raw_fd(),
            setup.pages.file().as_fd().as_raw_fd(),
            shared.exchange.as_fd().as_raw_fd(),
        ];
        shared.handover(0).spin.store(spin::guest_limit(), Relaxed);
        vcpu::first_context(&shared, 0, setup.entry, setup.argument);
        let notice = {
            let shared = shared.clone();
            Box::new(move |stage| shared.ended(stage))
        };
        let child = spawn::spawn(descriptors, notice).map_err(host("starting a sandbox process"))?;
        shared.wait_for_vcpu_thread(0, child.pid, || mapper.failure(commands.len()))?;

        let runner: Box<dyn VcpuRunner> = Box::new(vcpu::Vcpu::new(shared.clone(), 0));
        let control = Arc::new(Sandbox { shared, child });
        Ok(Running { vcpus: vec![runner], control })
    }
}

fn guest_mapping(mapping: &Mapping) -> layout::Command {
    let mut protection = libc::PROT_READ;
    if mapping.write {
        protection |= libc::PROT_WRITE;
    }
    if mapping.execute {
        protection |= libc::PROT_EXEC;
    }
    mapper::map(mapping.virt, mapping.length, descriptor::GUEST_MEMORY, mapping.phys, protection)
}

/// What the monitor's threads share about one sandbox.
struct Shared {
    pages: Arc<VcpuPages>,
    exchange: SharedFile,
    /// Set when the process is gone.
    dead: AtomicBool,
    death: Mutex<Option<Death>>,
    /// Set when nothing of it is left on the host, either.
    gone: Mutex<bool>,
    is_gone: Condvar,
    pid: AtomicI32,
    /// Host thread numbers of the vCPU threads, taken before guest code could change them.
    threads: Vec<AtomicI32>,
}

impl Shared {
    fn handover(&self, vcpu: u32) -> &Handover {
        self.exchange.at(vcpu::handover_offset(vcpu))
    }

    /// On the spawner's thread: the process has ended, and so has everyone who could write its pages.
    fn ended(&self, stage: Stage) {
        let Stage::Dead(death) = stage else {
            *self.gone.lock().expect("no thread panics with the lock held") = true;
            return self.is_gone.notify_all();
        };
        *self.death.lock().expect("no thread panics with the lock held") = Some(death);
        self.dead.store(true, SeqCst);
        for vcpu in 0..self.pages.vcpus() {
            handover::kick::<Machine>(&self.handover(vcpu).host_sleeps);
        }
    }

    /// How it ended, in words.
    fn death(&self) -> String {
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

    /// Waits until the first vCPU thread of a sandbox reports itself, which it does only after all commands before it.
    ///
    /// No guest code has run in the sandbox by then, so what it has written is evidence still: that it is there, and
    /// its thread number.
    fn wait_for_vcpu_thread(
        &self,
        vcpu: u32,
        pid: i32,
        failure: impl Fn() -> Option<EngineError>,
    ) -> Result<(), EngineError> {
        let server = handover::Server(vcpu::words(self.handover(vcpu)));
        let start = Instant::now();
        let mut published = server.spin(spin::start_limit()).0;
        while published != Some(handover::TURN_TRAP) {
            if let Some(error) = failure() {
                return Err(error);
            }
            if self.dead.load(Acquire) {
                return Err(EngineError::SandboxDied { how: self.death() });
            }
            if start.elapsed() > PATIENCE {
                return Err(EngineError::SandboxDied { how: format!("it was not ready after {PATIENCE:?}") });
            }
            // A command that fails wakes nobody here, so look now and then.
            let look_again = Instant::now() + Duration::from_millis(20);
            let wait = server.sleep(
                || self.dead.load(Acquire),
                || look_again.checked_duration_since(Instant::now()).map(Some),
            );
            published = match wait {
                Wait::Published(turn) => Some(turn),
                Wait::Interrupted | Wait::TimedOut => None,
            };
        }
        let signal = self.handover(vcpu).signal.load(Relaxed);
        if signal != 0 {
            return Err(EngineError::SandboxDied { how: format!("its vCPU thread got signal {signal}") });
        }
        self.pid.store(pid, SeqCst);
        let thread = self.handover(vcpu).thread.load(Acquire);
        self.threads[vcpu as usize].store(thread as i32, SeqCst);
        Ok(())
    }

    /// Interrupts a vCPU's thread.
    fn signal(&self, vcpu: u32) {
        let (pid, thread) = (self.pid.load(Relaxed), self.threads[vcpu as usize].load(Relaxed));
        if thread != 0 && !self.dead.load(Relaxed) {
            send_signal(pid, thread);
        }
    }
}

#[expect(unsafe_code, reason = "tgkill has no safe wrapper")]
fn send_signal(pid: i32, thread: i32) {
    // SAFETY: `tgkill` takes integers. The pair names a thread of our own child, which has not been reaped, since
    // `dead` is set after that; at worst, in between, no thread has these numbers and the call fails.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, thread, layout::KICK_SIGNAL) };
}

/// The sandbox process of a running VM.
struct Sandbox {
    shared: Arc<Shared>,
    child: Child,
}

impl Notify for Sandbox {
    fn notify(&self, vcpu: u32) {
        let page = self.shared.pages.page(vcpu);
        // The event is stored before this is called, with a full fence: hv_stub_block does it the other way round.
        match page.run_state.load(SeqCst) {
            run_state::BLOCKED => Machine::wake(&page.upcall),
            _ if page.upcall.load(SeqCst) & upcall::MASKED != 0 => {}
            // In a call, the vCPU looks before it returns.
            _ if self.shared.handover(vcpu).turn.load(SeqCst) != TURN_GUEST => {}
            _ => self.shared.signal(vcpu),
        }
    }
}

impl Control for Sandbox {
    fn request_stop(&self, vcpu: u32) {
        self.shared.handover(vcpu).stop.store(1, SeqCst);
        Machine::wake(&self.shared.pages.page(vcpu).upcall);
        self.shared.signal(vcpu);
    }

    fn cancel_stop(&self, vcpu: u32) {
        self.shared.handover(vcpu).stop.store(0, SeqCst);
    }

    fn kill(&self) {
        self.child.kill();
    }

    fn wait_until_gone(&self) {
        let gone = self.shared.gone.lock().expect("no thread panics with the lock held");
        drop(
            self.shared.is_gone.wait_while(gone, |gone| !*gone).expect("no thread panics with the lock held"),
        );
    }

    fn cpu_time(&self, vcpu: u32) -> Option<u64> {
        let (pid, thread) = (self.child.pid, self.shared.threads[vcpu as usize].load(Relaxed));
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
        text.split(' ').next()?.parse().ok()
    }

    fn processes(&self) -> Vec<u32> {
        vec![self.child.pid as u32]
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

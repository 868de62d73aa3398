//! A thread: registers, and what it does with them. A process has one at least.

use crate::kernel::Kernel;
use crate::memory::Memory;
use crate::process::Process;
use alloc::boxed::Box;
use alloc::sync::Arc;
use guest_sdk::smp;
use guest_sdk::sync::Lock;
use guest_sdk::time::{Duration, Instant};
use guest_sdk::user::Task;
use minios_abi::{Error, Name, ThreadInfo, state};

/// A thread that has not ended.
#[derive(Debug)]
pub struct Thread {
    /// Its number.
    pub id: u32,
    /// Its process's.
    pub process: u32,
    /// What it does.
    pub doing: Doing,
    /// When it is to wake up, if it sleeps.
    pub sleeps_until: Option<Instant>,
    /// How long it has run.
    pub run: Duration,
    /// The vCPU that runs it, or ran it last.
    pub vcpu: u32,
    /// What the vCPU that runs it takes with it.
    pub turn: Option<Turn>,
}

/// What a thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It waits for its turn. The flag: another one, behind it, has been preferred once.
    Ready(bool),
    /// A vCPU runs it.
    Runs,
    /// It waits for something else.
    Waits(Wait),
}

/// What a thread waits for. When that may have come, its system call is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// One of its process's children ends.
    Child,
    /// Somebody reads, writes or closes a pipe, or types.
    Pipe,
    /// A moment.
    Until(Instant),
    /// Somebody wakes those that wait at this address.
    Futex(u64),
}

/// What of a thread a vCPU has while it runs it: without the kernel's lock.
#[derive(Debug)]
pub struct Turn {
    /// The thread.
    pub thread: u32,
    /// Its process.
    pub process: u32,
    /// Its registers.
    pub task: Task,
    /// Its process's memory.
    pub memory: Arc<Memory>,
    /// What it waited for may have come: the system call that it made then is to be made again.
    pub again: bool,
}

/// What is done for a thread without the kernel's lock, by the vCPU that has its turn. Gives its call's result.
pub struct Work(Box<Unlocked>);

type Unlocked = dyn FnOnce(&Lock<Kernel>, &Turn) -> Result<u64, Error> + Send;

impl Work {
    /// That.
    pub fn new(work: impl FnOnce(&Lock<Kernel>, &Turn) -> Result<u64, Error> + Send + 'static) -> Self {
        Self(Box::new(work))
    }

    /// Does it.
    pub fn run(self, kernel: &Lock<Kernel>, turn: &mut Turn) {
        let result = (self.0)(kernel, turn).unwrap_or_else(|error| error.result() as u64);
        turn.task.set_result(result);
    }
}

impl core::fmt::Debug for Work {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("work")
    }
}

impl Thread {
    /// One that is ready, as if the vCPU of whoever makes it had run it last.
    pub fn new(id: u32, process: u32, task: Task, memory: Arc<Memory>) -> Self {
        let turn = Turn { thread: id, process, task, memory, again: false };
        Self {
            id,
            process,
            doing: Doing::Ready(false),
            sleeps_until: None,
            run: Duration::ZERO,
            vcpu: smp::current(),
            turn: Some(turn),
        }
    }

    /// As `ps` shows it.
    pub fn info(&self, process: &Process) -> ThreadInfo {
        ThreadInfo {
            thread: self.id,
            process: process.id,
            parent: process.parent,
            state: match self.doing {
                Doing::Ready(_) => state::READY,
                Doing::Runs => state::RUNNING,
                Doing::Waits(_) => state::WAITING,
            },
            vcpu: self.vcpu,
            pages: process.memory.pages() as u32,
            run_nanoseconds: self.run.as_nanos() as u64,
            name: Name::new(&process.name),
        }
    }
}

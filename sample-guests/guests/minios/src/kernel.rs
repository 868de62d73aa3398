//! The kernel: its processes, whose turn it is, and what becomes of a process that comes back.
//!
//! There is one processor, and kernel code is never interrupted by a process, so all of this is plain data: no locks.
//!
//! Ready processes take turns of at most [`SLICE`] ([`Kernel::turn`]). One that has to wait is put aside with a note of what
//! it waits for; whoever makes that come true calls [`Kernel::wake`], and the process makes its system call again. With at
//! most [`MOST_PROCESSES`], looking through all of them is simpler than a queue for everything, and fast enough.
//!
//! Start at [`Kernel::run`].

use crate::console;
use crate::files::Files;
use crate::memory::Fault;
use crate::process::{Ended, Process, Wait};
use alloc::collections::{BTreeMap, VecDeque};
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::preempt::Slice;
use guest_sdk::time::{Duration, Instant};
use guest_sdk::user::Trap;
use guest_sdk::{frames, println};
use minios_abi::{Error, KILLED};

/// How long a process runs before it is another one's turn.
const SLICE: Duration = Duration::from_millis(10);

/// Processes that there can be, ended ones included. Each is a process of the host's, too.
pub const MOST_PROCESSES: usize = 60;

/// The first process, with whose end all ends.
pub const FIRST: u32 = 1;

/// What a process does after a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It goes on.
    Run,
    /// It lets others run.
    Yield,
    /// It waits, and makes the call again.
    Wait(Wait),
    /// It ends, with a status.
    End(i32),
}

/// All there is.
#[derive(Debug)]
pub struct Kernel {
    /// The files.
    pub files: Files,
    /// All but the one whose turn it is.
    pub processes: BTreeMap<u32, Process>,
    /// Those that have ended.
    pub ended: BTreeMap<u32, Ended>,
    /// Those of `processes` that do not wait, in the order of their turns.
    ready: VecDeque<u32>,
    last_id: u32,
}

impl Kernel {
    /// One with a first process.
    ///
    /// # Errors
    ///
    /// There is no such program, or no memory.
    pub fn new(files: Files, program: &str, arguments: &[u8]) -> Result<Self, Error> {
        let file = files.find(program).ok_or(Error::NotFound)?;
        let first = Process::first(FIRST, file, arguments)?;
        let (processes, ready) = ([(FIRST, first)].into(), [FIRST].into());
        Ok(Self { files, processes, ended: BTreeMap::new(), ready, last_id: FIRST })
    }

    /// Runs processes until the first one has ended; gives its status.
    pub fn run(&mut self) -> i32 {
        loop {
            if let Some(first) = self.ended.get(&FIRST) {
                return first.status;
            }
            self.wake_sleepers();
            if console::input_came() {
                self.wake(|_, wait| wait == Wait::Pipe);
            }
            let Some(id) = self.ready.pop_front() else {
                self.idle();
                continue;
            };
            // If it is not there, somebody has killed it while it was ready.
            if let Some(process) = self.processes.remove(&id) {
                self.turn(process);
            }
        }
    }

    /// A process's turn. It is in nobody's list meanwhile.
    fn turn(&mut self, mut process: Process) {
        let (start, slice) = (Instant::now(), Slice::start(SLICE));
        // What it waited for has come: the call that it made then is made again.
        let mut next = match process.waits_for.take() {
            Some(_) => self.call(&mut process),
            None => Next::Run,
        };
        while next == Next::Run {
            next = self.step(&mut process, &slice);
        }
        process.run += start.elapsed();
        match next {
            Next::Run | Next::Yield => self.add(process),
            Next::Wait(wait) => {
                process.waits_for = Some(wait);
                self.processes.insert(process.id, process);
            }
            Next::End(status) => self.end(process, status),
        }
    }

    /// Runs a process until it comes back, and does what it came for.
    fn step(&mut self, process: &mut Process, slice: &Slice) -> Next {
        match process.task.run_within(&mut process.memory.space, slice) {
            Trap::Syscall => self.call(process),
            Trap::PageFault { address, access } => match process.memory.fault(address, access) {
                Ok(()) => Next::Run,
                Err(Fault::Forbidden) => killed(process, format_args!("{access:?} of {address:#x}")),
                Err(Fault::OutOfMemory) => killed(process, format_args!("out of memory")),
            },
            Trap::Exception { vector } => killed(process, format_args!("exception {vector}")),
            Trap::Interrupted => Next::Yield,
            Trap::Killed => killed(process, format_args!("given up by the host")),
        }
    }

    /// Adds a process that is ready.
    pub fn add(&mut self, process: Process) {
        self.ready.push_back(process.id);
        self.processes.insert(process.id, process);
    }

    /// A number for a new process.
    ///
    /// # Errors
    ///
    /// There are as many processes as there can be.
    pub fn new_id(&mut self) -> Result<u32, Error> {
        // The one whose turn it is, is in no list.
        if self.processes.len() + self.ended.len() + 1 >= MOST_PROCESSES {
            return Err(Error::TooManyProcesses);
        }
        self.last_id += 1;
        Ok(self.last_id)
    }

    /// Ends a process that is in no list.
    pub fn end(&mut self, process: Process, status: i32) {
        let Process { id, parent, name, task, memory, descriptors, .. } = process;
        drop((task, memory, descriptors));
        // Whoever is at the other end of one of its pipes learns of it.
        self.wake(|_, wait| wait == Wait::Pipe);
        // Nobody will look at its children any more.
        self.ended.retain(|_, child| child.parent != id);
        self.processes.values_mut().filter(|child| child.parent == id).for_each(|child| child.parent = 0);
        if parent != 0 || id == FIRST {
            self.ended.insert(id, Ended { parent, status, name });
            self.wake(|waiter, wait| waiter == parent && wait == Wait::Child);
        }
    }

    /// Makes those ready for whom `may_go_on` says so, by their number and what they wait for.
    pub fn wake(&mut self, may_go_on: impl Fn(u32, Wait) -> bool) {
        for process in self.processes.values() {
            let waits = process.waits_for.is_some_and(|wait| may_go_on(process.id, wait));
            if waits && !self.ready.contains(&process.id) {
                self.ready.push_back(process.id);
            }
        }
    }

    fn wake_sleepers(&mut self) {
        let now = Instant::now();
        self.wake(|_, wait| matches!(wait, Wait::Until(moment) if moment <= now));
    }

    /// Nobody is ready: gives the processor back until the first sleeper's moment, and memory that nobody needs.
    fn idle(&self) {
        let moments = self.processes.values().filter_map(|process| match process.waits_for {
            Some(Wait::Until(moment)) => Some(moment.as_nanos()),
            _ => None,
        });
        let report = frames::report_free().map(Instant::as_nanos);
        console::block(moments.chain(report).min().unwrap_or(NEVER));
    }
}

/// Says on the console why a process is killed.
fn killed(process: &Process, why: core::fmt::Arguments<'_>) -> Next {
    let (name, id, place) = (&process.name, process.id, process.task.registers().rip);
    println!("minios: killed {name} ({id}): {why}, at {place:#x}");
    Next::End(KILLED)
}

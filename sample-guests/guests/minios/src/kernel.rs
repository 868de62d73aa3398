//! The kernel: its processes, what becomes of a thread that comes back, and the ends of processes.
//!
//! There is one [`Kernel`], behind one lock, which a vCPU holds while it does what a thread came for ([`Kernel::serve`]) and
//! puts it where it belongs ([`Kernel::settle`]), but not while a program runs, while it fills in a program's pages, or while
//! it is idle; nor while a file system works, which may wait for a device. So nearly all of this is plain data, as if there were one vCPU.
//!
//! # Ends
//!
//! A process ends when the last of its threads has. One that is killed, or does wrong, or exits, loses those that no vCPU runs
//! at once; vCPUs that run the others are sent an event, and put them away when they come back.
//!
//! Start at [`vcpu::run`](crate::vcpu::run), which is what each vCPU does.

use crate::memory::Fault;
use crate::mounts::Mounts;
use crate::process::{Ended, Process};
use crate::schedule::Scheduler;
use crate::thread::{Doing, Turn, Wait, Work};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use guest_sdk::println;
use guest_sdk::time::Duration;
use guest_sdk::user::Trap;
use minios_abi::{Error, KILLED};

/// Processes that there can be, ended ones included. Each is a process of the host's, too.
pub const MOST_PROCESSES: usize = 60;

/// The first process, with whose end all ends.
pub const FIRST: u32 = 1;

/// What a thread does after it was served.
#[derive(Debug)]
pub enum Next {
    /// It goes on.
    Run,
    /// It goes on once this is done, for which the kernel is not to be locked.
    Work(Work),
    /// It lets others run.
    Yield,
    /// It waits, and makes the call again.
    Wait(Wait),
    /// It ends, and so does its process, with a status.
    End(i32),
    /// It ends. Then 1 is stored in this word, and who waits there is woken.
    Exit(u64),
    /// Its process has been ended meanwhile.
    Leave,
}

/// All there is.
#[derive(Debug)]
pub struct Kernel {
    /// The files.
    pub mounts: Arc<Mounts>,
    /// All that have not ended.
    pub processes: BTreeMap<u32, Process>,
    /// Those that have ended.
    pub ended: BTreeMap<u32, Ended>,
    /// All threads, and whose turn it is.
    pub scheduler: Scheduler,
    last_id: u32,
}

impl Kernel {
    /// One with a first process.
    ///
    /// # Errors
    ///
    /// There is no such program, or no memory.
    pub fn new(mounts: Mounts, program: &str, arguments: &[u8]) -> Result<Self, Error> {
        let file = mounts.archive().find(program).ok_or(Error::NotFound)?;
        let (process, thread) = Process::first(FIRST, file, arguments)?;
        let mut scheduler = Scheduler::new();
        scheduler.add(thread)?;
        let processes = [(FIRST, process)].into();
        let mounts = Arc::new(mounts);
        Ok(Self { mounts, processes, ended: BTreeMap::new(), scheduler, last_id: FIRST })
    }

    /// The first process's status, if it has ended: then all is over.
    pub fn status(&self) -> Option<i32> {
        self.ended.get(&FIRST).map(|first| first.status)
    }

    /// Does what a thread has come back for.
    pub fn serve(&mut self, turn: &mut Turn, trap: Trap) -> Next {
        if self.process(turn.process).ends.is_some() {
            return Next::Leave;
        }
        match trap {
            Trap::Syscall => self.call(turn),
            Trap::PageFault { address, access } => match turn.memory.fault(address, access) {
                Ok(()) => Next::Run,
                Err(Fault::Forbidden) => self.killed(turn, format_args!("{access:?} of {address:#x}")),
                Err(Fault::OutOfMemory) => self.killed(turn, format_args!("out of memory")),
            },
            Trap::Exception { vector } => self.killed(turn, format_args!("exception {vector}")),
            Trap::Interrupted => Next::Yield,
            Trap::Killed => self.killed(turn, format_args!("given up by the host")),
        }
    }

    /// Puts away a thread whose turn is over; it ran for so long.
    pub fn settle(&mut self, turn: Turn, next: Next, run: Duration) {
        match next {
            Next::Run | Next::Work(_) | Next::Yield => {
                self.scheduler.put_back(turn, Doing::Ready(false), run)
            }
            Next::Wait(wait) => self.scheduler.put_back(turn, Doing::Waits(wait), run),
            Next::End(status) => {
                self.end(turn.process, status);
                self.leave(turn);
            }
            Next::Exit(word) => {
                let process = turn.process;
                if word != 0 && turn.memory.write(word, &1_u32.to_le_bytes()).is_ok() {
                    self.scheduler.wake_futex(process, word, u64::MAX);
                }
                self.leave(turn);
            }
            Next::Leave => self.leave(turn),
        }
    }

    /// Ends a process. It is over when the vCPUs that run its threads have put them away.
    pub fn end(&mut self, id: u32, status: i32) {
        let process = self.process(id);
        if process.ends.is_none() {
            process.ends = Some(status);
            let gone = self.scheduler.end(id);
            self.without_threads(id, gone);
        }
    }

    /// A thread that ran has ended.
    fn leave(&mut self, turn: Turn) {
        let Turn { thread, process, task, memory, .. } = turn;
        drop((task, memory)); // before the process, whose memory is free once the last thread is gone
        self.scheduler.threads.remove(&thread);
        self.without_threads(process, 1);
    }

    /// A process has so many threads less. With the last one it is over.
    fn without_threads(&mut self, id: u32, gone: usize) {
        let process = self.process(id);
        process.threads -= gone;
        if process.threads == 0 {
            self.bury(id);
        }
    }

    /// Frees what a process had, and tells whom it concerns.
    fn bury(&mut self, id: u32) {
        let Some(process) = self.processes.remove(&id) else { return };
        let Process { parent, name, memory, descriptors, ends, .. } = process;
        drop((memory, descriptors));
        // Whoever is at the other end of one of its pipes learns of it.
        self.scheduler.wake(|_, wait| wait == Wait::Pipe);
        // Nobody will look at its children any more.
        self.ended.retain(|_, child| child.parent != id);
        self.processes.values_mut().filter(|child| child.parent == id).for_each(|child| child.parent = 0);
        if parent != 0 || id == FIRST {
            self.ended.insert(id, Ended { parent, status: ends.unwrap_or(0), name });
            self.scheduler.wake(|waiter, wait| waiter.process == parent && wait == Wait::Child);
        }
    }

    /// The process of a thread that there is.
    pub fn process(&mut self, id: u32) -> &mut Process {
        self.processes.get_mut(&id).expect("a process is there as long as it has threads")
    }

    /// A number for a new process or thread.
    pub fn new_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// Says on the console why a process is killed.
    fn killed(&mut self, turn: &Turn, why: core::fmt::Arguments<'_>) -> Next {
        let (name, id, place) = (&self.process(turn.process).name, turn.process, turn.task.registers().rip);
        println!("minios: killed {name} ({id}): {why}, at {place:#x}");
        Next::End(KILLED)
    }
}

//! A process: a program that runs, and what its threads have in common.

use crate::descriptors::Descriptors;
use crate::files::File;
use crate::memory::Memory;
use crate::program;
use crate::thread::Thread;
use alloc::string::String;
use alloc::sync::Arc;
use guest_sdk::user::Task;
use minios_abi::{Error, Name, ThreadInfo, state};

/// A process that has not ended.
#[derive(Debug)]
pub struct Process {
    /// Its number, and that of its first thread.
    pub id: u32,
    /// Who waits for its end; 0 if nobody does.
    pub parent: u32,
    /// Its program.
    pub name: String,
    /// All that it can touch.
    pub memory: Arc<Memory>,
    /// What it reads and writes.
    pub descriptors: Descriptors,
    /// Threads that it has yet.
    pub threads: usize,
    /// With what status it ends, when the last of its threads has come back from the vCPU that runs it.
    pub ends: Option<i32>,
}

/// A process that has ended, and whose parent has not looked yet.
#[derive(Debug)]
pub struct Ended {
    /// Who is to look.
    pub parent: u32,
    /// How it ended.
    pub status: i32,
    /// What it was.
    pub name: String,
}

impl Process {
    /// The first process, and its thread. Its descriptors are the console.
    ///
    /// # Errors
    ///
    /// The file is no program, or there is no memory.
    pub fn first(id: u32, file: &File, arguments: &[u8]) -> Result<(Self, Thread), Error> {
        let start = program::load(file.bytes, arguments)?;
        let (task, memory) = (first_task(&start), Arc::new(start.memory));
        let process = Self {
            id,
            parent: 0,
            name: file.name.clone(),
            memory: memory.clone(),
            descriptors: Descriptors::new(),
            threads: 1,
            ends: None,
        };
        Ok((process, Thread::new(id, id, task, memory)))
    }

    /// A copy, as of now, with the thread of `task` alone, which sees 0 as the result of its system call.
    ///
    /// # Errors
    ///
    /// There is no memory for it.
    pub fn fork(&self, task: &Task, id: u32) -> Result<(Self, Thread), Error> {
        let memory = Arc::new(self.memory.fork()?);
        let mut task = task.duplicate();
        task.set_result(0);
        let process = Self {
            id,
            parent: self.id,
            name: self.name.clone(),
            memory: memory.clone(),
            descriptors: self.descriptors.clone(),
            threads: 1,
            ends: None,
        };
        Ok((process, Thread::new(id, id, task, memory)))
    }

    /// Becomes another program. Gives the registers with which its one thread goes on.
    ///
    /// # Errors
    ///
    /// The file is no program, or there is no memory. Then it is what it was.
    pub fn exec(&mut self, file: &File, arguments: &[u8]) -> Result<Task, Error> {
        let start = program::load(file.bytes, arguments)?;
        let task = first_task(&start);
        self.memory = Arc::new(start.memory);
        self.name.clone_from(&file.name);
        Ok(task)
    }
}

impl Ended {
    /// As `ps` shows it.
    pub fn info(&self, id: u32) -> ThreadInfo {
        ThreadInfo {
            thread: id,
            process: id,
            parent: self.parent,
            state: state::ENDED,
            vcpu: 0,
            pages: 0,
            run_nanoseconds: 0,
            name: Name::new(&self.name),
        }
    }
}

/// Registers for a program's first instruction.
fn first_task(start: &program::Start) -> Task {
    let mut task = Task::new(start.entry, start.stack);
    task.registers_mut().rdi = start.stack;
    task
}

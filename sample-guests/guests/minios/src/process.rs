//! A process: a program that runs, and what is its own.

use crate::descriptors::Descriptors;
use crate::files::File;
use crate::memory::Memory;
use crate::program;
use alloc::string::String;
use guest_sdk::time::{Duration, Instant};
use guest_sdk::user::Task;
use minios_abi::{Error, Name, ProcessInfo, state};

/// A process that has not ended.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub id: u32,
    /// Who waits for its end; 0 if nobody does.
    pub parent: u32,
    /// Its program.
    pub name: String,
    /// Its registers.
    pub task: Task,
    /// All that it can touch.
    pub memory: Memory,
    /// What it reads and writes.
    pub descriptors: Descriptors,
    /// What it waits for, if it waits.
    pub waits_for: Option<Wait>,
    /// When it is to wake up, if it sleeps.
    pub sleeps_until: Option<Instant>,
    /// How long it has run.
    pub run: Duration,
}

/// What a process waits for. When that may have come, its system call is made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// One of its children ends.
    Child,
    /// Somebody reads, writes or closes a pipe, or types.
    Pipe,
    /// A moment.
    Until(Instant),
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
    /// The first process. Its descriptors are the console.
    ///
    /// # Errors
    ///
    /// The file is no program, or there is no memory.
    pub fn first(id: u32, file: &File, arguments: &[u8]) -> Result<Self, Error> {
        let start = program::load(file.bytes, arguments)?;
        Ok(Self {
            id,
            parent: 0,
            name: file.name.clone(),
            task: first_task(&start),
            memory: start.memory,
            descriptors: Descriptors::new(),
            waits_for: None,
            sleeps_until: None,
            run: Duration::ZERO,
        })
    }

    /// A copy, as of now, which sees 0 as the result of its system call.
    ///
    /// # Errors
    ///
    /// There is no memory for it.
    pub fn fork(&mut self, id: u32) -> Result<Self, Error> {
        let memory = self.memory.fork()?;
        let mut task = self.task.duplicate();
        task.set_result(0);
        Ok(Self {
            id,
            parent: self.id,
            name: self.name.clone(),
            task,
            memory,
            descriptors: self.descriptors.clone(),
            waits_for: None,
            sleeps_until: None,
            run: Duration::ZERO,
        })
    }

    /// Becomes another program.
    ///
    /// # Errors
    ///
    /// The file is no program, or there is no memory. Then it is what it was.
    pub fn exec(&mut self, file: &File, arguments: &[u8]) -> Result<(), Error> {
        let start = program::load(file.bytes, arguments)?;
        self.task = first_task(&start);
        self.memory = start.memory;
        self.name.clone_from(&file.name);
        Ok(())
    }

    /// As `ps` shows it.
    pub fn info(&self) -> ProcessInfo {
        ProcessInfo {
            process: self.id,
            parent: self.parent,
            state: if self.waits_for.is_some() { state::WAITING } else { state::READY },
            pages: self.memory.pages() as u32,
            run_nanoseconds: self.run.as_nanos() as u64,
            name: Name::new(&self.name),
        }
    }
}

impl Ended {
    /// As `ps` shows it.
    pub fn info(&self, id: u32) -> ProcessInfo {
        let (parent, name) = (self.parent, Name::new(&self.name));
        ProcessInfo { process: id, parent, state: state::ENDED, pages: 0, run_nanoseconds: 0, name }
    }
}

/// Registers for a program's first instruction.
fn first_task(start: &program::Start) -> Task {
    let mut task = Task::new(start.entry, start.stack);
    task.registers_mut().rdi = start.stack;
    task
}

//! System calls: what a thread asks for, checked and done.
//!
//! `minios_abi::call` says what each is. Start at [`Kernel::call`].

use crate::descriptors::Transfer;
use crate::kernel::{Kernel, MOST_PROCESSES, Next};
use crate::memory::{Memory, check_heap};
use crate::mounts::Mounts;
use crate::thread::{Thread, Turn, Wait};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use guest_sdk::frames;
use guest_sdk::hv_abi::PAGE_SIZE;
use guest_sdk::time::{Duration, Instant};
use guest_sdk::user::Task;
use minios_abi::{Error, KILLED, SystemInfo, ThreadInfo, WAIT_POLL, call};
use zerocopy::{Immutable, IntoBytes};

/// Bytes that one call reads or writes, of what is no file; it does what it can, and the program asks again.
const MOST_BYTES: u64 = 16 << 10;

/// Bytes of a path, or of a program's arguments.
const MOST_TEXT: u64 = 16 << 10;

/// How a call ended.
pub(crate) enum Answer {
    /// With that result.
    Value(u64),
    /// Not yet.
    Wait(Wait),
    /// Without a result for the process to see.
    Next(Next),
}

type Result<T> = core::result::Result<T, Error>;

impl Kernel {
    /// The system call that a thread makes.
    pub fn call(&mut self, turn: &mut Turn) -> Next {
        let (number, arguments) = (turn.task.syscall().number, turn.task.syscall().arguments);
        match self.dispatch(turn, number, arguments) {
            Ok(Answer::Value(value)) => turn.task.set_result(value),
            Ok(Answer::Wait(wait)) => return Next::Wait(wait),
            Ok(Answer::Next(next)) => return next,
            Err(error) => turn.task.set_result(error.result() as u64),
        }
        Next::Run
    }

    fn dispatch(&mut self, turn: &mut Turn, number: u64, arguments: [u64; 6]) -> Result<Answer> {
        let [a, b, c, d, ..] = arguments;
        let value = match number {
            call::EXIT => return Ok(Answer::Next(Next::End(a as i32))),
            call::FORK => self.fork(turn)?,
            call::EXEC => return self.exec(turn, [a, b, c, d]),
            call::WAIT => return self.wait(turn, a, b, c),
            call::KILL => return self.kill(turn, a),
            call::PROCESS => turn.process.into(),
            call::OPEN => return self.open(turn, [a, b, c]),
            call::CLOSE => {
                self.process(turn.process).descriptors.close(a)?;
                self.scheduler.wake(|_, wait| wait == Wait::Pipe);
                0
            }
            call::READ => return self.read(turn, a, b, c),
            call::WRITE => return self.write(turn, a, b, c),
            call::DUPLICATE => {
                self.process(turn.process).descriptors.duplicate(a, b)?;
                self.scheduler.wake(|_, wait| wait == Wait::Pipe); // what `b` was may be closed by this
                b
            }
            call::PIPE => {
                let ends = self.process(turn.process).descriptors.pipe()?;
                answer(&turn.memory, a, &ends.map(|end| end as u32))?
            }
            call::MAP => turn.memory.allocate(a)?,
            call::UNMAP => turn.memory.free(a).map(|()| 0)?,
            call::PROTECT => turn.memory.protect(a, b != 0).map(|()| 0)?,
            call::SLEEP => return Ok(self.sleep(turn, a)),
            call::LIST_FILES => return self.list_files(turn, [a, b, c, d]),
            call::MAKE_DIRECTORY => return self.on_path(turn, [a, b], Mounts::make_directory),
            call::REMOVE => return self.on_path(turn, [a, b], Mounts::remove),
            call::RENAME => return self.rename(turn, [a, b, c, d]),
            call::LIST_MOUNTS => self.list_mounts(turn, a, b)?,
            call::LIST_THREADS => match self.info_from(a) {
                Some(info) => {
                    answer(&turn.memory, b, &info)?;
                    1
                }
                None => 0,
            },
            call::SYSTEM => answer(&turn.memory, a, &self.system())?,
            call::YIELD => {
                turn.task.set_result(0);
                return Ok(Answer::Next(Next::Yield));
            }
            call::THREAD_CREATE => self.thread_create(turn, [a, b, c])?,
            call::THREAD_EXIT => return Ok(Answer::Next(Next::Exit(a))),
            call::FUTEX_WAIT => return futex_wait(turn, a, b),
            call::FUTEX_WAKE => self.scheduler.wake_futex(turn.process, a, b),
            _ => return Err(Error::Unknown),
        };
        Ok(Answer::Value(value))
    }

    fn fork(&mut self, turn: &Turn) -> Result<u64> {
        if self.processes.len() + self.ended.len() >= MOST_PROCESSES {
            return Err(Error::TooManyProcesses);
        }
        let id = self.new_id();
        let (child, thread) = self.process(turn.process).fork(&turn.task, id)?;
        self.scheduler.add(thread)?;
        self.processes.insert(id, child);
        Ok(id.into())
    }

    fn exec(&mut self, turn: &mut Turn, [path, path_length, start, length]: [u64; 4]) -> Result<Answer> {
        let path = text(&turn.memory, path, path_length)?;
        let arguments = bytes(&turn.memory, start, length)?;
        let file = self.mounts.archive().find(&path).ok_or(Error::NotFound)?.clone();
        let process = self.process(turn.process);
        if process.threads > 1 {
            return Err(Error::HasThreads);
        }
        turn.task = process.exec(&file, &arguments)?;
        turn.memory = process.memory.clone();
        Ok(Answer::Next(Next::Run))
    }

    fn wait(&mut self, turn: &Turn, id: u64, status: u64, flags: u64) -> Result<Answer> {
        let wanted = |child: u32, parent: u32| parent == turn.process && (id == 0 || id == u64::from(child));
        let ended = self.ended.iter().find(|(child, ended)| wanted(**child, ended.parent));
        if let Some((child, ended)) = ended.map(|(child, ended)| (*child, ended.status)) {
            if status != 0 {
                answer(&turn.memory, status, &ended)?;
            }
            self.ended.remove(&child);
            return Ok(Answer::Value(child.into()));
        }
        if !self.processes.values().any(|other| wanted(other.id, other.parent)) {
            return Err(Error::NoChild);
        }
        Ok(if flags & WAIT_POLL != 0 { Answer::Value(0) } else { Answer::Wait(Wait::Child) })
    }

    fn kill(&mut self, turn: &Turn, id: u64) -> Result<Answer> {
        let id = u32::try_from(id).map_err(|_| Error::NoProcess)?;
        if id == turn.process {
            return Ok(Answer::Next(Next::End(KILLED)));
        }
        if !self.processes.contains_key(&id) {
            return Err(Error::NoProcess);
        }
        self.end(id, KILLED);
        Ok(Answer::Value(0))
    }

    fn thread_create(&mut self, turn: &Turn, [entry, stack, argument]: [u64; 3]) -> Result<u64> {
        check_heap()?;
        let id = self.new_id();
        let mut task = Task::new(entry, stack);
        task.registers_mut().rdi = argument;
        self.scheduler.add(Thread::new(id, turn.process, task, turn.memory.clone()))?;
        self.process(turn.process).threads += 1;
        Ok(id.into())
    }

    fn read(&mut self, turn: &Turn, descriptor: u64, start: u64, length: u64) -> Result<Answer> {
        if let Some(answer) = self.read_file(turn, [descriptor, start, length]) {
            return answer;
        }
        let mut buffer = vec![0; length.min(MOST_BYTES) as usize];
        // Before anything is taken out of a pipe, it is seen to that it can be delivered.
        turn.memory.prepare_write(start, buffer.len())?;
        match self.process(turn.process).descriptors.read(descriptor, &mut buffer)? {
            Transfer::Wait => Ok(Answer::Wait(Wait::Pipe)),
            Transfer::Done(length) => {
                turn.memory.write(start, &buffer[..length])?;
                self.scheduler.wake(|_, wait| wait == Wait::Pipe);
                Ok(Answer::Value(length as u64))
            }
        }
    }

    fn write(&mut self, turn: &Turn, descriptor: u64, start: u64, length: u64) -> Result<Answer> {
        if let Some(answer) = self.write_file(turn, [descriptor, start, length]) {
            return answer;
        }
        let bytes = bytes(&turn.memory, start, length.min(MOST_BYTES))?;
        match self.process(turn.process).descriptors.write(descriptor, &bytes)? {
            Transfer::Wait => Ok(Answer::Wait(Wait::Pipe)),
            Transfer::Done(length) => {
                self.scheduler.wake(|_, wait| wait == Wait::Pipe);
                Ok(Answer::Value(length as u64))
            }
        }
    }

    /// The first time it gives a moment to wait for; when that has come, the call is made again, and finds it.
    fn sleep(&mut self, turn: &Turn, nanoseconds: u64) -> Answer {
        let now = Instant::now();
        let thread = self.scheduler.threads.get_mut(&turn.thread).expect("it makes this call");
        match thread.sleeps_until.take() {
            Some(moment) if moment <= now => Answer::Value(0),
            again => {
                let moment = again.unwrap_or(now + Duration::from_nanos(nanoseconds));
                thread.sleeps_until = Some(moment);
                Answer::Wait(Wait::Until(moment))
            }
        }
    }

    /// The first thread, or process that has ended, whose number is that or more.
    fn info_from(&self, id: u64) -> Option<ThreadInfo> {
        let id = u32::try_from(id).ok()?;
        let (_, thread) = self.scheduler.threads.range(id..).next().unzip();
        let thread = thread.map(|thread| thread.info(&self.processes[&thread.process]));
        let ended = self.ended.range(id..).next().map(|(id, ended)| ended.info(*id));
        [thread, ended].into_iter().flatten().min_by_key(|info| info.thread)
    }

    fn system(&self) -> SystemInfo {
        let figures = frames::figures();
        SystemInfo {
            pages: guest_sdk::boot::info().memory_size / PAGE_SIZE,
            free_pages: figures.free,
            reported_pages: figures.reported,
            balloon_pages: figures.held,
            balloon_target: figures.target,
            up_nanoseconds: Instant::now().as_nanos(),
            processes: (self.processes.len() + self.ended.len()) as u64,
            vcpus: guest_sdk::smp::count().into(),
        }
    }
}

/// Whoever changes the word and then wakes cannot come between the look and the wait: the kernel is locked.
fn futex_wait(turn: &Turn, word: u64, expected: u64) -> Result<Answer> {
    let mut value = [0; 4];
    if !word.is_multiple_of(value.len() as u64) {
        return Err(Error::Invalid);
    }
    turn.memory.read(word, &mut value)?;
    if u64::from(u32::from_le_bytes(value)) != expected {
        return Err(Error::Changed);
    }
    Ok(Answer::Wait(Wait::Futex(word)))
}

/// Bytes that a process names.
fn bytes(memory: &Memory, start: u64, length: u64) -> Result<Vec<u8>> {
    if length > MOST_TEXT.max(MOST_BYTES) {
        return Err(Error::Invalid);
    }
    let mut bytes = vec![0; length as usize];
    memory.read(start, &mut bytes)?;
    Ok(bytes)
}

/// Text that a process names.
pub(crate) fn text(memory: &Memory, start: u64, length: u64) -> Result<String> {
    String::from_utf8(bytes(memory, start, length)?).map_err(|_| Error::Invalid)
}

/// Writes a structure where a process wants it. Gives 0.
pub(crate) fn answer<T: IntoBytes + Immutable>(memory: &Memory, start: u64, value: &T) -> Result<u64> {
    memory.write(start, value.as_bytes()).map(|()| 0)
}

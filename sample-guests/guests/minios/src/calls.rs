//! System calls: what a process asks for, checked and done.
//!
//! `minios_abi::call` says what each is. Start at [`Kernel::call`].

use crate::descriptors::Transfer;
use crate::kernel::{Kernel, Next};
use crate::memory::Memory;
use crate::process::{Process, Wait};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use guest_sdk::frames;
use guest_sdk::hv_abi::PAGE_SIZE;
use guest_sdk::time::{Duration, Instant};
use minios_abi::{Error, FileInfo, KILLED, Name, ProcessInfo, SystemInfo, WAIT_POLL, call};
use zerocopy::{Immutable, IntoBytes};

/// Bytes that one call reads or writes; it does what it can, and the program asks again.
const MOST_BYTES: u64 = 16 << 10;

/// Bytes of a path, or of a program's arguments.
const MOST_TEXT: u64 = 16 << 10;

/// How a call ended.
enum Answer {
    /// With that result.
    Value(u64),
    /// Not yet.
    Wait(Wait),
    /// Without a result for the process to see.
    Next(Next),
}

type Result<T> = core::result::Result<T, Error>;

impl Kernel {
    /// The system call that a process makes, whose turn it is.
    pub fn call(&mut self, process: &mut Process) -> Next {
        let (number, arguments) = (process.task.syscall().number, process.task.syscall().arguments);
        match self.dispatch(process, number, arguments) {
            Ok(Answer::Value(value)) => process.task.set_result(value),
            Ok(Answer::Wait(wait)) => return Next::Wait(wait),
            Ok(Answer::Next(next)) => return next,
            Err(error) => process.task.set_result(error.result() as u64),
        }
        Next::Run
    }

    fn dispatch(&mut self, process: &mut Process, number: u64, arguments: [u64; 6]) -> Result<Answer> {
        let [a, b, c, d, ..] = arguments;
        let value = match number {
            call::EXIT => return Ok(Answer::Next(Next::End(a as i32))),
            call::FORK => self.fork(process)?,
            call::EXEC => return self.exec(process, [a, b, c, d]),
            call::WAIT => return self.wait(process, a, b, c),
            call::KILL => return self.kill(process, a),
            call::PROCESS => process.id.into(),
            call::OPEN => {
                let path = text(&mut process.memory, a, b)?;
                let file = self.files.find(&path).ok_or(Error::NotFound)?;
                process.descriptors.open(file.clone())?
            }
            call::CLOSE => {
                process.descriptors.close(a)?;
                self.wake(|_, wait| wait == Wait::Pipe);
                0
            }
            call::READ => return self.read(process, a, b, c),
            call::WRITE => return self.write(process, a, b, c),
            call::DUPLICATE => {
                process.descriptors.duplicate(a, b)?;
                self.wake(|_, wait| wait == Wait::Pipe); // what `b` was may be closed by this
                b
            }
            call::PIPE => {
                let ends = process.descriptors.pipe()?;
                answer(&mut process.memory, a, &ends.map(|end| end as u32))?
            }
            call::MAP => process.memory.allocate(a)?,
            call::SLEEP => return Ok(self.sleep(process, a)),
            call::LIST_FILES => match self.files.get(a as usize) {
                Some(file) => {
                    let info = FileInfo { size: file.bytes.len() as u64, name: Name::new(&file.name) };
                    answer(&mut process.memory, b, &info)?;
                    1
                }
                None => 0,
            },
            call::LIST_PROCESSES => match self.info_from(process, a) {
                Some(info) => {
                    answer(&mut process.memory, b, &info)?;
                    1
                }
                None => 0,
            },
            call::SYSTEM => answer(&mut process.memory, a, &self.system())?,
            call::YIELD => {
                process.task.set_result(0);
                return Ok(Answer::Next(Next::Yield));
            }
            _ => return Err(Error::Unknown),
        };
        Ok(Answer::Value(value))
    }

    fn fork(&mut self, process: &mut Process) -> Result<u64> {
        let id = self.new_id()?;
        let child = process.fork(id)?;
        self.add(child);
        Ok(id.into())
    }

    fn exec(
        &mut self,
        process: &mut Process,
        [path, path_length, start, length]: [u64; 4],
    ) -> Result<Answer> {
        let path = text(&mut process.memory, path, path_length)?;
        let arguments = bytes(&mut process.memory, start, length)?;
        let file = self.files.find(&path).ok_or(Error::NotFound)?;
        process.exec(file, &arguments)?;
        Ok(Answer::Next(Next::Run))
    }

    fn wait(&mut self, process: &mut Process, id: u64, status: u64, flags: u64) -> Result<Answer> {
        let wanted = |child: u32, parent: u32| parent == process.id && (id == 0 || id == u64::from(child));
        let ended = self.ended.iter().find(|(child, ended)| wanted(**child, ended.parent));
        if let Some((child, ended)) = ended.map(|(child, ended)| (*child, ended.status)) {
            if status != 0 {
                answer(&mut process.memory, status, &ended)?;
            }
            self.ended.remove(&child);
            return Ok(Answer::Value(child.into()));
        }
        if !self.processes.values().any(|other| wanted(other.id, other.parent)) {
            return Err(Error::NoChild);
        }
        Ok(if flags & WAIT_POLL != 0 { Answer::Value(0) } else { Answer::Wait(Wait::Child) })
    }

    fn kill(&mut self, process: &mut Process, id: u64) -> Result<Answer> {
        let id = u32::try_from(id).map_err(|_| Error::NoProcess)?;
        if id == process.id {
            return Ok(Answer::Next(Next::End(KILLED)));
        }
        let other = self.processes.remove(&id).ok_or(Error::NoProcess)?;
        self.end(other, KILLED);
        if process.parent == id {
            process.parent = 0; // it is in no list, where `end` would have found it
        }
        Ok(Answer::Value(0))
    }

    fn read(&mut self, process: &mut Process, descriptor: u64, start: u64, length: u64) -> Result<Answer> {
        let mut buffer = vec![0; length.min(MOST_BYTES) as usize];
        // Before anything is taken out of a pipe, it is seen to that it can be delivered.
        process.memory.prepare_write(start, buffer.len())?;
        match process.descriptors.read(descriptor, &mut buffer)? {
            Transfer::Wait => Ok(Answer::Wait(Wait::Pipe)),
            Transfer::Done(length) => {
                process.memory.write(start, &buffer[..length])?;
                self.wake(|_, wait| wait == Wait::Pipe);
                Ok(Answer::Value(length as u64))
            }
        }
    }

    fn write(&mut self, process: &mut Process, descriptor: u64, start: u64, length: u64) -> Result<Answer> {
        let bytes = bytes(&mut process.memory, start, length.min(MOST_BYTES))?;
        match process.descriptors.write(descriptor, &bytes)? {
            Transfer::Wait => Ok(Answer::Wait(Wait::Pipe)),
            Transfer::Done(length) => {
                self.wake(|_, wait| wait == Wait::Pipe);
                Ok(Answer::Value(length as u64))
            }
        }
    }

    /// The first time it gives a moment to wait for; when that has come, the call is made again, and finds it.
    fn sleep(&self, process: &mut Process, nanoseconds: u64) -> Answer {
        let now = Instant::now();
        match process.sleeps_until.take() {
            Some(moment) if moment <= now => Answer::Value(0),
            again => {
                let moment = again.unwrap_or(now + Duration::from_nanos(nanoseconds));
                process.sleeps_until = Some(moment);
                Answer::Wait(Wait::Until(moment))
            }
        }
    }

    /// The first process whose number is that or more.
    fn info_from(&self, current: &Process, id: u64) -> Option<ProcessInfo> {
        let id = u32::try_from(id).ok()?;
        let others = self.processes.range(id..).next().map(|(_, process)| process.info());
        let ended = self.ended.range(id..).next().map(|(id, ended)| ended.info(*id));
        let own = (current.id >= id).then(|| current.info());
        [others, ended, own].into_iter().flatten().min_by_key(|info| info.process)
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
            processes: (self.processes.len() + self.ended.len() + 1) as u64,
        }
    }
}

/// Bytes that a process names.
fn bytes(memory: &mut Memory, start: u64, length: u64) -> Result<Vec<u8>> {
    if length > MOST_TEXT.max(MOST_BYTES) {
        return Err(Error::Invalid);
    }
    let mut bytes = vec![0; length as usize];
    memory.read(start, &mut bytes)?;
    Ok(bytes)
}

/// Text that a process names.
fn text(memory: &mut Memory, start: u64, length: u64) -> Result<String> {
    String::from_utf8(bytes(memory, start, length)?).map_err(|_| Error::Invalid)
}

/// Writes a structure where a process wants it. Gives 0.
fn answer<T: IntoBytes + Immutable>(memory: &mut Memory, start: u64, value: &T) -> Result<u64> {
    memory.write(start, value.as_bytes()).map(|()| 0)
}

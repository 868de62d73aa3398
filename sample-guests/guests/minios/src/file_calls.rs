//! System calls about files. A file system may wait for a device, so what these do is [`Work`]: done without the kernel's lock,
//! while other vCPUs go on.

use crate::calls::{Answer, answer, text};
use crate::kernel::{Kernel, Next};
use crate::memory::check_heap;
use crate::mounts::Mounts;
use crate::thread::{Turn, Work};
use alloc::vec;
use guest_sdk::sync::Lock;
use minios_abi::{Error, FilePage, Opening};
use zerocopy::FromZeros;

type Result<T> = core::result::Result<T, Error>;

/// Bytes of a file that one call reads or writes; it does what it can, and the program asks again.
const MOST_BYTES: u64 = 64 << 10;

impl Kernel {
    pub(crate) fn open(&self, turn: &Turn, [path, length, how]: [u64; 3]) -> Result<Answer> {
        let (mounts, path) = (self.mounts.clone(), text(&turn.memory, path, length)?);
        unlocked(move |kernel, turn| {
            let file = mounts.open(&path, Opening(how))?;
            kernel.lock().process(turn.process).descriptors.open(file)
        })
    }

    /// What `read` does if the descriptor is for a file; `None` if it is for something else.
    pub(crate) fn read_file(
        &mut self,
        turn: &Turn,
        [descriptor, start, length]: [u64; 3],
    ) -> Option<Result<Answer>> {
        let file = self.process(turn.process).descriptors.file(descriptor)?;
        Some(unlocked(move |_, turn| {
            let mut buffer = vec![0; length.min(MOST_BYTES) as usize];
            turn.memory.prepare_write(start, buffer.len())?;
            let length = file.read(&mut buffer)?;
            turn.memory.write(start, &buffer[..length])?;
            Ok(length as u64)
        }))
    }

    /// As [`read_file`](Self::read_file), for `write`.
    pub(crate) fn write_file(
        &mut self,
        turn: &Turn,
        [descriptor, start, length]: [u64; 3],
    ) -> Option<Result<Answer>> {
        let file = self.process(turn.process).descriptors.file(descriptor)?;
        Some(unlocked(move |_, turn| {
            let mut buffer = vec![0; length.min(MOST_BYTES) as usize];
            turn.memory.read(start, &mut buffer)?;
            file.write(&buffer).map(|length| length as u64)
        }))
    }

    pub(crate) fn list_files(&self, turn: &Turn, [path, length, from, page]: [u64; 4]) -> Result<Answer> {
        let (mounts, path) = (self.mounts.clone(), text(&turn.memory, path, length)?);
        unlocked(move |_, turn| {
            let (files, next) = mounts.list(&path, from)?;
            let mut told = FilePage::new_zeroed();
            told.next = next.unwrap_or(FilePage::END);
            told.count = files.len() as u64;
            told.files.iter_mut().zip(files).for_each(|(to, file)| *to = file);
            answer(&turn.memory, page, &told)
        })
    }

    pub(crate) fn list_mounts(&self, turn: &Turn, index: u64, entry: u64) -> Result<u64> {
        match usize::try_from(index).ok().and_then(|index| self.mounts.get(index)) {
            Some(info) => answer(&turn.memory, entry, &info).map(|_| 1),
            None => Ok(0),
        }
    }

    /// What a call does that has a path and nothing else.
    pub(crate) fn on_path(
        &self,
        turn: &Turn,
        [path, length]: [u64; 2],
        act: fn(&Mounts, &str) -> Result<()>,
    ) -> Result<Answer> {
        let (mounts, path) = (self.mounts.clone(), text(&turn.memory, path, length)?);
        unlocked(move |_, _| act(&mounts, &path).map(|()| 0))
    }

    pub(crate) fn rename(&self, turn: &Turn, [from, length, to, to_length]: [u64; 4]) -> Result<Answer> {
        let (from, to) = (text(&turn.memory, from, length)?, text(&turn.memory, to, to_length)?);
        let mounts = self.mounts.clone();
        unlocked(move |_, _| mounts.rename(&from, &to).map(|()| 0))
    }
}

/// Work that gives a call's result.
fn unlocked(work: impl FnOnce(&Lock<Kernel>, &Turn) -> Result<u64> + Send + 'static) -> Result<Answer> {
    check_heap()?;
    Ok(Answer::Next(Next::Work(Work::new(work))))
}

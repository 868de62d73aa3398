//! Requests and replies as bytes, wherever they lie: in a guest's memory, or, for tests, in a slice.
//!
//! A request is read once, front to back. The data of a write goes from it to the file, and that of a read from the
//! file to the reply, without a copy in between. Start at [`Request`] and [`Reply`].

use rustix::fd::BorrowedFd;
use rustix::io::{Errno, Result};
use std::ffi::CString;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The bytes of a request that were not read yet.
pub(crate) trait Request {
    /// How many there are.
    fn remaining(&self) -> usize;

    /// Takes the next ones. There must be as many.
    fn read(&mut self, bytes: &mut [u8]);

    /// Writes the next ones to a file; gives how many that took, which may be fewer. There must be as many.
    fn write_to(&mut self, file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<usize>;

    /// Takes a structure.
    fn structure<T: FromBytes + IntoBytes>(&mut self) -> Result<T> {
        if self.remaining() < size_of::<T>() {
            return Err(Errno::INVAL);
        }
        let mut value = T::new_zeroed();
        self.read(value.as_mut_bytes());
        Ok(value)
    }

    /// Takes names, which are all that is left.
    fn names<const N: usize>(&mut self) -> Result<[CString; N]> {
        let most = N * (hv_abi::fuse::NAME_MAX + 1);
        if self.remaining() > most {
            return Err(Errno::NAMETOOLONG);
        }
        let mut bytes = vec![0; self.remaining()];
        self.read(&mut bytes);
        let names: Option<Vec<CString>> = bytes.split_inclusive(|byte| *byte == 0).map(name).collect();
        names.and_then(|names| names.try_into().ok()).ok_or(Errno::INVAL)
    }

    /// Takes one.
    fn name(&mut self) -> Result<CString> {
        self.names().map(|[name]| name)
    }
}

/// One name in a directory, from bytes with a zero at their end. `..` is none.
fn name(bytes: &[u8]) -> Option<CString> {
    let name = CString::from_vec_with_nul(bytes.to_vec()).ok()?;
    let is_step = !matches!(name.as_bytes(), b"" | b"." | b"..") && !name.as_bytes().contains(&b'/');
    is_step.then_some(name)
}

/// Room for a reply.
pub(crate) trait Reply {
    /// How many bytes it has.
    fn room(&self) -> usize;

    /// Puts bytes into it, `at` bytes from its start. They must fit.
    fn write(&mut self, at: usize, bytes: &[u8]);

    /// Puts bytes of a file into it; gives how many there were, which may be fewer. They must fit.
    fn read_from(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<usize>;
}

/// A reply while it is made, from behind its header on.
#[derive(Debug)]
pub(super) struct Body<'a, R> {
    reply: &'a mut R,
    length: usize,
}

impl<'a, R: Reply> Body<'a, R> {
    /// With nothing in it, behind so many bytes of header.
    pub(super) fn new(reply: &'a mut R, header: usize) -> Self {
        Self { reply, length: header }
    }

    /// Bytes of the reply so far, the header included.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// How many more fit.
    pub(super) fn room(&self) -> usize {
        self.reply.room().saturating_sub(self.length)
    }

    /// Adds bytes. A reply that has no room for them is the guest's mistake, and what was done for it stays done.
    pub(super) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > self.room() {
            return Err(Errno::MSGSIZE);
        }
        self.reply.write(self.length, bytes);
        self.length += bytes.len();
        Ok(())
    }

    /// Adds a structure.
    pub(super) fn structure<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<()> {
        self.add(value.as_bytes())
    }

    /// Adds bytes of a file, as many as there are and fit, `length` at most.
    pub(super) fn file(&mut self, file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<()> {
        let length = length.min(self.room());
        self.length += self.reply.read_from(self.length, file, offset, length)?;
        Ok(())
    }
}

#[cfg(any(test, feature = "fuzzing"))]
mod in_slices {
    use super::*;

    impl Request for &[u8] {
        fn remaining(&self) -> usize {
            self.len()
        }

        fn read(&mut self, bytes: &mut [u8]) {
            let (taken, left) = self.split_at(bytes.len());
            bytes.copy_from_slice(taken);
            *self = left;
        }

        fn write_to(&mut self, file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<usize> {
            let (taken, left) = self.split_at(length);
            *self = left;
            rustix::io::pwrite(file, taken, offset)
        }
    }

    impl Reply for Vec<u8> {
        fn room(&self) -> usize {
            self.len()
        }

        fn write(&mut self, at: usize, bytes: &[u8]) {
            self[at..at + bytes.len()].copy_from_slice(bytes);
        }

        fn read_from(
            &mut self,
            at: usize,
            file: BorrowedFd<'_>,
            offset: u64,
            length: usize,
        ) -> Result<usize> {
            rustix::io::pread(file, &mut self[at..at + length], offset)
        }
    }
}

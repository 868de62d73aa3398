//! A request and its reply, in a chain of the guest's.
//!
//! A request is read once, front to back, and its reply written the same way, but for the header, which comes last. Data
//! goes between the chain and the file without a copy in between.

use crate::devices::chain::{Chain, Reserved, TooShort};
use hv_abi::fuse::{NAME_MAX, OutHeader};
use rustix::fd::BorrowedFd;
use rustix::io::{Errno, Result};
use std::ffi::CString;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What is left of a request, and what there is of its reply.
#[derive(Debug)]
pub(super) struct Message<'a> {
    chain: &'a mut Chain,
    header: Reserved,
}

impl<'a> Message<'a> {
    /// A request whose header was read. Sets room for the reply's aside.
    pub(super) fn new(chain: &'a mut Chain) -> std::result::Result<Self, TooShort> {
        let header = chain.reserve(size_of::<OutHeader>())?;
        Ok(Self { chain, header })
    }

    /// Ends the reply. One that says an error has nothing else in it.
    pub(super) fn end(self, unique: u64, done: Result<()>) {
        let error = done.err().map_or(0, |error| -error.raw_os_error());
        let header = OutHeader { len: self.chain.written(), error, unique };
        self.chain.write_reserved(&self.header, header.as_bytes());
    }

    /// Bytes of the request that were not taken.
    pub(super) fn remaining(&self) -> usize {
        self.chain.readable()
    }

    /// Takes a structure.
    pub(super) fn take<T: FromBytes + IntoBytes>(&mut self) -> Result<T> {
        self.chain.read_value().map_err(|TooShort| Errno::INVAL)
    }

    /// Takes names, which are all that is left.
    pub(super) fn names<const N: usize>(&mut self) -> Result<[CString; N]> {
        let length = self.remaining();
        if length > N * (NAME_MAX + 1) {
            return Err(Errno::NAMETOOLONG);
        }
        let mut bytes = vec![0; length];
        self.chain.read(&mut bytes).map_err(|TooShort| Errno::INVAL)?;
        let names: Option<Vec<CString>> = bytes.split_inclusive(|byte| *byte == 0).map(name).collect();
        names.and_then(|names| names.try_into().ok()).ok_or(Errno::INVAL)
    }

    /// Takes one.
    pub(super) fn name(&mut self) -> Result<CString> {
        self.names().map(|[name]| name)
    }

    /// Writes the next bytes to a file; gives how many that took, which may be fewer.
    pub(super) fn write_to(&mut self, file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<usize> {
        self.chain.read_to(length, |places| places.write_at(file, offset)).map_err(errno)
    }

    /// Bytes that the reply has room for yet.
    pub(super) fn room(&self) -> usize {
        self.chain.writable()
    }

    /// Adds to the reply. That it has no room is the guest's mistake, and what was done for it stays done.
    pub(super) fn put(&mut self, value: &(impl IntoBytes + Immutable + ?Sized)) -> Result<()> {
        self.chain.write(value.as_bytes()).map_err(|TooShort| Errno::MSGSIZE)
    }

    /// Adds bytes of a file, as many as there are and fit, `length` at most.
    pub(super) fn put_file(&mut self, file: BorrowedFd<'_>, offset: u64, length: usize) -> Result<()> {
        self.chain.write_from(length, |places| places.read_at(file, offset)).map(drop).map_err(errno)
    }
}

/// One name in a directory, from bytes with a zero at their end. `..` is none.
fn name(bytes: &[u8]) -> Option<CString> {
    let name = CString::from_vec_with_nul(bytes.to_vec()).ok()?;
    let is_step = !matches!(name.as_bytes(), b"" | b"." | b"..") && !name.as_bytes().contains(&b'/');
    is_step.then_some(name)
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::INVAL)
}

//! The files and directories that a guest has open, by its handles.
//!
//! A handle is never used twice. It does not say what it is for: a file that is open for reading cannot be written
//! to, nor a directory's bytes be read, for the host says so.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, Result};
use std::collections::HashMap;

/// What is open.
#[derive(Debug)]
pub(super) struct Handles {
    open: HashMap<u64, OwnedFd>,
    next: u64,
    most: usize,
}

impl Handles {
    /// None; there can be so many.
    pub(super) fn new(most: usize) -> Self {
        Self { open: HashMap::new(), next: 1, most }
    }

    /// Fails unless there can be one more, before something is opened for it.
    pub(super) fn check_room(&self) -> Result<()> {
        if self.open.len() < self.most { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// A handle for what is open.
    pub(super) fn add(&mut self, file: OwnedFd) -> u64 {
        let handle = self.next;
        self.next += 1;
        self.open.insert(handle, file);
        handle
    }

    /// What a handle stands for.
    pub(super) fn get(&self, handle: u64) -> Result<BorrowedFd<'_>> {
        self.open.get(&handle).map(AsFd::as_fd).ok_or(Errno::BADF)
    }

    /// Closes.
    pub(super) fn remove(&mut self, handle: u64) -> Result<()> {
        self.open.remove(&handle).map(drop).ok_or(Errno::BADF)
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}

//! The files that a guest has been told of, by the numbers that it knows them by.
//!
//! A number is never used twice, so one that a guest made up or has forgotten is nobody's. As long as a number is
//! known, a descriptor keeps the file from being freed, so the host does not use its inode number for another file.
//! Each costs a descriptor: there is a limit.

use super::attributes::attributes;
use hv_abi::fuse::EntryOut;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::Stat;
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// What the host knows a file by.
type Key = (u64, u64);

#[derive(Debug)]
struct Inode {
    /// Names the file, without its being open.
    file: OwnedFd,
    key: Key,
    /// How many replies gave its number; the guest takes them back by forgetting.
    lookups: u64,
}

/// Files by their numbers.
#[derive(Debug)]
pub(super) struct Inodes {
    known: HashMap<u64, Inode>,
    numbers: HashMap<Key, u64>,
    next: u64,
    most: usize,
}

impl Inodes {
    /// None; there can be so many.
    pub(super) fn new(most: usize) -> Self {
        // The folder's own number is not in here: it is always known.
        Self { known: HashMap::new(), numbers: HashMap::new(), next: hv_abi::fuse::ROOT + 1, most }
    }

    /// What a number stands for.
    pub(super) fn get(&self, number: u64) -> Result<BorrowedFd<'_>> {
        self.known.get(&number).map(|inode| inode.file.as_fd()).ok_or(Errno::STALE)
    }

    /// Gives a file its number, the one that it has if it is known: hard links are one file.
    fn add(&mut self, file: OwnedFd, stat: &Stat) -> Result<u64> {
        let key = (stat.st_dev, stat.st_ino);
        if let Some(number) = self.numbers.get(&key) {
            let inode = self.known.get_mut(number).expect("both tables have the same files");
            inode.lookups += 1;
            return Ok(*number);
        }
        if self.known.len() >= self.most {
            return Err(Errno::NFILE);
        }
        let number = self.next;
        self.next += 1;
        self.numbers.insert(key, number);
        self.known.insert(number, Inode { file, key, lookups: 1 });
        Ok(number)
    }

    /// Takes back so many replies that gave the number.
    pub(super) fn forget(&mut self, number: u64, lookups: u64) {
        if let Entry::Occupied(mut inode) = self.known.entry(number) {
            let left = inode.get().lookups.saturating_sub(lookups);
            inode.get_mut().lookups = left;
            if left == 0 {
                self.numbers.remove(&inode.remove().key);
            }
        }
    }

    /// Gives a file to the guest, with what is known of it.
    pub(super) fn entry(&mut self, file: OwnedFd, stat: &Stat) -> Result<EntryOut> {
        Ok(EntryOut { nodeid: self.add(file, stat)?, attr: attributes(stat), ..EntryOut::default() })
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

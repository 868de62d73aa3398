//! What tests share: a disk that loses power, and commands from text.

use crate::database::{After, Database};
use crate::disk::{Disk, SECTOR};
use crate::reply::Reply;
use crate::resp::{self, Parser};
use crate::value::Hasher;
use foldhash::SharedSeed;
use std::collections::BTreeMap;
use std::vec::Vec;

/// A hasher with a seed that does not matter.
pub fn hasher() -> Hasher {
    Hasher::with_seed(1, SharedSeed::global_fixed())
}

/// The power was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PowerLoss;

impl std::fmt::Display for PowerLoss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("power loss")
    }
}

/// A disk in memory. Sectors that were written and not flushed are lost with the power, or not, each by itself.
#[derive(Clone, Debug)]
pub struct TestDisk {
    /// What survives.
    pub durable: Vec<u8>,
    /// Sectors that were written since the last flush, the latest of each.
    unflushed: BTreeMap<usize, [u8; SECTOR]>,
    /// Writes and flushes until the power is lost; the one at which it is may have been carried out in part.
    pub left: u64,
    /// Writes and flushes so far.
    pub made: u64,
}

impl TestDisk {
    /// One of zeros.
    pub fn new(sectors: usize) -> Self {
        Self { durable: vec![0; sectors * SECTOR], unflushed: BTreeMap::new(), left: u64::MAX, made: 0 }
    }

    /// What is there when the power has come back, if the unflushed sectors for which `survives` says so were written.
    pub fn after_power_loss(&self, mut survives: impl FnMut() -> bool) -> Self {
        let mut disk = Self { unflushed: BTreeMap::new(), left: u64::MAX, made: 0, ..self.clone() };
        for (sector, bytes) in &self.unflushed {
            if survives() {
                disk.durable[sector * SECTOR..][..SECTOR].copy_from_slice(bytes);
            }
        }
        disk
    }

    fn step(&mut self) -> Result<(), PowerLoss> {
        self.left = self.left.checked_sub(1).ok_or(PowerLoss)?;
        self.made += 1;
        Ok(())
    }
}

impl Disk for &mut TestDisk {
    type Error = PowerLoss;

    fn sectors(&self) -> u64 {
        (self.durable.len() / SECTOR) as u64
    }

    fn read(&mut self, sector: u64, bytes: &mut [u8]) -> Result<(), PowerLoss> {
        for (at, bytes) in bytes.as_chunks_mut::<SECTOR>().0.iter_mut().enumerate() {
            let at = sector as usize + at;
            match self.unflushed.get(&at) {
                Some(written) => bytes.copy_from_slice(written),
                None => bytes.copy_from_slice(&self.durable[at * SECTOR..][..SECTOR]),
            }
        }
        Ok(())
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), PowerLoss> {
        assert!(bytes.len().is_multiple_of(SECTOR) && !bytes.is_empty(), "whole sectors are written");
        assert!((sector as usize) * SECTOR + bytes.len() <= self.durable.len(), "within the disk");
        // It may have begun when the power goes.
        for (at, bytes) in bytes.as_chunks::<SECTOR>().0.iter().enumerate() {
            self.unflushed.insert(sector as usize + at, *bytes);
        }
        self.step()
    }

    fn flush(&mut self) -> Result<(), PowerLoss> {
        self.step()?;
        for (sector, bytes) in std::mem::take(&mut self.unflushed) {
            self.durable[sector * SECTOR..][..SECTOR].copy_from_slice(&bytes);
        }
        Ok(())
    }
}

/// Carries out a line as a command at a time, without a commit; gives the reply, with `|` for the ends of lines.
pub fn execute<D: Disk>(database: &mut Database<D>, now: u64, line: &str) -> Result<String, D::Error> {
    let mut words = Vec::new();
    resp::write_command(&mut words, line.split(' ').map(str::as_bytes));
    let mut parser = Parser::default();
    parser.next(&words).unwrap().unwrap();
    let mut reply = Reply::default();
    let after = database.execute(parser.arguments(&words), now, &mut reply)?;
    assert_eq!(after, After::Continue);
    Ok(String::from_utf8_lossy(reply.bytes()).replace("\r\n", "|"))
}

/// All that a store holds, as commands that make it, in order.
pub fn contents<D: Disk>(database: &Database<D>) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let of = |key: &[u8], entry: &crate::store::Entry| {
        let mut commands = Vec::new();
        let emitted = crate::snapshot::each_command(key, entry, |command| {
            let mut words: Vec<Vec<u8>> = command.iter().map(|word| word.to_vec()).collect();
            // Sets and hashes are in no order.
            match command[0] {
                b"SADD" => words[2..].sort(),
                b"HSET" => {
                    let mut pairs: Vec<_> = words[2..].chunks(2).map(<[_]>::to_vec).collect();
                    pairs.sort();
                    words.splice(2.., pairs.into_iter().flatten());
                }
                _ => {}
            }
            commands.extend(words);
            Ok::<_, ()>(true)
        });
        assert_eq!(emitted, Ok(true));
        (key.to_vec(), commands)
    };
    database.store.iter().map(|(key, entry)| of(key, entry)).collect()
}

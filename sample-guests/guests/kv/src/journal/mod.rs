//! The log on the block device.
//!
//! A device has two areas, halves of it. One is in use: a header, a snapshot of the store, and then a record for each
//! [`Journal::commit`], which holds the commands that were carried out since the one before. When the area is full, and
//! whenever the log is opened, a snapshot goes into the other area ([`Journal::rewrite`]), and its header, which is written
//! last, makes that the one in use: of two valid headers, the higher generation counts.
//!
//! # Why nothing is lost, wherever it stops
//!
//! - A commit returns after a flush, and until then nothing of it is told to anyone.
//! - A record begins in a sector of its own, so no write touches a sector that holds what was committed.
//! - A record is whole or it is cut off: its checksum says so. Nothing is ever written behind a record that was cut off, for
//!   opening the log makes a new area.
//! - The area in use is not touched while the other is written; the header there is one sector, written after a flush.
//! - What an area held before cannot be taken for its records: these bear a number that is drawn anew for each area.
//! - Since each record was flushed before the next one was written, a record that is bad with a good one behind it was
//!   damaged, not cut off: then opening refuses, rather than drop what was acknowledged.
//!
//! Start at [`Journal::open`].

mod format;
mod read;
#[cfg(test)]
mod tests;

use crate::disk::{Disk, SECTOR};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use format::{Header, RECORD_HEADER};

pub use format::MAX_PAYLOAD;

/// Sectors that an area has at the least.
const LEAST: u64 = 128;

/// Why a log cannot be opened.
#[derive(Debug)]
pub enum OpenError<E> {
    /// The device failed.
    Disk(E),
    /// The device is too small. So many sectors are needed.
    TooSmall(u64),
    /// There is something else on the device. It is left alone: overwrite its beginning with zeros to use it.
    Foreign,
    /// The header says a version that this program does not know.
    Version(u32),
    /// A record that was committed cannot be read; its number, and its sector.
    Damaged(u64, u64),
    /// What the store holds does not fit into half of the device.
    Full,
}

impl<E> From<E> for OpenError<E> {
    fn from(error: E) -> Self {
        Self::Disk(error)
    }
}

impl<E: fmt::Display> fmt::Display for OpenError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => write!(f, "the disk failed: {error}"),
            Self::TooSmall(sectors) => {
                write!(f, "the disk is too small; it needs {sectors} sectors of {SECTOR} bytes")
            }
            Self::Foreign => {
                f.write_str("there is something else on the disk; to use it, overwrite its start with zeros")
            }
            Self::Version(version) => {
                write!(f, "the log has format {version}, this program knows {}", format::VERSION)
            }
            Self::Damaged(record, sector) => {
                write!(f, "record {record}, at sector {sector}, is damaged, though what follows is not")
            }
            Self::Full => f.write_str("what is stored does not fit into half of the disk; use a larger one"),
        }
    }
}

/// What came of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Commit {
    /// Everything up to here will survive.
    Done,
    /// There is no room left: nothing was written. [`Journal::rewrite`] makes room.
    Full,
}

/// How full the log is.
#[derive(Clone, Copy, Debug)]
pub struct LogFigures {
    /// Bytes in use.
    pub used: u64,
    /// Bytes of an area.
    pub room: u64,
    /// How often it was written anew.
    pub generation: u64,
    /// Records since then, those of the snapshot included.
    pub records: u64,
}

/// A log that is open.
#[derive(Debug)]
pub struct Journal<D> {
    disk: D,
    area: Area,
    /// What the next commit will write: room for a header, then the commands.
    record: Vec<u8>,
}

/// An area, and how far it is written.
#[derive(Clone, Copy, Debug)]
struct Area {
    /// Its first sector.
    start: u64,
    /// Sectors that it has.
    sectors: u64,
    generation: u64,
    /// The number that its records bear.
    salt: u64,
    /// Records in it.
    records: u64,
    /// Sectors that are written, the header included.
    used: u64,
}

impl<D: Disk> Journal<D> {
    /// Opens the log, and gives the commands of each record to `replay`, which says whether it could read them. The log is
    /// then to be written anew, by [`rewrite`](Self::rewrite), before anything is committed.
    ///
    /// A device of zeros is an empty log.
    ///
    /// # Errors
    ///
    /// There is no log, or it cannot be read.
    pub fn open(mut disk: D, replay: impl FnMut(&[u8]) -> bool) -> Result<Self, OpenError<D::Error>> {
        let sectors = disk.sectors() / 2;
        if sectors < LEAST {
            return Err(OpenError::TooSmall(2 * LEAST));
        }
        let area = match read::newest(&mut disk, sectors)? {
            Some((start, header)) => {
                read::replay(&mut disk, Area::new(start, sectors, &header), &header, replay)?
            }
            // What is written first goes to the other area than this one, which is the first.
            None => Area { start: sectors, sectors, generation: 0, salt: 0, records: 0, used: sectors },
        };
        Ok(Self { disk, area, record: vec![0; RECORD_HEADER] })
    }

    /// Bytes that a snapshot can have, with what is around its commands.
    pub fn room(&self) -> u64 {
        (self.area.sectors - 1) * SECTOR as u64
    }

    /// How full it is.
    pub fn figures(&self) -> LogFigures {
        let Area { used, sectors, generation, records, .. } = self.area;
        LogFigures { used: used * SECTOR as u64, room: sectors * SECTOR as u64, generation, records }
    }

    /// Where commands are added that the next commit is to write. What is in it already stays.
    pub fn batch(&mut self) -> &mut Vec<u8> {
        &mut self.record
    }

    /// Bytes of commands that wait for a commit.
    pub fn waiting(&self) -> usize {
        self.record.len() - RECORD_HEADER
    }

    /// Writes what waits, and returns when it will survive.
    ///
    /// # Errors
    ///
    /// The device failed. It is unknown what of the commit will survive.
    pub fn commit(&mut self) -> Result<Commit, D::Error> {
        if self.waiting() == 0 {
            return Ok(Commit::Done);
        }
        if !self.area.append(&mut self.disk, &mut self.record)? {
            return Ok(Commit::Full);
        }
        self.disk.flush()?;
        Ok(Commit::Done)
    }

    /// Begins to write the log anew. What waits for a commit is forgotten: the snapshot has to hold it.
    ///
    /// `salt` is a number that nobody can have known.
    pub fn rewrite(&mut self, salt: u64) -> Rewrite<'_, D> {
        let Area { start, sectors, generation, .. } = self.area;
        let other = if start == 0 { sectors } else { 0 };
        self.record.truncate(RECORD_HEADER);
        let area = Area { start: other, sectors, generation: generation + 1, salt, records: 0, used: 1 };
        Rewrite { journal: self, area }
    }
}

impl Area {
    fn new(start: u64, sectors: u64, header: &Header) -> Self {
        Self { start, sectors, generation: header.generation, salt: header.salt, records: 0, used: 1 }
    }

    /// Writes a record, without a flush, and empties it; says whether there was room.
    fn append<D: Disk>(&mut self, disk: &mut D, record: &mut Vec<u8>) -> Result<bool, D::Error> {
        let sectors = record.len().div_ceil(SECTOR) as u64;
        if sectors > self.sectors - self.used {
            return Ok(false);
        }
        format::seal(record, self.salt, self.records);
        disk.write(self.start + self.used, record)?;
        self.used += sectors;
        self.records += 1;
        format::clear(record);
        Ok(true)
    }
}

/// A log that is being written anew. Until [`finish`](Self::finish) the old one counts.
#[derive(Debug)]
pub struct Rewrite<'a, D> {
    journal: &'a mut Journal<D>,
    area: Area,
}

impl<D: Disk> Rewrite<'_, D> {
    /// Where commands of the snapshot are added.
    pub fn batch(&mut self) -> &mut Vec<u8> {
        &mut self.journal.record
    }

    /// Writes what was added, if it is much; says whether there was room.
    ///
    /// # Errors
    ///
    /// The device failed. The old log counts.
    pub fn write(&mut self) -> Result<bool, D::Error> {
        if self.journal.waiting() < MAX_PAYLOAD / 16 {
            return Ok(true);
        }
        self.area.append(&mut self.journal.disk, &mut self.journal.record)
    }

    /// Writes the rest, and makes this the log; says whether there was room. If not, the old one counts, without what waited.
    ///
    /// # Errors
    ///
    /// The device failed. It is unknown which of both counts; the store is the same by either, but for what waited.
    pub fn finish(mut self) -> Result<bool, D::Error> {
        let Journal { disk, record, area } = self.journal;
        if record.len() > RECORD_HEADER && !self.area.append(disk, record)? {
            return Ok(false);
        }
        disk.flush()?;
        disk.write(
            self.area.start,
            &Header::new(self.area.generation, self.area.salt, self.area.records).sector(),
        )?;
        disk.flush()?;
        *area = self.area;
        Ok(true)
    }
}

//! What the log's bytes mean. All numbers are little-endian.

use crate::disk::SECTOR;
use alloc::vec::Vec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The format that is written.
pub const VERSION: u32 = 1;
/// Bytes of a record's commands, at the most. Whoever commits sees to it.
pub const MAX_PAYLOAD: usize = 16 << 20;
/// Bytes before a record's commands.
pub const RECORD_HEADER: usize = size_of::<RecordHeader>();

const MAGIC: [u8; 8] = *b"hv-kvlog";

/// The first sector of an area, but for zeros.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Header {
    magic: [u8; 8],
    version: u32,
    /// Of the whole sector, with zero in this place.
    checksum: u32,
    /// Of two areas, the one with the higher generation counts.
    pub generation: u64,
    /// What the area's records bear.
    pub salt: u64,
    /// Records that are the snapshot. They were written before the header, so they are there.
    pub snapshot: u64,
}
const _: () = assert!(size_of::<Header>() == 40);

/// What a sector says that may be a header.
#[derive(Debug)]
pub enum Found {
    /// It is one.
    Header(Header),
    /// It is one of another version.
    Version(u32),
    /// It is all zeros: never written.
    Nothing,
    /// It is something else.
    Foreign,
}

impl Header {
    /// A header.
    pub fn new(generation: u64, salt: u64, snapshot: u64) -> Self {
        Self { magic: MAGIC, version: VERSION, checksum: 0, generation, salt, snapshot }
    }

    /// As it is written.
    pub fn sector(mut self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        self.checksum = 0;
        sector[..size_of::<Self>()].copy_from_slice(self.as_bytes());
        self.checksum = crc32fast::hash(&sector);
        sector[..size_of::<Self>()].copy_from_slice(self.as_bytes());
        sector
    }

    /// As it is read.
    pub fn parse(sector: &[u8; SECTOR]) -> Found {
        if sector.iter().all(|byte| *byte == 0) {
            return Found::Nothing;
        }
        match Self::read_from_prefix(sector) {
            Ok((header, _)) if header.magic == MAGIC && header.sector() == *sector => match header.version {
                VERSION => Found::Header(header),
                version => Found::Version(version),
            },
            _ => Found::Foreign,
        }
    }
}

/// What stands before a record's commands. Behind them are zeros to the end of the sector.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct RecordHeader {
    /// Of everything behind it, the zeros included.
    checksum: u32,
    /// Bytes of commands.
    length: u32,
    /// The area's salt.
    salt: u64,
    /// Its number in the area, from 0.
    number: u64,
}
const _: () = assert!(size_of::<RecordHeader>() == 24);

/// Makes a record of commands that follow [`RECORD_HEADER`] bytes.
pub fn seal(record: &mut Vec<u8>, salt: u64, number: u64) {
    let length = (record.len() - RECORD_HEADER) as u32;
    record.resize(record.len().next_multiple_of(SECTOR), 0);
    let header = RecordHeader { checksum: 0, length, salt, number };
    record[..RECORD_HEADER].copy_from_slice(header.as_bytes());
    let checksum = crc32fast::hash(&record[size_of::<u32>()..]);
    record[..size_of::<u32>()].copy_from_slice(&checksum.to_le_bytes());
}

/// Makes a record empty. One that was long gives its memory back.
pub fn clear(record: &mut Vec<u8>) {
    record.truncate(RECORD_HEADER);
    record.shrink_to(MAX_PAYLOAD / 8);
}

/// Sectors of the record that begins in this sector, if it may be one of that area with that number or a higher one; and its
/// number.
pub fn extent(sector: &[u8], salt: u64, least: u64) -> Option<(usize, u64)> {
    let (header, _) = RecordHeader::read_from_prefix(sector).ok()?;
    let length = header.length as usize;
    let plausible = header.salt == salt && header.number >= least && (1..=MAX_PAYLOAD).contains(&length);
    plausible.then(|| ((RECORD_HEADER + length).div_ceil(SECTOR), header.number))
}

/// The commands of a record of which all sectors are here, if it is whole.
pub fn commands(record: &[u8]) -> Option<&[u8]> {
    let (header, _) = RecordHeader::read_from_prefix(record).ok()?;
    let checksum = crc32fast::hash(record.get(size_of::<u32>()..)?);
    if checksum != header.checksum {
        return None;
    }
    record[RECORD_HEADER..].get(..header.length as usize)
}

//! Reading a log.

use super::format::{self, Found, Header};
use super::{Area, OpenError};
use crate::disk::{Disk, SECTOR};
use alloc::vec::Vec;

/// Sectors that are read at once: records are short, and there are many.
const WINDOW: usize = 512;

/// The area that counts, its first sector and its header; none if nothing was ever written.
pub fn newest<D: Disk>(disk: &mut D, sectors: u64) -> Result<Option<(u64, Header)>, OpenError<D::Error>> {
    let mut newest: Option<(u64, Header)> = None;
    let mut foreign = false;
    for start in [0, sectors] {
        let mut sector = [0; SECTOR];
        disk.read(start, &mut sector)?;
        match Header::parse(&sector) {
            Found::Header(header) => {
                if newest.is_none_or(|(_, newest)| newest.generation < header.generation) {
                    newest = Some((start, header));
                }
            }
            Found::Version(version) => return Err(OpenError::Version(version)),
            Found::Nothing => {}
            Found::Foreign => foreign = true,
        }
    }
    // Beside a header, something else is a header that was being written when everything stopped.
    if newest.is_none() && foreign { Err(OpenError::Foreign) } else { Ok(newest) }
}

/// Reads the records of an area, up to the first that is not whole; gives the area as they leave it.
pub fn replay<D: Disk>(
    disk: &mut D,
    mut area: Area,
    header: &Header,
    mut replay: impl FnMut(&[u8]) -> bool,
) -> Result<Area, OpenError<D::Error>> {
    let mut window = Window::new(disk, area);
    while let Some((sectors, commands)) = window.record(area.used, area.records)? {
        if !replay(commands) {
            return Err(OpenError::Damaged(area.records, area.start + area.used));
        }
        area.used += sectors;
        area.records += 1;
    }
    if area.records < header.snapshot || window.is_one_behind(area.used, area.records)? {
        return Err(OpenError::Damaged(area.records, area.start + area.used));
    }
    Ok(area)
}

/// Some sectors of an area, as they were read.
struct Window<'a, D> {
    disk: &'a mut D,
    area: Area,
    /// The first of them, counted in the area.
    first: u64,
    bytes: Vec<u8>,
}

impl<'a, D: Disk> Window<'a, D> {
    fn new(disk: &'a mut D, area: Area) -> Self {
        Self { disk, area, first: 0, bytes: Vec::new() }
    }

    /// So many sectors of the area, if it has them.
    fn sectors(&mut self, at: u64, count: usize) -> Result<Option<&[u8]>, D::Error> {
        let left = self.area.sectors.saturating_sub(at);
        if (count as u64) > left {
            return Ok(None);
        }
        let there = self.first..self.first + (self.bytes.len() / SECTOR) as u64;
        if at < there.start || at + count as u64 > there.end {
            let read = count.max(WINDOW).min(left as usize);
            self.bytes.resize(read * SECTOR, 0);
            self.disk.read(self.area.start + at, &mut self.bytes)?;
            self.first = at;
        }
        let start = (at - self.first) as usize * SECTOR;
        Ok(Some(&self.bytes[start..start + count * SECTOR]))
    }

    /// The record of that number at a place, if it is whole: its sectors, and its commands.
    fn record(&mut self, at: u64, number: u64) -> Result<Option<(u64, &[u8])>, D::Error> {
        let salt = self.area.salt;
        let extent = self.sectors(at, 1)?.and_then(|sector| format::extent(sector, salt, number));
        let Some((sectors, _)) = extent.filter(|(_, found)| *found == number) else {
            return Ok(None);
        };
        let record = self.sectors(at, sectors)?.and_then(format::commands);
        Ok(record.map(|commands| (sectors as u64, commands)))
    }

    /// Whether behind a place, where the record of that number is not whole, a later one is. How long that record was is not
    /// known; it is looked for as far as it could have gone.
    fn is_one_behind(&mut self, at: u64, number: u64) -> Result<bool, D::Error> {
        let salt = self.area.salt;
        let end = at + 1 + (format::MAX_PAYLOAD / SECTOR) as u64;
        for behind in at + 1..end.min(self.area.sectors) {
            let extent = self.sectors(behind, 1)?.and_then(|sector| format::extent(sector, salt, number + 1));
            if let Some((_, found)) = extent
                && self.record(behind, found)?.is_some()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

//! The FAT file system on a disk, as mkfs.vfat and every other system make it: the crate `hadris-fat` behind [`FileSystem`].
//!
//! An open file is its path: one that is removed while it is open is not there any more, for nothing of FAT's could keep it.
//! What was written is on its way to the host after each call, and survives the host's end once the file was closed.
//!
//! Start at [`Fat::mount`].

use crate::file_system::{FileSystem, OpenFile, PAGE_ENTRIES};
use crate::page_cache::{Disk, DiskError, PageCache};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use guest_sdk::sync::Lock;
use hadris_fat::sync::read::FileReader;
use hadris_fat::sync::write::FileWriter;
use hadris_fat::sync::{DirectoryEntry, ErrorKind, FatDir, FileEntry, IoResult, Read, Seek, SeekFrom, Write};
use hadris_fat::sync::{Error as IoError, FatVolumeWriteExt};
use hadris_fat::time::{FatDateTime, TimeProvider};
use minios_abi::{Error, FileInfo, Opening, file_kind};

type Result<T> = core::result::Result<T, Error>;
type FatVolume<D> = hadris_fat::FatVolume<Cursor<D>>;
type FatResult<T> = core::result::Result<T, hadris_fat::Error>;

/// Bytes of a file that are copied at a time when it is written anew.
const PIECE: usize = 64 << 10;

/// A mounted file system.
pub struct Fat<D: Disk>(Arc<Mounted<D>>);

struct Mounted<D: Disk> {
    /// One at a time works on it, waiting for the disk as it may.
    volume: Lock<FatVolume<D>>,
    cache: Arc<Lock<PageCache<D>>>,
    writable: bool,
}

impl<D: Disk + 'static> Fat<D> {
    /// Mounts what is on the disk.
    ///
    /// # Errors
    ///
    /// There is no FAT file system on it.
    pub fn mount(disk: D, writable: bool) -> FatResult<Self> {
        let cache = Arc::new(Lock::new(PageCache::new(disk)));
        let cursor = Cursor { cache: cache.clone(), place: 0 };
        let volume = FatVolume::builder(cursor).time_provider(&Clock).open()?;
        Ok(Self(Arc::new(Mounted { volume: Lock::new(volume), cache, writable })))
    }
}

impl<D: Disk> Mounted<D> {
    /// Does something that changes nothing.
    fn look<T>(&self, act: impl FnOnce(&FatVolume<D>) -> FatResult<T>) -> Result<T> {
        act(&self.volume.lock()).map_err(error)
    }

    /// Does something that may change the file system, and sends the changes on.
    fn change<T>(&self, act: impl FnOnce(&FatVolume<D>) -> FatResult<T>) -> Result<T> {
        if !self.writable {
            return Err(Error::ReadOnly);
        }
        let done = self.look(act);
        self.cache.lock().write_back().map_err(|DiskError| Error::Device)?;
        done
    }
}

impl<D: Disk + 'static> FileSystem for Fat<D> {
    fn kind(&self) -> &'static str {
        "fat"
    }

    fn open(&self, path: &str, how: Opening) -> Result<Arc<dyn OpenFile>> {
        let fat = &self.0;
        let found = fat.look(|volume| find(volume, path))?;
        match found {
            None if how.has(Opening::CREATE) && !path.is_empty() => {
                fat.change(|volume| {
                    let (parent, name) = parent(volume, path)?;
                    volume.create_file(&parent, name)
                })?;
            }
            None => return Err(if path.is_empty() { Error::IsDirectory } else { Error::NotFound }),
            Some(entry) if entry.is_directory() => return Err(Error::IsDirectory),
            Some(_) if how.has(Opening::WRITE) && !fat.writable => return Err(Error::ReadOnly),
            Some(entry) if how.has(Opening::TRUNCATE) => fat.change(|volume| volume.truncate(&entry, 0))?,
            Some(_) => {}
        }
        Ok(Arc::new(File { fat: fat.clone(), path: path.to_string(), how, written: AtomicBool::new(false) }))
    }

    fn list(&self, path: &str, from: u64) -> Result<(Vec<FileInfo>, Option<u64>)> {
        self.0.look(|volume| {
            let directory = directory(volume, path)?;
            let entries = directory.entries().map(|entry| entry.map(|DirectoryEntry::Entry(entry)| entry));
            let entries = entries
                .filter(|entry| !entry.as_ref().is_ok_and(|entry| matches!(&*entry.name(), "." | "..")));
            let skipped = usize::try_from(from).unwrap_or(usize::MAX);
            let mut files: Vec<_> = entries
                .skip(skipped)
                .take(PAGE_ENTRIES + 1)
                .map(|entry| entry.map(|entry| info(&entry)))
                .collect::<FatResult<_>>()?;
            let more = files.len() > PAGE_ENTRIES;
            files.truncate(PAGE_ENTRIES);
            Ok((files, more.then_some(from + PAGE_ENTRIES as u64)))
        })
    }

    fn make_directory(&self, path: &str) -> Result<()> {
        self.0.change(|volume| {
            let (parent, name) = parent(volume, path)?;
            volume.create_dir(&parent, name).map(drop)
        })
    }

    fn remove(&self, path: &str) -> Result<()> {
        self.0.change(|volume| volume.delete(&existing(volume, path)?))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.0.change(|volume| {
            let entry = existing(volume, from)?;
            let (new_parent, name) = parent(volume, to)?;
            if let Some(old) = find(volume, to)?
                && (place(volume, from)?, entry.short_name()) != (place(volume, to)?, old.short_name())
            {
                match (entry.is_directory(), old.is_directory()) {
                    (false, true) => return Err(hadris_fat::Error::NotAFile),
                    (true, false) => return Err(hadris_fat::Error::NotADirectory),
                    _ => volume.delete(&old)?,
                }
            }
            volume.rename(&entry, &new_parent, name).map(drop)
        })
    }
}

/// A file that is open.
struct File<D: Disk> {
    fat: Arc<Mounted<D>>,
    path: String,
    how: Opening,
    /// Whether something was written that may not have come further than the host's memory.
    written: AtomicBool,
}

impl<D: Disk> OpenFile for File<D> {
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<usize> {
        self.fat.look(|volume| {
            let mut reader = FileReader::new(volume, &existing(volume, &self.path)?)?;
            reader.seek(SeekFrom::Start(from))?;
            fill(&mut reader, bytes)
        })
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<usize> {
        if !self.how.has(Opening::WRITE) {
            return Err(Error::BadDescriptor);
        }
        self.written.store(true, Ordering::Relaxed);
        self.fat.change(|volume| {
            let entry = existing(volume, &self.path)?;
            if self.how.has(Opening::APPEND) || to == entry.len() {
                append(volume, &entry, 0, bytes)?;
            } else if to > entry.len() {
                append(volume, &entry, to - entry.len(), bytes)?;
            } else {
                replace(volume, &entry, to, bytes)?;
            }
            Ok(bytes.len())
        })
    }
}

impl<D: Disk> Drop for File<D> {
    fn drop(&mut self) {
        if *self.written.get_mut() {
            let _ = self.fat.cache.lock().flush(); // nobody is left who could be told
        }
    }
}

/// Reads until the buffer is full or the file has ended.
fn fill<D: Disk>(reader: &mut FileReader<'_, Cursor<D>>, bytes: &mut [u8]) -> FatResult<usize> {
    let mut length = 0;
    while length < bytes.len() {
        match reader.read(&mut bytes[length..])? {
            0 => break,
            read => length += read,
        }
    }
    Ok(length)
}

/// Writes so many zeros at the end of a file, and then the bytes.
fn append<D: Disk>(volume: &FatVolume<D>, entry: &FileEntry, zeros: u64, bytes: &[u8]) -> FatResult<()> {
    if entry.len() + zeros + bytes.len() as u64 > u32::MAX.into() {
        return Err(hadris_fat::Error::NoFreeSpace);
    }
    let mut writer = FileWriter::new_append(volume, entry)?;
    let piece = vec![0; zeros.min(PIECE as u64) as usize];
    let mut left = zeros as usize;
    while left > 0 {
        left -= writer.write(&piece[..left.min(PIECE)])?;
    }
    writer.write(bytes)?;
    writer.finish()
}

/// Writes over a part of a file. The crate writes from the beginning on, so all of it is written, over itself.
fn replace<D: Disk>(volume: &FatVolume<D>, entry: &FileEntry, to: u64, bytes: &[u8]) -> FatResult<()> {
    let mut reader = FileReader::new(volume, entry)?;
    let mut writer = FileWriter::new(volume, entry)?;
    let mut piece = vec![0; PIECE];
    let to = to as usize;
    let mut at = 0;
    loop {
        let length = fill(&mut reader, &mut piece)?;
        let new = to.max(at)..(to + bytes.len()).min(at + length);
        if !new.is_empty() {
            piece[new.start - at..new.end - at].copy_from_slice(&bytes[new.start - to..new.end - to]);
        }
        at += length;
        if length > 0 {
            writer.write(&piece[..length])?;
        } else {
            writer.write(bytes.get(at.saturating_sub(to)..).unwrap_or_default())?;
            return writer.finish();
        }
    }
}

fn directory<'a, D: Disk>(volume: &'a FatVolume<D>, path: &str) -> FatResult<FatDir<'a, Cursor<D>>> {
    if path.is_empty() { Ok(volume.root_dir()) } else { volume.open_dir_path(path) }
}

/// The directory that something is in or is to be in, and its name there.
fn parent<'a, 'b, D: Disk>(
    volume: &'a FatVolume<D>,
    path: &'b str,
) -> FatResult<(FatDir<'a, Cursor<D>>, &'b str)> {
    let (directories, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((directory(volume, directories)?, name))
}

/// Where the directory begins that something is in.
fn place<D: Disk>(volume: &FatVolume<D>, path: &str) -> FatResult<usize> {
    let directories = path.rsplit_once('/').map_or("", |(directories, _)| directories);
    if directories.is_empty() { Ok(0) } else { Ok(volume.open_path(directories)?.cluster().0) }
}

fn find<D: Disk>(volume: &FatVolume<D>, path: &str) -> FatResult<Option<FileEntry>> {
    if path.is_empty() {
        return Ok(None);
    }
    let (parent, name) = parent(volume, path)?;
    parent.find(name)
}

fn existing<D: Disk>(volume: &FatVolume<D>, path: &str) -> FatResult<FileEntry> {
    find(volume, path)?.ok_or(hadris_fat::Error::EntryNotFound)
}

fn info(entry: &FileEntry) -> FileInfo {
    let kind = if entry.is_directory() { file_kind::DIRECTORY } else { file_kind::FILE };
    FileInfo::new(&entry.name(), kind, entry.len())
}

fn error(error: hadris_fat::Error) -> Error {
    use hadris_fat::Error as Fat;
    match error {
        Fat::EntryNotFound => Error::NotFound,
        Fat::NotAFile => Error::IsDirectory,
        Fat::NotADirectory => Error::NotDirectory,
        Fat::InvalidPath | Fat::InvalidFilename | Fat::InvalidShortFilename => Error::Invalid,
        Fat::NoFreeSpace | Fat::DirectoryFull => Error::NoSpace,
        Fat::AlreadyExists => Error::Exists,
        Fat::DirectoryNotEmpty => Error::NotEmpty,
        _ => Error::Device,
    }
}

/// A place on the disk, from which the crate reads on.
struct Cursor<D: Disk> {
    cache: Arc<Lock<PageCache<D>>>,
    place: u64,
}

impl<D: Disk> Cursor<D> {
    fn moved(&mut self, done: core::result::Result<usize, DiskError>) -> IoResult<usize> {
        let length = done.map_err(|DiskError| IoError::from_kind(ErrorKind::Other))?;
        self.place += length as u64;
        Ok(length)
    }
}

impl<D: Disk> Read for Cursor<D> {
    type Error = ErrorKind;

    fn read(&mut self, bytes: &mut [u8]) -> IoResult<usize> {
        let done = self.cache.lock().read(self.place, bytes);
        self.moved(done)
    }
}

impl<D: Disk> Write for Cursor<D> {
    type Error = ErrorKind;

    fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
        let done = self.cache.lock().write(self.place, bytes);
        self.moved(done)
    }

    /// What was written is sent on when the call that wrote it is done.
    fn flush(&mut self) -> IoResult<()> {
        Ok(())
    }
}

impl<D: Disk> Seek for Cursor<D> {
    type Error = ErrorKind;

    fn seek(&mut self, to: SeekFrom) -> IoResult<u64> {
        let place = match to {
            SeekFrom::Start(place) => Some(place),
            SeekFrom::Current(by) => self.place.checked_add_signed(by),
            SeekFrom::End(by) => self.cache.lock().length().checked_add_signed(by),
        };
        self.place = place.ok_or(IoError::from_kind(ErrorKind::InvalidInput))?;
        Ok(self.place)
    }
}

/// The guest's clock, for when files were changed.
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn now(&self) -> FatDateTime {
        let seconds = guest_sdk::time::since_epoch().as_secs();
        let (year, month, day) = date(seconds / 86_400);
        let time = seconds % 86_400;
        FatDateTime::new(year, month, day, (time / 3600) as u8, (time / 60 % 60) as u8, (time % 60) as u8)
    }
}

/// The year, month and day so many days after 1970-01-01.
fn date(days: u64) -> (u16, u8, u8) {
    // Counted from a first of March, so that a leap day is the last of its year; years repeat after 400.
    let since_march = days + 719_468;
    let (cycle, day) = (since_march / 146_097, since_march % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let of_month = day - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    ((cycle * 400 + year + later) as u16, month as u8, of_month as u8)
}

#[cfg(test)]
mod tests;

//! File descriptors: small numbers by which a process names what it reads and writes.
//!
//! Start at [`Descriptors`]. A read or write that would have to wait gives [`Transfer::Wait`]; the kernel then makes the
//! whole system call again when something has happened.

use crate::console;
use crate::file_system::OpenFile;
use crate::memory::check_heap;
use crate::pipe::{self, Reader, Writer};
use alloc::sync::Arc;
use guest_sdk::sync::Lock;
use minios_abi::Error;

/// Descriptors that a process can have.
const MOST: usize = 32;

/// What a descriptor is for. Copies of a descriptor are for the same thing: a file's place is theirs together.
#[derive(Clone, Debug)]
pub enum Descriptor {
    /// The console.
    Console,
    /// A file.
    File(Arc<Open>),
    /// The end of a pipe to read.
    Reader(Arc<Reader>),
    /// The end of a pipe to write.
    Writer(Arc<Writer>),
}

/// A file that is open, and the place in it where the next read or write begins.
pub struct Open {
    file: Arc<dyn OpenFile>,
    place: Lock<u64>,
}

impl Open {
    /// Reads on. Several that do so at once may read the same.
    ///
    /// # Errors
    ///
    /// As [`OpenFile::read`].
    pub fn read(&self, bytes: &mut [u8]) -> Result<usize, Error> {
        let from = *self.place.lock();
        let length = self.file.read(from, bytes)?;
        *self.place.lock() = from + length as u64;
        Ok(length)
    }

    /// Writes on.
    ///
    /// # Errors
    ///
    /// As [`OpenFile::write`].
    pub fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        let to = *self.place.lock();
        let length = self.file.write(to, bytes)?;
        *self.place.lock() = to + length as u64;
        Ok(length)
    }
}

impl core::fmt::Debug for Open {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "a file at {}", *self.place.lock())
    }
}

/// What came of a read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// So many bytes.
    Done(usize),
    /// Nothing can be said yet.
    Wait,
}

impl From<Option<usize>> for Transfer {
    fn from(done: Option<usize>) -> Self {
        done.map_or(Self::Wait, Self::Done)
    }
}

/// A process's descriptors.
#[derive(Clone, Debug)]
pub struct Descriptors([Option<Descriptor>; MOST]);

impl Descriptors {
    /// The console as input, output, and for errors.
    pub fn new() -> Self {
        Self(core::array::from_fn(|i| (i < 3).then_some(Descriptor::Console)))
    }

    fn get(&self, number: u64) -> Result<&Descriptor, Error> {
        let found = usize::try_from(number).ok().and_then(|number| self.0.get(number)?.as_ref());
        found.ok_or(Error::BadDescriptor)
    }

    /// Gives something the lowest free number.
    fn add(&mut self, new: Descriptor) -> Result<u64, Error> {
        let free = self.0.iter().position(Option::is_none).ok_or(Error::TooManyFiles)?;
        self.0[free] = Some(new);
        Ok(free as u64)
    }

    /// Opens a file.
    ///
    /// # Errors
    ///
    /// Too many are open, or there is no memory.
    pub fn open(&mut self, file: Arc<dyn OpenFile>) -> Result<u64, Error> {
        check_heap()?;
        self.add(Descriptor::File(Arc::new(Open { file, place: Lock::new(0) })))
    }

    /// The file that a descriptor is for, if it is for one: that is read and written without the kernel's lock.
    pub fn file(&self, number: u64) -> Option<Arc<Open>> {
        match self.get(number) {
            Ok(Descriptor::File(open)) => Some(open.clone()),
            _ => None,
        }
    }

    /// Makes a pipe: the end to read, the end to write.
    ///
    /// # Errors
    ///
    /// Too many are open, or there is no memory; then nothing has changed.
    pub fn pipe(&mut self) -> Result<[u64; 2], Error> {
        check_heap()?;
        let (reader, writer) = pipe::new();
        let read = self.add(Descriptor::Reader(reader))?;
        let write = self.add(Descriptor::Writer(writer)).inspect_err(|_| self.0[read as usize] = None)?;
        Ok([read, write])
    }

    /// Lets go of one.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn close(&mut self, number: u64) -> Result<(), Error> {
        self.get(number)?;
        self.0[number as usize] = None;
        Ok(())
    }

    /// Makes `other` mean what `number` does.
    ///
    /// # Errors
    ///
    /// `number` is none, or `other` is out of range.
    pub fn duplicate(&mut self, number: u64, other: u64) -> Result<(), Error> {
        let same = self.get(number)?.clone();
        let place = usize::try_from(other).ok().and_then(|other| self.0.get_mut(other));
        *place.ok_or(Error::BadDescriptor)? = Some(same);
        Ok(())
    }

    /// Reads into `buffer`, from what is no file.
    ///
    /// # Errors
    ///
    /// It is none for reading.
    pub fn read(&self, number: u64, buffer: &mut [u8]) -> Result<Transfer, Error> {
        match self.get(number)? {
            Descriptor::Console => Ok(console::read(buffer).into()),
            Descriptor::Reader(reader) => Ok(reader.read(buffer).into()),
            Descriptor::File(_) | Descriptor::Writer(_) => Err(Error::BadDescriptor),
        }
    }

    /// Writes from `bytes`, to what is no file.
    ///
    /// # Errors
    ///
    /// It is none for writing, or nobody reads any more.
    pub fn write(&self, number: u64, bytes: &[u8]) -> Result<Transfer, Error> {
        match self.get(number)? {
            Descriptor::Console => {
                console::write(bytes);
                Ok(Transfer::Done(bytes.len()))
            }
            Descriptor::Writer(writer) => writer.write(bytes).map(Transfer::from),
            Descriptor::File(_) | Descriptor::Reader(_) => Err(Error::BadDescriptor),
        }
    }
}

impl Default for Descriptors {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::File;

    #[test]
    fn numbers_are_the_lowest_that_are_free_and_run_out() {
        let mut descriptors = Descriptors::new();
        assert_eq!(descriptors.pipe(), Ok([3, 4]));
        assert_eq!(descriptors.close(3), Ok(()));
        assert_eq!(descriptors.close(3), Err(Error::BadDescriptor));
        assert_eq!(descriptors.pipe(), Ok([3, 5]));
        for _ in 0..(MOST - 6) / 2 {
            descriptors.pipe().unwrap();
        }
        assert_eq!(descriptors.pipe(), Err(Error::TooManyFiles));
        assert_eq!(descriptors.close(31), Ok(()));
        assert_eq!(descriptors.pipe(), Err(Error::TooManyFiles), "there is room for one end");
        assert_eq!(descriptors.close(31), Err(Error::BadDescriptor), "and that is free still");
        assert_eq!(descriptors.close(u64::MAX), Err(Error::BadDescriptor));
    }

    #[test]
    fn copies_share_a_files_place() {
        let mut descriptors = Descriptors::new();
        let file = descriptors.open(Arc::new(File { name: "f".into(), bytes: b"abcdef" })).unwrap();
        descriptors.duplicate(file, 0).unwrap();
        let (one, other) = (descriptors.file(file).unwrap(), descriptors.clone().file(0).unwrap());
        let mut buffer = [0; 4];
        assert_eq!((one.read(&mut buffer), &buffer), (Ok(4), b"abcd"));
        assert_eq!((other.read(&mut buffer), buffer[1]), (Ok(2), b'f'));
        assert_eq!(one.read(&mut buffer), Ok(0));
        assert_eq!(one.write(b"x"), Err(Error::BadDescriptor));
        assert!(descriptors.file(1).is_none(), "the console is none");
    }

    #[test]
    fn the_end_comes_when_all_copies_of_the_other_end_are_gone() {
        let mut parent = Descriptors::new();
        let [read, write] = parent.pipe().unwrap();
        let mut child = parent.clone();
        child.close(read).unwrap();
        parent.close(write).unwrap();
        assert_eq!(parent.read(read, &mut [0]), Ok(Transfer::Wait));
        assert_eq!(child.write(write, b"x"), Ok(Transfer::Done(1)));
        drop(child);
        assert_eq!(parent.read(read, &mut [0]), Ok(Transfer::Done(1)));
        assert_eq!(parent.read(read, &mut [0]), Ok(Transfer::Done(0)));
    }
}

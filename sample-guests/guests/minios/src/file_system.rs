//! What a file system is to the kernel. What is where is in [`mounts`](crate::mounts).
//!
//! Its functions may wait for a device, so they are called without the kernel's lock, from several vCPUs at once.
//!
//! Paths are relative to the file system's own root, which is the empty path; names are separated by one slash. Programs
//! chose them: that they are long, or name nothing, is nothing special.

use alloc::sync::Arc;
use alloc::vec::Vec;
use minios_abi::{Error, FileInfo, Opening};

/// Entries of a directory that are told at a time, at most.
pub const PAGE_ENTRIES: usize = minios_abi::FilePage::MOST;

type Result<T> = core::result::Result<T, Error>;

/// A file system. One that cannot be written to has the first functions only.
pub trait FileSystem: Send + Sync {
    /// What it is, for `mount`.
    fn kind(&self) -> &'static str;

    /// Opens a file; makes it first, or empties it, if `how` says so.
    ///
    /// # Errors
    ///
    /// It is not there, is a directory, or cannot be opened so.
    fn open(&self, path: &str, how: Opening) -> Result<Arc<dyn OpenFile>>;

    /// Entries of a directory, [`PAGE_ENTRIES`] at most, and where the next are: `from` of the next call, if there are more. The
    /// first are at 0.
    ///
    /// # Errors
    ///
    /// There is no such directory.
    fn list(&self, path: &str, from: u64) -> Result<(Vec<FileInfo>, Option<u64>)>;

    /// Makes a directory.
    ///
    /// # Errors
    ///
    /// Something has that name, or nothing can be made there.
    fn make_directory(&self, _path: &str) -> Result<()> {
        Err(Error::ReadOnly)
    }

    /// Removes a file, or a directory that is empty.
    ///
    /// # Errors
    ///
    /// It is not there, or is not empty.
    fn remove(&self, _path: &str) -> Result<()> {
        Err(Error::ReadOnly)
    }

    /// Gives a file or directory another name, within this file system. A file that had it is gone.
    ///
    /// # Errors
    ///
    /// It is not there, or cannot have that name.
    fn rename(&self, _from: &str, _to: &str) -> Result<()> {
        Err(Error::ReadOnly)
    }
}

/// A file that is open. It is closed when the last one drops it.
pub trait OpenFile: Send + Sync {
    /// Reads from a place on; gives how many bytes there were, 0 at the end.
    ///
    /// # Errors
    ///
    /// It was not opened for that, or the device fails.
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<usize>;

    /// Writes from a place on, or at the end if it was opened so; gives how many bytes were taken.
    ///
    /// # Errors
    ///
    /// It was not opened for that, there is no room, or the device fails.
    fn write(&self, _to: u64, _bytes: &[u8]) -> Result<usize> {
        Err(Error::BadDescriptor)
    }
}

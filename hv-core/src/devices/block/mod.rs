//! The block device (Virtual I/O Device 1.3, section 5.2): a disk whose sectors are in a file, or on a disk of the host's.
//!
//! A write that was answered is in the host's page cache, or on the disk with [`BlockOptions::direct`]; a flush that was answered
//! is on the disk.
//!
//! Here a file becomes a disk ([`Block::open`]); `disk` serves requests, and `uring` has many of them under way at once.

mod disk;
mod uring;

pub(crate) use disk::Disk;

use rustix::fs::{FlockOperation, OFlags};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use uring::Uring;

/// Bytes of a sector, the unit of requests.
const SECTOR: u64 = 512;
/// Descriptors of its queue.
const QUEUE: u16 = 256;

/// How long the host's kernel may take to let go of the file of a VM that was killed: it ends an `io_uring` behind its process.
const LET_GO: Duration = Duration::from_millis(500);

/// How a disk is to be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockOptions {
    /// The guest cannot write.
    pub read_only: bool,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// One request after the other, by plain system calls, although the host has `io_uring`.
    pub plain: bool,
}

/// A file that a guest is to have as a disk.
#[derive(Debug)]
pub struct Block {
    file: File,
    path: PathBuf,
    sectors: u64,
    options: BlockOptions,
    /// Made here, for the monitor must not make any once it is locked down. `None`: the host has none.
    uring: Option<Uring>,
}

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum BlockError {
    #[error("`{path}` cannot be opened")]
    Open { path: PathBuf, source: io::Error },
    #[error("`{path}` is neither a file nor a block device")]
    NoDisk { path: PathBuf },
    #[error(
        "`{path}` has {size} bytes, and a disk is a whole number of sectors of 512, and at least one; `truncate --size` makes it so"
    )]
    Size { path: PathBuf, size: u64 },
    #[error("`{path}` is the disk of another VM that writes to it; read-only disks can be shared")]
    InUse { path: PathBuf },
    #[error("`{path}` is on a file system that has no direct I/O")]
    NoDirect { path: PathBuf },
}

impl Block {
    /// Opens a file, or a block device, as a disk. Nobody else has it open for writing as a disk, as long as this one is there.
    ///
    /// # Errors
    ///
    /// [`BlockError`] says what is wrong with it.
    pub fn open(path: &Path, options: BlockOptions) -> Result<Self, BlockError> {
        let at = || path.to_owned();
        let mut open = File::options();
        open.read(true).write(!options.read_only);
        // Opening a FIFO would wait for its other end.
        let flags = OFlags::NONBLOCK | if options.direct { OFlags::DIRECT } else { OFlags::empty() };
        open.custom_flags(flags.bits() as i32);
        let mut file = open.open(path).map_err(|source| match source.raw_os_error() {
            Some(libc::EINVAL) if options.direct => BlockError::NoDirect { path: at() },
            _ => BlockError::Open { path: at(), source },
        })?;
        let opened = |source| BlockError::Open { path: at(), source };
        let kind = file.metadata().map_err(opened)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(BlockError::NoDisk { path: at() });
        }
        let size = file.seek(SeekFrom::End(0)).map_err(opened)?;
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(BlockError::Size { path: at(), size });
        }
        let lock = if options.read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        let since = Instant::now();
        loop {
            match rustix::fs::flock(&file, lock) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() < LET_GO => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(BlockError::InUse { path: at() }),
                Err(error) => return Err(opened(error.into())),
            }
        }
        let uring = if options.plain { None } else { Uring::new(&file) };
        Ok(Self { file, path: at(), sectors: size / SECTOR, options, uring })
    }
}

impl Drop for Block {
    /// The next VM may have it now, and not when the host's kernel is done with the `io_uring`.
    fn drop(&mut self) {
        self.uring = None; // waits for what is under way
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

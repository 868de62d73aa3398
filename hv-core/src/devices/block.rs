//! The block device (Virtual I/O Device 1.3, section 5.2): a disk whose sectors are in a file, or on a disk of the host's.
//!
//! A write that was answered is in the host's page cache, or on the disk with [`BlockOptions::direct`]; a flush that was answered
//! is on the disk.
//!
//! Start at [`Disk::request`].

use super::chain::{Chain, Places, TooShort};
use super::line::Line;
use super::ring::Ring;
use super::{Broken, Device};
use hv_abi::device::kind;
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of a sector, the unit of requests.
const SECTOR: u64 = 512;
/// The most sectors of one discard or write-zeroes: 1 GiB.
const MOST_SECTORS: u32 = 1 << 21;
/// The most ranges of one.
const MOST_RANGES: usize = 64;
/// Descriptors of its queue.
const QUEUE: u16 = 256;
/// Requests that are served in one go.
const BATCH: usize = 64;

/// Feature bits.
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const BLOCK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// What is asked for.
mod request {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What begins each request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    kind: u32,
    reserved: u32,
    sector: u64,
}

/// A range to discard, or to write zeros to.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Range {
    sector: u64,
    sectors: u32,
    flags: u32,
}

/// In [`Range::flags`] of a write-zeroes: the sectors may be given back to the host.
const UNMAP: u32 = 1;

/// How a disk is to be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockOptions {
    /// The guest cannot write.
    pub read_only: bool,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
}

/// A file that a guest is to have as a disk.
#[derive(Debug)]
pub struct Block {
    file: File,
    path: PathBuf,
    sectors: u64,
    options: BlockOptions,
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
        match rustix::fs::flock(&file, lock) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(BlockError::InUse { path: at() }),
            Err(error) => return Err(opened(error.into())),
        }
        Ok(Self { file, path: at(), sectors: size / SECTOR, options })
    }
}

/// The device.
pub(super) struct Disk {
    block: Block,
}

impl Device for Disk {
    fn kind(&self) -> u32 {
        kind::BLOCK
    }

    fn features(&self) -> u64 {
        let writable = feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES;
        let of_kind = if self.block.options.read_only { feature::READ_ONLY } else { writable };
        feature::SEG_MAX | feature::BLOCK_SIZE | of_kind
    }

    fn queues(&self) -> &'static [u16] {
        &[QUEUE]
    }

    /// `struct virtio_blk_config`.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.block.sectors.to_le_bytes());
        put(12, &u32::from(QUEUE - 2).to_le_bytes()); // seg_max
        put(20, &(SECTOR as u32).to_le_bytes()); // blk_size
        put(34, &1_u16.to_le_bytes()); // num_queues
        put(36, &MOST_SECTORS.to_le_bytes());
        put(40, &(MOST_RANGES as u32).to_le_bytes());
        put(44, &1_u32.to_le_bytes()); // discard_sector_alignment
        put(48, &MOST_SECTORS.to_le_bytes());
        put(52, &(MOST_RANGES as u32).to_le_bytes());
        put(56, &[1]); // write_zeroes_may_unmap
        config
    }

    fn process(&mut self, rings: &mut [Option<Ring>], _: &Line, _: bool) -> Result<bool, Broken> {
        let Some(ring) = &mut rings[0] else { return Ok(false) };
        let mut served = 0;
        while served < BATCH
            && let Some(mut chain) = ring.pop()?
        {
            let short = |TooShort| Broken("a request to a disk has no header, or no room for its status");
            let outcome = self.request(&mut chain).map_err(short)?;
            chain.write_last(&[outcome as u8]).map_err(short)?;
            ring.push(chain);
            served += 1;
        }
        Ok(served > 0)
    }
}

impl Disk {
    pub(super) fn new(block: Block) -> Self {
        Self { block }
    }

    /// Does what a chain asks for. Its last byte is for the status.
    fn request(&self, chain: &mut Chain) -> Result<Outcome, TooShort> {
        let header: Header = chain.read_value()?;
        let room = chain.writable().checked_sub(1).ok_or(TooShort)?;
        let data = chain.readable();
        let read_only = self.block.options.read_only;
        Ok(match header.kind {
            request::IN => self.transfer(&header, room, |offset| self.read(chain, offset, room)),
            request::OUT if !read_only => {
                self.transfer(&header, data, |offset| self.write(chain, offset, data))
            }
            request::FLUSH if !read_only => told("flush", self.block.file.sync_data()),
            request::GET_ID => {
                let mut id = [0; 20];
                let name = self.block.path.file_name().unwrap_or_default().as_encoded_bytes();
                let length = name.len().min(id.len());
                id[..length].copy_from_slice(&name[..length]);
                chain.write(&id[..room.min(20)])?;
                Outcome::Ok
            }
            request::DISCARD | request::WRITE_ZEROES if !read_only => self.ranges(chain, header.kind),
            request::OUT => Outcome::IoError,
            _ => Outcome::Unsupported,
        })
    }

    /// Moves so many bytes, from or to the sectors that a header names.
    fn transfer(&self, header: &Header, bytes: usize, run: impl FnOnce(u64) -> io::Result<usize>) -> Outcome {
        let inside = (bytes as u64).is_multiple_of(SECTOR)
            && header.sector.checked_add(bytes as u64 / SECTOR).is_some_and(|end| end <= self.block.sectors);
        if !inside {
            return Outcome::IoError;
        }
        told("read or write", run(header.sector * SECTOR).and_then(|moved| all(moved, bytes)))
    }

    fn read(&self, chain: &mut Chain, offset: u64, bytes: usize) -> io::Result<usize> {
        let file = self.block.file.as_fd();
        if self.needs_copy(&chain.places_to_fill(bytes)) {
            let mut copy = Aligned::new(bytes);
            let read = rustix::io::pread(file, copy.bytes(), offset)?;
            chain.write(&copy.bytes()[..read]).map_err(|TooShort| io::ErrorKind::InvalidInput)?;
            return Ok(read);
        }
        let mut done = 0;
        while done < bytes {
            match chain.write_from(bytes - done, |places| places.read_at(file, offset + done as u64)) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write(&self, chain: &mut Chain, offset: u64, bytes: usize) -> io::Result<usize> {
        let file = self.block.file.as_fd();
        if self.needs_copy(&chain.places_to_take(bytes)) {
            let mut copy = Aligned::new(bytes);
            chain.read(copy.bytes()).map_err(|TooShort| io::ErrorKind::InvalidInput)?;
            return Ok(rustix::io::pwrite(file, copy.bytes(), offset)?);
        }
        let mut done = 0;
        while done < bytes {
            match chain.read_to(bytes - done, |places| places.write_at(file, offset + done as u64)) {
                Ok(0) => break,
                Ok(written) => done += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Whether direct I/O would refuse these places.
    fn needs_copy(&self, places: &Places) -> bool {
        let aligned = |vector: &libc::iovec| {
            vector.iov_base.addr().is_multiple_of(SECTOR as usize)
                && vector.iov_len.is_multiple_of(SECTOR as usize)
        };
        self.block.options.direct && !places.vectors().iter().all(aligned)
    }

    /// Gives sectors back to the host, or makes them zero.
    fn ranges(&self, chain: &mut Chain, kind: u32) -> Outcome {
        let count = chain.readable() / size_of::<Range>();
        if count == 0 || count > MOST_RANGES || !chain.readable().is_multiple_of(size_of::<Range>()) {
            return Outcome::IoError;
        }
        for _ in 0..count {
            let Ok(range) = chain.read_value::<Range>() else { return Outcome::IoError };
            let allowed = if kind == request::DISCARD { 0 } else { UNMAP };
            if range.flags & !allowed != 0 {
                return Outcome::Unsupported;
            }
            let end = range.sector.checked_add(range.sectors.into());
            if range.sectors > MOST_SECTORS || end.is_none_or(|end| end > self.block.sectors) {
                return Outcome::IoError;
            }
            let (offset, length) = (range.sector * SECTOR, u64::from(range.sectors) * SECTOR);
            let done = match kind {
                request::DISCARD => self.discard(offset, length),
                _ => self.write_zeroes(offset, length, range.flags & UNMAP != 0),
            };
            if told("discard or write zeros", done) != Outcome::Ok {
                return Outcome::IoError;
            }
        }
        Outcome::Ok
    }

    /// Discarded sectors may have any content; where the host cannot take them back they keep theirs.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.block.file, hole, offset, length) {
            Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            _ if length == 0 => Ok(()),
            done => Ok(done?),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64, unmap: bool) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let how = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match rustix::fs::fallocate(&self.block.file, how | FallocateFlags::KEEP_SIZE, offset, length) {
            Err(rustix::io::Errno::OPNOTSUPP) => {}
            done => return Ok(done?),
        }
        let mut zeros = Aligned::new(64 << 10);
        let mut at = offset;
        while at < offset + length {
            let part = (offset + length - at).min(64 << 10) as usize;
            at += rustix::io::pwrite(&self.block.file, &zeros.bytes()[..part], at)? as u64;
        }
        Ok(())
    }
}

/// Memory that direct I/O takes.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        const ALIGN: usize = 4096;
        let memory = vec![0; length + ALIGN];
        let start = memory.as_ptr().addr().next_multiple_of(ALIGN) - memory.as_ptr().addr();
        Self { memory, start, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// A transfer that is short is an error: the file has become shorter, or the disk is full.
fn all(moved: usize, bytes: usize) -> io::Result<()> {
    if moved == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn told(what: &str, done: io::Result<()>) -> Outcome {
    match done {
        Ok(()) => Outcome::Ok,
        Err(error) => {
            tracing::warn!(%error, "a disk could not {what}; its guest is told");
            Outcome::IoError
        }
    }
}

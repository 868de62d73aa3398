//! Requests to a disk.
//!
//! Start at [`Disk::begin`].

use super::uring::{Operation, UnderWay, Uring};
use super::{Block, QUEUE, SECTOR};
use crate::devices::chain::{Chain, Places, TooShort};
use crate::devices::line::Line;
use crate::devices::ring::Ring;
use crate::devices::{Broken, Device, Interest};
use hv_abi::device::kind;
use rustix::fd::BorrowedFd;
use rustix::fs::FallocateFlags;
use std::io;
use std::os::fd::AsFd;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The most sectors of one discard or write-zeroes: 1 GiB.
const MOST_SECTORS: u32 = 1 << 21;
/// The most ranges of one.
const MOST_RANGES: usize = 64;
/// Requests that are served in one go, and bytes after which no more are begun: whoever wants the device to stop waits for those.
const BATCH: usize = 64;
const BATCH_BYTES: usize = 16 << 20;
/// The most that is copied at once for direct I/O.
const COPY: usize = 256 << 10;

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

/// What a request comes to.
enum Begun {
    /// Something that takes its time.
    Operation(Operation),
    /// It is done.
    Done(Outcome),
}

/// The device.
pub(crate) struct Disk {
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

    fn sources(&self) -> Vec<(BorrowedFd<'_>, Interest)> {
        let under_way = self.block.uring.as_ref().filter(|uring| !uring.is_idle());
        under_way.map(|uring| (uring.descriptor(), Interest::Read)).into_iter().collect()
    }

    fn waits_for(&self, _: usize) -> bool {
        self.has_room()
    }

    fn process(&mut self, rings: &mut [Option<Ring>], _: &Line, _: bool) -> Result<bool, Broken> {
        let Some(ring) = &mut rings[0] else { return Ok(false) };
        let finished = self.finish_done(ring)?;
        let (mut begun, mut bytes) = (0, 0);
        while begun < BATCH
            && bytes < BATCH_BYTES
            && self.has_room()
            && let Some(mut chain) = ring.pop()?
        {
            begun += 1;
            bytes += chain.readable() + chain.writable();
            match self.begin(&mut chain).map_err(short)? {
                Begun::Done(outcome) => answer(ring, chain, outcome)?,
                Begun::Operation(operation) => self.go_on(ring, chain, operation)?,
            }
        }
        if let Some(uring) = &mut self.block.uring {
            uring.submit();
        }
        Ok(finished || begun > 0)
    }

    fn quiesce(&mut self, rings: &mut [Option<Ring>]) {
        while let Some((request, result)) = self.block.uring.as_mut().and_then(|uring| uring.wait_for_one()) {
            if let Some(ring) = &mut rings[0] {
                // A request without room for its status is found when it begins.
                let _ = self.finish(ring, request, result);
            }
        }
    }

    fn reset(&mut self) {
        self.quiesce(&mut [None]);
    }
}

impl Disk {
    pub(crate) fn new(block: Block) -> Self {
        Self { block }
    }

    /// Whether another request can be begun.
    fn has_room(&self) -> bool {
        self.block.uring.as_ref().is_none_or(Uring::has_room)
    }

    /// Looks at what a chain asks for, and does what takes no time. Its last byte is for the status.
    fn begin(&self, chain: &mut Chain) -> Result<Begun, TooShort> {
        let header: Header = chain.read_value()?;
        let room = chain.writable().checked_sub(1).ok_or(TooShort)?;
        let data = chain.readable();
        let read_only = self.block.options.read_only;
        Ok(match header.kind {
            request::IN => self.transfer(&header, room, |offset| Operation::Read { offset, bytes: room }),
            request::OUT if !read_only => {
                self.transfer(&header, data, |offset| Operation::Write { offset, bytes: data })
            }
            request::OUT => Begun::Done(Outcome::IoError),
            request::FLUSH if !read_only => Begun::Operation(Operation::Sync),
            request::DISCARD | request::WRITE_ZEROES if !read_only => {
                Begun::Done(self.ranges(chain, header.kind))
            }
            request::GET_ID => {
                let mut id = [0; 20];
                let name = self.block.path.file_name().unwrap_or_default().as_encoded_bytes();
                let length = name.len().min(id.len());
                id[..length].copy_from_slice(&name[..length]);
                chain.write(&id[..room.min(20)])?;
                Begun::Done(Outcome::Ok)
            }
            _ => Begun::Done(Outcome::Unsupported),
        })
    }

    /// What moves so many bytes, from or to the sectors that a header names.
    fn transfer(&self, header: &Header, bytes: usize, operation: impl FnOnce(u64) -> Operation) -> Begun {
        let inside = (bytes as u64).is_multiple_of(SECTOR)
            && header.sector.checked_add(bytes as u64 / SECTOR).is_some_and(|end| end <= self.block.sectors);
        if inside {
            Begun::Operation(operation(header.sector * SECTOR))
        } else {
            Begun::Done(Outcome::IoError)
        }
    }

    /// Does an operation at once, if it takes no longer than to have it under way; has it under way otherwise.
    fn go_on(&mut self, ring: &mut Ring, mut chain: Chain, mut operation: Operation) -> Result<(), Broken> {
        let direct = self.block.options.direct;
        if let Operation::Read { offset, bytes } = operation
            && !direct
        {
            let cached =
                chain.write_from(bytes, |places| places.read_cached(self.block.file.as_fd(), offset));
            let read = cached.unwrap_or(0); // none of it is in the page cache
            operation = Operation::Read { offset: offset + read as u64, bytes: bytes - read };
        }
        let at_once = match operation {
            Operation::Read { bytes, .. } => bytes == 0,
            // A copy to the page cache.
            Operation::Write { .. } => !direct,
            Operation::Sync => false,
        };
        match &mut self.block.uring {
            Some(uring) if !at_once && (!direct || is_aligned(&chain, operation)) => {
                uring.start(chain, operation);
                Ok(())
            }
            _ => {
                let outcome = self.run(&mut chain, operation);
                answer(ring, chain, outcome)
            }
        }
    }

    /// Answers all that the host is done with. Whether there was something.
    fn finish_done(&mut self, ring: &mut Ring) -> Result<bool, Broken> {
        let mut any = false;
        while let Some((request, result)) = self.block.uring.as_mut().and_then(|uring| uring.done()) {
            self.finish(ring, request, result)?;
            any = true;
        }
        Ok(any)
    }

    /// The host is done with a request, or with a part of it: the rest is done here.
    fn finish(&self, ring: &mut Ring, request: UnderWay, result: io::Result<usize>) -> Result<(), Broken> {
        let UnderWay { mut chain, operation, .. } = request;
        let again = |error: &io::Error| matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN));
        let outcome = match (operation, result) {
            (_, Err(error)) if !again(&error) => told(operation, Err(error)),
            (Operation::Sync, Ok(_)) => Outcome::Ok,
            (Operation::Sync, Err(_)) => self.run(&mut chain, operation),
            (Operation::Read { offset, bytes }, result) => {
                let filled = result.unwrap_or(0);
                chain.note_filled(filled);
                self.run(
                    &mut chain,
                    Operation::Read { offset: offset + filled as u64, bytes: bytes - filled },
                )
            }
            (Operation::Write { offset, bytes }, result) => {
                let taken = result.unwrap_or(0);
                chain.note_taken(taken);
                self.run(&mut chain, Operation::Write { offset: offset + taken as u64, bytes: bytes - taken })
            }
        };
        answer(ring, chain, outcome)
    }

    /// Does it, by plain system calls.
    fn run(&self, chain: &mut Chain, operation: Operation) -> Outcome {
        let done = match operation {
            Operation::Sync => self.block.file.sync_data(),
            Operation::Read { offset, bytes } => {
                self.read(chain, offset, bytes).and_then(|read| all(read, bytes))
            }
            Operation::Write { offset, bytes } => {
                self.write(chain, offset, bytes).and_then(|written| all(written, bytes))
            }
        };
        told(operation, done)
    }

    fn read(&self, chain: &mut Chain, offset: u64, bytes: usize) -> io::Result<usize> {
        let file = self.block.file.as_fd();
        if self.needs_copy(&chain.places_to_fill(bytes)) {
            return by_copies(bytes, |copy, done| {
                let read = rustix::io::pread(file, &mut *copy, offset + done)?;
                chain.write(&copy[..read]).map_err(|TooShort| io::ErrorKind::InvalidInput)?;
                Ok(read)
            });
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
            return by_copies(bytes, |copy, done| {
                chain.read(copy).map_err(|TooShort| io::ErrorKind::InvalidInput)?;
                Ok(rustix::io::pwrite(file, copy, offset + done)?)
            });
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
            if told(range, done) != Outcome::Ok {
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

fn short(TooShort: TooShort) -> Broken {
    Broken("a request to a disk has no header, or no room for its status")
}

/// Gives a request back, with its status in its last byte.
fn answer(ring: &mut Ring, mut chain: Chain, outcome: Outcome) -> Result<(), Broken> {
    chain.write_last(&[outcome as u8]).map_err(short)?;
    ring.push(chain);
    Ok(())
}

/// Whether direct I/O takes an operation as it is.
fn is_aligned(chain: &Chain, operation: Operation) -> bool {
    match operation {
        Operation::Read { bytes, .. } => are_aligned(&chain.places_to_fill(bytes)),
        Operation::Write { bytes, .. } => are_aligned(&chain.places_to_take(bytes)),
        Operation::Sync => true,
    }
}

fn are_aligned(places: &Places) -> bool {
    let sector = SECTOR as usize;
    let aligned = |vector: &libc::iovec| {
        vector.iov_base.addr().is_multiple_of(sector) && vector.iov_len.is_multiple_of(sector)
    };
    places.vectors().iter().all(aligned)
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

/// Moves so many bytes by way of memory that direct I/O takes, and whose size is not the guest's to choose. `step` gets it, and
/// how many bytes are done, and says how many it moved; a step that falls short is the last.
fn by_copies(bytes: usize, mut step: impl FnMut(&mut [u8], u64) -> io::Result<usize>) -> io::Result<usize> {
    let mut copy = Aligned::new(bytes.min(COPY));
    let mut done = 0;
    while done < bytes {
        let part = (bytes - done).min(COPY);
        let moved = step(&mut copy.bytes()[..part], done as u64)?;
        done += moved;
        if moved < part {
            break;
        }
    }
    Ok(done)
}

/// A transfer that is short is an error: the file has become shorter, or the disk is full.
fn all(moved: usize, bytes: usize) -> io::Result<()> {
    if moved == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn told(what: impl std::fmt::Debug, done: io::Result<()>) -> Outcome {
    match done {
        Ok(()) => Outcome::Ok,
        Err(error) => {
            tracing::warn!(%error, ?what, "a disk failed, and its guest is told");
            Outcome::IoError
        }
    }
}

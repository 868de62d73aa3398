//! A chain of buffers that a driver has made available: read from its front, written at its back.
//!
//! Start at [`Chain::read`] and [`Chain::write`], or, for what goes between guest memory and a file or a socket without a copy in
//! the monitor, at [`Chain::read_to`] and [`Chain::write_from`].

#![expect(unsafe_code, reason = "system calls that read and write guest memory")]

use crate::memory::GuestMemory;
use hv_abi::GuestPhys;
use rustix::fd::{AsRawFd, BorrowedFd};
use smallvec::SmallVec;
use std::io;
use std::sync::Arc;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A run of bytes in guest memory; it has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub start: GuestPhys,
    pub length: u32,
}

/// Those of a chain: most have few.
pub(super) type Segments = SmallVec<[Segment; 4]>;

/// Segments, and how far they have been used.
#[derive(Debug)]
struct Cursor {
    segments: Segments,
    next: usize,
    left: usize,
    /// Bytes of all.
    length: usize,
}

/// A chain that was popped from a ring. It is to be pushed, or put back.
#[derive(Debug)]
#[must_use = "a chain that is not pushed is lost to its driver"]
pub(crate) struct Chain {
    memory: Arc<GuestMemory>,
    head: u16,
    readable: Cursor,
    writable: Cursor,
    written: u32,
}

/// Room that was set aside in a chain.
#[derive(Debug)]
pub(crate) struct Reserved(Vec<Segment>);

/// A chain is shorter than its device's requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooShort;

impl Cursor {
    fn new(segments: Segments) -> Self {
        let length = segments.iter().map(|segment| segment.length as usize).sum();
        Self { segments, next: 0, left: length, length }
    }

    /// Takes the next run of at most `most` bytes.
    fn take(&mut self, most: usize) -> Option<Segment> {
        if most == 0 || self.left == 0 {
            return None;
        }
        while self.segments[self.next].length == 0 {
            self.next += 1;
        }
        let segment = &mut self.segments[self.next];
        let length = segment.length.min(u32::try_from(most).unwrap_or(u32::MAX));
        let taken = Segment { start: segment.start, length };
        segment.start.0 += u64::from(length);
        segment.length -= length;
        self.left -= length as usize;
        Some(taken)
    }

    /// The runs of the next `most` bytes, which are not taken.
    fn runs(&self, most: usize) -> impl Iterator<Item = Segment> {
        let mut left = most;
        self.segments[self.next..].iter().filter(|segment| segment.length > 0).map_while(move |segment| {
            let length = segment.length.min(u32::try_from(left).unwrap_or(u32::MAX));
            left -= length as usize;
            (length > 0).then_some(Segment { start: segment.start, length })
        })
    }

    fn skip(&mut self, mut bytes: usize) {
        while let Some(taken) = self.take(bytes) {
            bytes -= taken.length as usize;
        }
    }
}

impl Chain {
    pub(super) fn new(memory: Arc<GuestMemory>, head: u16, readable: Segments, writable: Segments) -> Self {
        Self { memory, head, readable: Cursor::new(readable), writable: Cursor::new(writable), written: 0 }
    }

    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Bytes written to it so far.
    pub(crate) fn written(&self) -> u32 {
        self.written
    }

    /// Bytes of the driver's that were read so far.
    pub(super) fn taken(&self) -> usize {
        self.readable.length - self.readable.left
    }

    /// Bytes of the driver's that were not read.
    pub(crate) fn readable(&self) -> usize {
        self.readable.left
    }

    /// Room that was not written to.
    pub(crate) fn writable(&self) -> usize {
        self.writable.left
    }

    /// Fills `bytes` with the next of the driver's.
    ///
    /// # Errors
    ///
    /// There are fewer; then none is taken.
    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> Result<(), TooShort> {
        if self.readable.left < bytes.len() {
            return Err(TooShort);
        }
        let mut at = 0;
        while let Some(run) = self.readable.take(bytes.len() - at) {
            let part = &mut bytes[at..at + run.length as usize];
            self.memory.read_bytes(run.start, part).expect("segments are in guest memory");
            at += part.len();
        }
        Ok(())
    }

    /// The next of the driver's bytes as a structure.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub(crate) fn read_value<T: FromBytes + IntoBytes>(&mut self) -> Result<T, TooShort> {
        let mut value = T::new_zeroed();
        self.read(value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes `bytes` behind what was written so far.
    ///
    /// # Errors
    ///
    /// There is less room; then nothing is written.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), TooShort> {
        if self.writable.left < bytes.len() {
            return Err(TooShort);
        }
        let mut at = 0;
        while let Some(run) = self.writable.take(bytes.len() - at) {
            let part = &bytes[at..at + run.length as usize];
            self.memory.write_bytes(run.start, part).expect("segments are in guest memory");
            at += part.len();
        }
        self.written += bytes.len() as u32;
        Ok(())
    }

    /// As [`write`](Self::write), for a structure.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub(crate) fn write_value<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), TooShort> {
        self.write(value.as_bytes())
    }

    /// Room at the very end is set aside: the `bytes` that are written there are counted as written with all before them.
    ///
    /// # Errors
    ///
    /// There is less room.
    pub(crate) fn write_last(&mut self, bytes: &[u8]) -> Result<(), TooShort> {
        let before = self.writable.left.checked_sub(bytes.len()).ok_or(TooShort)?;
        self.writable.skip(before);
        self.written += before as u32;
        self.write(bytes)
    }

    /// Takes the next run of the room, of which nothing is written.
    pub(crate) fn take_room(&mut self) -> Option<Segment> {
        self.writable.take(usize::MAX)
    }

    /// Sets the next `bytes` of room aside, for what is known only when all behind it is written. They count as written.
    ///
    /// # Errors
    ///
    /// There is less room.
    pub(crate) fn reserve(&mut self, bytes: usize) -> Result<Reserved, TooShort> {
        if self.writable.left < bytes {
            return Err(TooShort);
        }
        let runs = self.writable.runs(bytes).collect();
        self.writable.skip(bytes);
        self.written += bytes as u32;
        Ok(Reserved(runs))
    }

    /// Writes to the start of what was set aside.
    pub(crate) fn write_reserved(&mut self, reserved: &Reserved, bytes: &[u8]) {
        let mut rest = bytes;
        for run in &reserved.0 {
            let (part, behind) = rest.split_at(rest.len().min(run.length as usize));
            self.memory.write_bytes(run.start, part).expect("segments are in guest memory");
            rest = behind;
        }
    }

    /// Has the host's kernel take at most `most` of the driver's bytes from guest memory: `call` is given their places, and says
    /// how many it took.
    ///
    /// # Errors
    ///
    /// Those of `call`.
    pub(crate) fn read_to(
        &mut self,
        most: usize,
        call: impl FnOnce(&Places) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let taken = call(&Places::new(&self.memory, self.readable.runs(most)))?.min(most);
        self.note_taken(taken);
        Ok(taken)
    }

    /// Has the host's kernel fill at most `most` bytes of the room: `call` is given their places, and says how many it filled.
    ///
    /// # Errors
    ///
    /// Those of `call`.
    pub(crate) fn write_from(
        &mut self,
        most: usize,
        call: impl FnOnce(&Places) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let filled = call(&Places::new(&self.memory, self.writable.runs(most)))?.min(most);
        self.note_filled(filled);
        Ok(filled)
    }

    /// Places of at most `most` bytes of room, for a call that is not over when this returns; they are valid while the chain is.
    /// What it filled is to be told by [`note_filled`](Self::note_filled).
    pub(crate) fn places_to_fill(&self, most: usize) -> Places {
        Places::new(&self.memory, self.writable.runs(most))
    }

    /// As [`places_to_fill`](Self::places_to_fill), of the driver's bytes.
    pub(crate) fn places_to_take(&self, most: usize) -> Places {
        Places::new(&self.memory, self.readable.runs(most))
    }

    /// The host's kernel has taken so many of the driver's bytes.
    pub(crate) fn note_taken(&mut self, bytes: usize) {
        self.readable.skip(bytes);
    }

    /// The host's kernel has filled so many bytes of the room.
    pub(crate) fn note_filled(&mut self, bytes: usize) {
        let mut left = bytes;
        while let Some(run) = self.writable.take(left) {
            self.memory.watched().note_write(run.start.0, run.length.into());
            left -= run.length as usize;
        }
        self.written += (bytes - left) as u32;
    }
}

/// Places in guest memory, for the host's kernel.
#[derive(Default)]
pub(crate) struct Places(SmallVec<[libc::iovec; 4]>);

// SAFETY: the addresses are of a mapping of the process, not of a thread.
unsafe impl Send for Places {}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|vector| vector.iov_len)).finish()
    }
}

impl Places {
    fn new(memory: &GuestMemory, runs: impl Iterator<Item = Segment>) -> Self {
        let place = |run: Segment| {
            let slice = memory.slice(run.start, run.length as usize);
            let guard = slice.expect("segments are in guest memory").ptr_guard_mut();
            libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }
        };
        Self(runs.map(place).collect())
    }

    /// The vectors. What they point to may be given to the host's kernel while the chain lives.
    pub(crate) fn vectors(&self) -> &[libc::iovec] {
        &self.0
    }

    /// Writes them to a file, at `offset`.
    ///
    /// # Errors
    ///
    /// The host's.
    pub(crate) fn write_at(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: `pwritev` needs as many valid vectors as it is told of: they are of guest memory, which the chain that made
        // them keeps mapped. It reads it, and guest memory may change meanwhile: the kernel copies bytes.
        done(unsafe { libc::pwritev(file.as_raw_fd(), self.0.as_ptr(), self.count(), offset) })
    }

    /// Fills them from a file, from `offset` on.
    ///
    /// # Errors
    ///
    /// The host's.
    pub(crate) fn read_at(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: as in `write_at`; it writes guest memory, to which the monitor has no references.
        done(unsafe { libc::preadv(file.as_raw_fd(), self.0.as_ptr(), self.count(), offset) })
    }

    /// As [`read_at`](Self::read_at), of what is in the host's page cache.
    ///
    /// # Errors
    ///
    /// The host's; `WouldBlock` if the first byte is not there.
    pub(crate) fn read_cached(&self, file: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (vectors, count) = (self.0.as_ptr(), self.count());
        // Not the C library's `preadv2`, which is a point of cancellation: that costs a twentieth of a read of 4 KiB.
        const OFFSET_HIGH: usize = 0; // for 32-bit machines
        // SAFETY: as in `read_at`.
        let read = unsafe {
            libc::syscall(
                libc::SYS_preadv2,
                file.as_raw_fd(),
                vectors,
                count,
                offset,
                OFFSET_HIGH,
                libc::RWF_NOWAIT,
            )
        };
        done(read as isize)
    }

    /// Writes them to a stream.
    ///
    /// # Errors
    ///
    /// The host's.
    pub(crate) fn write(&self, stream: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `write_at`.
        done(unsafe { libc::writev(stream.as_raw_fd(), self.0.as_ptr(), self.count()) })
    }

    /// Fills them from a stream.
    ///
    /// # Errors
    ///
    /// The host's.
    pub(crate) fn read(&self, stream: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `read_at`.
        done(unsafe { libc::readv(stream.as_raw_fd(), self.0.as_ptr(), self.count()) })
    }

    fn count(&self) -> i32 {
        self.0.len() as i32 // at most as many as a ring has descriptors
    }
}

/// What a system call of the C library's says.
fn done(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

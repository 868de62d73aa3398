//! Requests of a disk that are under way at the host, by `io_uring`.
//!
//! The ring is restricted when it is made: to reads, writes and syncs, of the disk's file. So it is of no other use, whoever has
//! the monitor.
//!
//! Start at [`Uring::start`].

#![expect(unsafe_code, reason = "requests on guest memory that outlive the call")]

use super::QUEUE;
use crate::devices::chain::{Chain, Places};
use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};
use rustix::fd::{AsRawFd, BorrowedFd};
use std::fs::File;
use std::io;

/// No request is started while the host has so many bytes to move: whoever wants the device to stop waits for all of them.
const MOST_BYTES: usize = 64 << 20;

/// What is asked of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Fills the next `bytes` of the chain's room from the file, from `offset` on.
    Read { offset: u64, bytes: usize },
    /// Writes the next `bytes` of the driver's to the file.
    Write { offset: u64, bytes: usize },
    /// Puts what was written on the disk.
    Sync,
}

/// A request that the host has.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub chain: Chain,
    pub operation: Operation,
    /// What the host reads while the request is under way.
    places: Places,
}

impl UnderWay {
    fn bytes(&self) -> usize {
        match self.operation {
            Operation::Read { bytes, .. } | Operation::Write { bytes, .. } => bytes,
            Operation::Sync => 0,
        }
    }

    fn entry(&self) -> Entry {
        let vectors = self.places.vectors();
        let (first, count) = (vectors.as_ptr(), vectors.len() as u32);
        match self.operation {
            Operation::Read { offset, .. } => opcode::Readv::new(FILE, first, count).offset(offset).build(),
            Operation::Write { offset, .. } => opcode::Writev::new(FILE, first, count).offset(offset).build(),
            Operation::Sync => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
        }
    }
}

/// Requests under way.
pub(super) struct Uring {
    ring: IoUring,
    /// By the numbers that the host knows them by.
    requests: Vec<Option<UnderWay>>,
    free: Vec<u16>,
    /// Pushed, and not submitted.
    pushed: usize,
    /// Bytes of all requests under way.
    bytes: usize,
}

/// Only registered files, of which there is one.
const FLAGS: u8 = Flags::FIXED_FILE.bits();
const FILE: Fixed = Fixed(0);

impl Uring {
    /// For a file; `None` if the host has no `io_uring`, or not enough of it.
    pub(super) fn new(file: &File) -> Option<Self> {
        let made = || {
            let ring = IoUring::builder().setup_r_disabled().dontfork().build(QUEUE.into())?;
            if !ring.params().is_feature_submit_stable() || !ring.params().is_feature_nodrop() {
                return Err(io::ErrorKind::Unsupported.into());
            }
            let submitter = ring.submitter();
            submitter.register_files(&[file.as_raw_fd()])?;
            submitter.register_restrictions(&mut [
                Restriction::sqe_op(opcode::Readv::CODE),
                Restriction::sqe_op(opcode::Writev::CODE),
                Restriction::sqe_op(opcode::Fsync::CODE),
                Restriction::sqe_flags_allowed(FLAGS),
                Restriction::sqe_flags_required(FLAGS),
            ])?;
            submitter.register_enable_rings()?;
            Ok(ring)
        };
        let ring = made().inspect_err(|error: &io::Error| {
            tracing::debug!(%error, "no io_uring: disks are served by plain system calls");
        });
        let requests = (0..QUEUE).map(|_| None).collect();
        Some(Self { ring: ring.ok()?, requests, free: (0..QUEUE).collect(), pushed: 0, bytes: 0 })
    }

    /// Whether one more request can be started.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() && self.bytes < MOST_BYTES
    }

    /// Whether the host has any.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.requests.len()
    }

    /// Starts a request; the host is told by [`submit`](Self::submit).
    ///
    /// # Panics
    ///
    /// Panics if there is no [room](Self::has_room).
    pub(super) fn start(&mut self, chain: Chain, operation: Operation) {
        let number = self.free.pop().expect("there is room");
        let places = match operation {
            Operation::Read { bytes, .. } => chain.places_to_fill(bytes),
            Operation::Write { bytes, .. } => chain.places_to_take(bytes),
            Operation::Sync => Places::default(),
        };
        let request = self.requests[usize::from(number)].insert(UnderWay { chain, operation, places });
        self.bytes += request.bytes();
        let entry = request.entry().user_data(number.into()).flags(Flags::FIXED_FILE);
        // SAFETY: what the entry refers to must be valid until the request is done. The vectors are in `requests` until then,
        // which does not grow, so that nothing in it moves; what they point to is guest memory, which the chain beside them keeps
        // mapped; and this value waits for all requests before it goes.
        unsafe { self.ring.submission().push(&entry) }.expect("the queue is as long as there are requests");
        self.pushed += 1;
    }

    /// Tells the host of what was started.
    pub(super) fn submit(&mut self) {
        if self.pushed > 0 {
            self.enter(0);
            self.pushed = 0;
        }
    }

    /// Tells the host, and waits until so many requests are done.
    fn enter(&self, wait_for: usize) {
        loop {
            match self.ring.submit_and_wait(wait_for) {
                Ok(_) => return,
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // The host is short of memory, or has more completions than it can show, for a moment.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                    std::thread::yield_now();
                }
                Err(error) => panic!("io_uring_enter of a ring that was set up cannot fail so: {error}"),
            }
        }
    }

    /// A request that is done, and what the host says of it.
    pub(super) fn done(&mut self) -> Option<(UnderWay, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        let number = entry.user_data() as u16; // as `start` gave it
        let request = self.requests[usize::from(number)].take().expect("the host answers once");
        self.free.push(number);
        self.bytes -= request.bytes();
        let result =
            usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        Some((request, result))
    }

    /// As [`done`](Self::done), and waits for it; `None` if the host has none.
    pub(super) fn wait_for_one(&mut self) -> Option<(UnderWay, io::Result<usize>)> {
        if self.is_idle() {
            return None;
        }
        loop {
            if let Some(done) = self.done() {
                return Some(done);
            }
            self.enter(1);
            self.pushed = 0;
        }
    }

    /// What to wait for: readable when a request is done.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is the ring's, which is borrowed for as long.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    /// The host must be done with guest memory before it goes.
    fn drop(&mut self) {
        while self.wait_for_one().is_some() {}
    }
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("requests", &self.requests).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_of_no_use_for_anything_but_its_file() {
        let path = std::env::temp_dir().join(format!("hv-uring-{}", std::process::id()));
        std::fs::write(&path, [0; 512]).unwrap();
        let file = File::open(&path).unwrap();
        let Some(mut uring) = Uring::new(&file) else {
            eprintln!("this host has no io_uring: not tested");
            return;
        };
        let raw = io_uring::types::Fd(file.as_raw_fd());
        let name = c"/etc/passwd".as_ptr();
        for entry in [
            opcode::OpenAt::new(io_uring::types::Fd(libc::AT_FDCWD), name).build(),
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            opcode::Fsync::new(raw).build(),
            opcode::Nop::new().build().flags(Flags::FIXED_FILE),
        ] {
            // SAFETY: the name lives for good, and the rest refers to nothing.
            unsafe { uring.ring.submission().push(&entry) }.unwrap();
            uring.ring.submit_and_wait(1).unwrap();
            let done = uring.ring.completion().next().expect("it is answered");
            assert_eq!(done.result(), -libc::EACCES, "{entry:?}");
        }
        std::fs::remove_file(path).unwrap();
    }
}

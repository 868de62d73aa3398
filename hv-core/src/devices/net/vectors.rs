//! Calls that move frames between descriptors and guest memory, several pieces at once and without a copy in the monitor.
//!
//! Start at [`Gather`] for what goes out, and at [`scatter`] for what comes in.

#![expect(unsafe_code, reason = "system calls that read and write guest memory")]

use crate::devices::chain::Chain;
use rustix::fd::{AsRawFd, BorrowedFd};
use std::io;
use std::marker::PhantomData;

/// The most pieces of one call (`UIO_MAXIOV`).
const PIECES: usize = 1024;

/// Pieces of guest memory and of the monitor's, in order, to be written by one call.
pub(super) struct Gather<'a> {
    vectors: Vec<libc::iovec>,
    pieces: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    pub(super) fn new() -> Self {
        Self { vectors: Vec::new(), pieces: PhantomData }
    }

    /// Adds bytes of the monitor's, and then those of the chain that were not read. Whether there was room.
    pub(super) fn add(&mut self, bytes: &'a [u8], chain: &'a Chain) -> bool {
        let places = chain.places_to_take(chain.readable());
        if self.vectors.len() + 1 + places.vectors().len() > PIECES {
            return false;
        }
        self.add_bytes(bytes);
        self.vectors.extend_from_slice(places.vectors());
        true
    }

    /// Adds bytes of the monitor's.
    pub(super) fn add_bytes(&mut self, bytes: &'a [u8]) {
        self.vectors.push(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Has a socket take as much as it does without waiting.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let message = message(&mut self.vectors);
        // SAFETY: `sendmsg` needs a valid message: its vectors, as many as it says, are of guest memory that the chains keep
        // mapped, and of slices; all are borrowed for as long as this lives. Guest memory may change meanwhile: the kernel
        // copies bytes.
        done(unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
    }

    /// Writes them to a file that does not wait.
    pub(super) fn write(&self, file: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: as in `send`.
        done(unsafe { libc::writev(file.as_raw_fd(), self.vectors.as_ptr(), self.vectors.len() as i32) })
    }
}

/// Fills, from a socket and without waiting, the next `bytes` of a chain's room, and then `behind`. Says how much was filled in all;
/// what is the chain's has not been noted there.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    chain: Option<(&Chain, usize)>,
    behind: &mut [u8],
) -> io::Result<usize> {
    let mut vectors = scatter(&mut [], chain, behind);
    let mut message = message(&mut vectors);
    // SAFETY: `recvmsg` needs a valid message. Its vectors are of guest memory that the chain keeps mapped, and to which the monitor
    // has no references, and of a slice that is borrowed mutably.
    done(unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) })
}

/// Fills, from a file that does not wait, `before`, all of a chain's room, and then `behind`.
pub(super) fn read(
    file: BorrowedFd<'_>,
    before: &mut [u8],
    chain: &Chain,
    behind: &mut [u8],
) -> io::Result<usize> {
    let vectors = scatter(before, Some((chain, chain.writable())), behind);
    // SAFETY: as in `receive`.
    done(unsafe { libc::readv(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as i32) })
}

/// The vectors of what is to be filled. A chain has fewer pieces than a call can have.
fn scatter(before: &mut [u8], chain: Option<(&Chain, usize)>, behind: &mut [u8]) -> Vec<libc::iovec> {
    let local = |bytes: &mut [u8]| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut vectors = vec![local(before)];
    if let Some((chain, bytes)) = chain {
        vectors.extend_from_slice(chain.places_to_fill(bytes).vectors());
    }
    vectors.push(local(behind));
    vectors
}

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: zeros are a message without address, vectors and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len();
    message
}

/// What a system call of the C library's says.
fn done(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

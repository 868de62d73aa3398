//! Watchpoints by the processor's debug registers, which the host lends through `perf_event_open`: a thread that writes to
//! the place gets a SIGTRAP behind the instruction that did, and is as fast as ever until then.
//!
//! The host decides whether that may be (`kernel.perf_event_paranoid`, its own hypervisor, a filter), and has four at most.

#![expect(unsafe_code, reason = "perf_event_open has no safe wrapper")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// A place that a thread's writes to are noticed of, as long as this is there.
pub(super) struct Armed {
    pub vcpu: u32,
    pub thread: i32,
    pub address: u64,
    _event: OwnedFd,
}

impl Armed {
    /// Watches a place of 1, 2, 4 or 8 bytes, at a multiple of that, for a thread of a sandbox.
    ///
    /// # Errors
    ///
    /// It is another place, or the host has none to lend.
    pub(super) fn new(vcpu: u32, thread: i32, address: u64, length: u64) -> io::Result<Self> {
        const BREAKPOINT: u64 = 5;
        const SIZE: u64 = 128;
        const EXCLUDE_HOST: u64 = 1 << 5 | 1 << 6;
        const REMOVE_ON_EXEC: u64 = 1 << 36;
        const SIGTRAP: u64 = 1 << 37;
        const WRITES: u64 = 2;
        const CLOSE_ON_EXEC: u64 = 8;
        if !matches!(length, 1 | 2 | 4 | 8) || !address.is_multiple_of(length) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes = [0_u64; SIZE as usize / 8]; // `perf_event_attr`
        attributes[0] = BREAKPOINT | SIZE << 32;
        attributes[2] = 1; // each one
        attributes[5] = EXCLUDE_HOST | REMOVE_ON_EXEC | SIGTRAP;
        attributes[6] = WRITES << 32;
        (attributes[7], attributes[8]) = (address, length);
        // SAFETY: perf_event_open needs a `perf_event_attr` of the size that is in it: 128 bytes are behind the pointer, and
        // live until the call returns. It writes there only if it refuses the size, and then in its second word; they are ours.
        let result = unsafe {
            libc::syscall(libc::SYS_perf_event_open, attributes.as_mut_ptr(), thread, -1, -1, CLOSE_ON_EXEC)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: from_raw_fd needs an open descriptor that nobody else owns: the call has just made it.
        let event = unsafe { OwnedFd::from_raw_fd(result as i32) };
        Ok(Self { vcpu, thread, address, _event: event })
    }
}

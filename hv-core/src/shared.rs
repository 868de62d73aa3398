//! Files in memory, and the monitor's view of them.
//!
//! Everything that the monitor shares with a sandbox is a memfd. The sandbox may write what it has mapped at any
//! moment, so the monitor sees such memory only as atomics; no ordinary reference into it is ever made.

#![expect(unsafe_code, reason = "mapping memory, and views of it")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};
use std::io;

/// A memfd of `size` bytes, all zero. `executable` says whether it will be executed or only mapped.
pub(crate) fn memory_file(name: &str, size: u64, executable: bool) -> io::Result<OwnedFd> {
    let kind = if executable { MemfdFlags::EXEC } else { MemfdFlags::NOEXEC_SEAL };
    let file = match rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | kind) {
        // A kernel before 6.3 does not know the two flags, and needs neither.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?,
        result => result?,
    };
    rustix::fs::ftruncate(&file, size)?;
    Ok(file)
}

/// A structure that another process may change while it is looked at.
///
/// # Safety
///
/// Every field must be an atomic, or an array or structure of atomics, or never be read or written by the
/// monitor; and every pattern of bytes must be a value.
pub(crate) unsafe trait Shared {}

// SAFETY: all fields that are read or written are atomics of integers.
unsafe impl Shared for hv_abi::vcpu::VcpuPage {}
// SAFETY: as above.
unsafe impl Shared for hv_abi::clock::ClockPage {}
// SAFETY: as above; the reserved fields are private to `handover` and not used.
unsafe impl Shared for crate::engine::process::handover::Handover {}
// SAFETY: as above.
unsafe impl Shared for crate::engine::process::layout::Report {}
// SAFETY: as above.
unsafe impl Shared for crate::engine::kvm::layout::EnginePage {}
// SAFETY: as above.
unsafe impl Shared for crate::engine::kvm::layout::Shared {}
// SAFETY: an atomic.
unsafe impl Shared for AtomicU8 {}
// SAFETY: an array of atomics.
unsafe impl Shared for crate::events::Bindings {}
// SAFETY: an atomic.
unsafe impl Shared for AtomicU32 {}
// SAFETY: an atomic.
unsafe impl Shared for AtomicU64 {}

/// A file in memory, mapped readable and writable in the monitor for as long as this value lives.
#[derive(Debug)]
pub(crate) struct SharedFile {
    /// None once it was taken: the mapping stays.
    file: Option<OwnedFd>,
    base: NonNull<u8>,
    size: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is only reached through atomics and the
// `unsafe` pointer of `at_mut`, whose callers answer for it.
unsafe impl Send for SharedFile {}
// SAFETY: as above.
unsafe impl Sync for SharedFile {}

impl SharedFile {
    /// A new file of `size` bytes, all zero.
    pub(crate) fn new(name: &str, size: u64) -> io::Result<Self> {
        let file = memory_file(name, size, false)?;
        let length = usize::try_from(size).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: `mmap` without MAP_FIXED touches no mapping that exists; the result is owned by this value.
        let base = unsafe {
            rustix::mm::mmap(
                core::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { file: Some(file), base, size: length })
    }

    /// Takes the descriptor, for a file that nobody else is to be given.
    ///
    /// # Panics
    ///
    /// Panics if it was taken.
    pub(crate) fn take_file(&mut self) -> OwnedFd {
        self.file.take().expect("the file is taken once")
    }

    /// The structure at `offset`.
    ///
    /// # Panics
    ///
    /// Panics if it is not inside the file or not aligned: offsets are the monitor's own, never a guest's.
    pub(crate) fn at<T: Shared>(&self, offset: u64) -> &T {
        let pointer = self.pointer(offset, size_of::<T>()).cast::<T>();
        assert!(pointer.is_aligned());
        // SAFETY: a reference needs memory that is mapped, aligned, a valid value and not changed but by atomics.
        // Mapped and aligned: checked above, and it lives as long as `self`. Valid and atomic: `T: Shared`.
        unsafe { pointer.as_ref() }
    }

    /// A pointer to something that only the monitor writes.
    pub(crate) fn pointer(&self, offset: u64, size: usize) -> NonNull<u8> {
        let offset = usize::try_from(offset).expect("an offset fits a pointer");
        assert!(offset.checked_add(size).is_some_and(|end| end <= self.size), "inside the file");
        // SAFETY: `add` needs the result to be inside the same mapping: checked above.
        unsafe { self.base.add(offset) }
    }

    /// Copies `words` from the 8-byte aligned `offset` on: one look at memory that may change meanwhile.
    pub(crate) fn copy_words<const N: usize>(&self, offset: u64) -> [u64; N] {
        core::array::from_fn(|i| self.at::<AtomicU64>(offset + i as u64 * 8).load(Ordering::Relaxed))
    }

    /// Stores bytes, one by one, in a part that only the monitor writes.
    pub(crate) fn store_bytes(&self, offset: u64, bytes: &[u8]) {
        let start = self.pointer(offset, bytes.len());
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: `add` and `from_ptr` need memory that is mapped, aligned and changed by atomics only meanwhile.
            // Mapped: `pointer` checked the whole length. Aligned: a byte. Atomics: sandboxes map it read-only, and the
            // monitor writes it here only.
            unsafe { AtomicU8::from_ptr(start.as_ptr().add(i)) }.store(*byte, Ordering::Relaxed);
        }
    }

    /// Stores one 8-byte aligned word.
    pub(crate) fn store_word(&self, offset: u64, value: u64) {
        self.at::<AtomicU64>(offset).store(value, Ordering::Relaxed);
    }
}

impl AsFd for SharedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_ref().expect("the file was not taken").as_fd()
    }
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        // SAFETY: `munmap` needs that nobody uses the range afterwards. References into it borrow `self`, which
        // ends here. It fails only for a range that is not one, and this one came from `mmap`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.size) };
    }
}

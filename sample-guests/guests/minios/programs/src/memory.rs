//! Pieces of memory from the kernel, apart from the heap.

#![expect(unsafe_code, reason = "memory that is mapped, unmapped and protected")]

use crate::{Result, system};
use core::ops::{Deref, DerefMut};
use minios_abi::call;

/// Memory of whole pages, all zero at first. A page costs nothing until it is first touched; all go back with this value.
pub struct Region {
    at: usize,
    length: usize,
}

impl Region {
    /// At least so many bytes.
    ///
    /// # Errors
    ///
    /// It is more than a process can have.
    pub fn new(length: usize) -> Result<Self> {
        let at = system::call(call::MAP, [length as u64, 0, 0, 0])? as usize;
        Ok(Self { at, length })
    }

    /// Makes it read-only, lets `look` see it, and makes it writable again. Another thread that writes there meanwhile, by
    /// an address that it kept, is the process's end.
    ///
    /// # Errors
    ///
    /// The kernel has no memory to do it. If it is read-only from then on, writing to it is the process's end.
    pub fn while_read_only<T>(&mut self, look: impl FnOnce(&[u8]) -> T) -> Result<T> {
        self.protect(false)?;
        let seen = look(self);
        self.protect(true).map(|()| seen)
    }

    fn protect(&self, writable: bool) -> Result<()> {
        system::call(call::PROTECT, [self.at as u64, writable.into(), 0, 0]).map(drop)
    }
}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the kernel has mapped it for this value alone, until it is dropped, and it is never without a content.
        unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(self.at), self.length) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above. Where it is not writable, a write faults, and the kernel ends the process.
        unsafe {
            core::slice::from_raw_parts_mut(core::ptr::with_exposed_provenance_mut(self.at), self.length)
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let _ = system::call(call::UNMAP, [self.at as u64, 0, 0, 0]); // without memory to do it, it stays
    }
}

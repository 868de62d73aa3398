//! What a program has at an address, by copying, as far as the program itself may.
//!
//! Page by page, through the mappings and the direct map. A fault is the caller's to resolve, as if the program had caused
//! it, and the copy to be made again.

use super::{Access, AddressSpace, Translation};
use alloc::vec::Vec;
use hv_abi::PAGE_SIZE;

/// An address at which the program itself would have a page fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The first such address.
    pub address: u64,
    /// What was tried there.
    pub access: Access,
}

impl core::fmt::Display for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "the program may not {:?} at {:#x}", self.access, self.address)
    }
}

impl core::error::Error for Fault {}

/// Why a string could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StringError {
    /// A part of it cannot be read.
    Fault(Fault),
    /// It has more bytes than that.
    TooLong,
}

impl AddressSpace {
    /// Copies what the program has at `virt`.
    ///
    /// # Errors
    ///
    /// [`Fault`] at what the program may not read; what comes before it has been copied. Does not block.
    pub fn copy_in(&self, virt: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let mut rest = bytes;
        self.pieces(virt, rest.len(), Access::Read, |found, length| {
            let (piece, behind) = core::mem::take(&mut rest).split_at_mut(length);
            found.frame.read_at(found.offset, piece);
            rest = behind;
        })
    }

    /// Copies to what the program has at `virt`.
    ///
    /// # Errors
    ///
    /// [`Fault`] at what the program may not write; what comes before it has been written. Does not block.
    pub fn copy_out(&self, virt: u64, bytes: &[u8]) -> Result<(), Fault> {
        let mut rest = bytes;
        self.pieces(virt, rest.len(), Access::Write, |found, length| {
            let (piece, behind) = rest.split_at(length);
            found.frame.write_at(found.offset, piece);
            rest = behind;
        })
    }

    /// Copies the bytes from `virt` up to one that is zero, without that: at most `max` bytes.
    ///
    /// # Errors
    ///
    /// [`StringError`]. Does not block.
    pub fn copy_in_str(&self, virt: u64, max: usize) -> Result<Vec<u8>, StringError> {
        let mut text = Vec::new();
        loop {
            let at = virt.saturating_add(text.len() as u64);
            let in_page = (PAGE_SIZE - at % PAGE_SIZE) as usize;
            let start = text.len();
            // One byte more than may be had, for the zero behind it.
            text.resize(start + in_page.min(max + 1 - start), 0);
            self.copy_in(at, &mut text[start..]).map_err(StringError::Fault)?;
            if let Some(end) = text[start..].iter().position(|byte| *byte == 0) {
                text.truncate(start + end);
                return Ok(text);
            }
            if text.len() > max {
                return Err(StringError::TooLong);
            }
        }
    }

    /// Calls `action` with each piece of `length` bytes at `virt` that is in one page.
    fn pieces(
        &self,
        virt: u64,
        length: usize,
        access: Access,
        mut action: impl FnMut(Translation<'_>, usize),
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < length {
            let address = virt.saturating_add(done as u64);
            let found = self.translate(address).filter(|found| match access {
                Access::Read => true,
                Access::Write => found.rights.write,
                Access::Execute => found.rights.execute,
            });
            let found = found.ok_or(Fault { address, access })?;
            let in_page = (PAGE_SIZE - address % PAGE_SIZE) as usize;
            let piece = in_page.min(length - done);
            action(found, piece);
            done += piece;
        }
        Ok(())
    }
}

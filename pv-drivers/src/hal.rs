//! Memory that a device sees: the [`Hal`] of `virtio-drivers`.
//!
//! A device may read and write all of its guest's memory by guest-physical address, so to share a buffer is to say where it is.
//! One that is in no memory that the host can see is shared as a copy.

#![expect(unsafe_code, reason = "an implementation of Hal")]

use alloc::vec::Vec;
use core::ptr::NonNull;
use guest_sdk::frames::{self, Frame};
use guest_sdk::memory::{in_direct_map, phys_of};
use guest_sdk::sync::Lock;
use hv_abi::{GuestPhys, PAGE_SIZE};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

/// What `virtio-drivers` knows of a guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct GuestHal;

/// Frames that are lent to devices, or hold a copy for one.
static LENT: Lock<Vec<Frame>> = Lock::new(Vec::new());

/// Takes zeroed memory of so many bytes at least.
fn lend(bytes: usize) -> Option<(PhysAddr, NonNull<u8>)> {
    let order = bytes.div_ceil(PAGE_SIZE as usize).next_power_of_two().ilog2();
    let frame = frames::allocate_zeroed(order).ok()?;
    let phys = frame.phys();
    let virt = NonNull::new(in_direct_map(phys))?;
    LENT.lock().push(frame);
    Some((phys.0, virt))
}

/// How many frames are lent.
#[cfg(test)]
pub(crate) fn lent() -> usize {
    LENT.lock().len()
}

/// Gives it back; whether it was lent.
fn take_back(phys: PhysAddr) -> Option<Frame> {
    let mut lent = LENT.lock();
    let at = lent.iter().position(|frame| frame.phys() == GuestPhys(phys))?;
    Some(lent.swap_remove(at))
}

// SAFETY: `dma_alloc` gives pages of a frame: aligned, zeroed, in the direct map, which is always mapped, and nobody's but the
// caller's until `dma_dealloc`. `share` gives the address of the buffer itself, or of a frame with a copy of it.
unsafe impl Hal for GuestHal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        // P 0 says that there is none: it is never a frame's.
        lend(pages * PAGE_SIZE as usize).unwrap_or((0, NonNull::dangling()))
    }

    unsafe fn dma_dealloc(phys: PhysAddr, _: NonNull<u8>, _: usize) -> i32 {
        if take_back(phys).is_some() { 0 } else { -1 }
    }

    /// # Panics
    ///
    /// There are no memory-mapped registers.
    unsafe fn mmio_phys_to_virt(_: PhysAddr, _: usize) -> NonNull<u8> {
        unreachable!("devices have no memory-mapped registers here")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        // SAFETY: the caller says that it is valid, and accessed by nobody else.
        let bytes = unsafe { buffer.as_ref() };
        if let Some(phys) = phys_of(bytes) {
            return phys.0;
        }
        let (phys, copy) = lend(bytes.len()).expect("memory for a copy of a buffer");
        if direction != BufferDirection::DeviceToDriver {
            // SAFETY: the copy is as long, at least, and new.
            unsafe { copy.copy_from_nonoverlapping(buffer.cast(), bytes.len()) };
        }
        phys
    }

    unsafe fn unshare(phys: PhysAddr, mut buffer: NonNull<[u8]>, direction: BufferDirection) {
        if let Some(copy) = take_back(phys)
            && direction != BufferDirection::DriverToDevice
        {
            // SAFETY: the caller says that it is valid, and accessed by nobody else.
            copy.read_at(0, unsafe { buffer.as_mut() });
        }
    }
}

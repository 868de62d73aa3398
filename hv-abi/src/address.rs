//! Addresses, and the parts of the guest-virtual address space that are spoken for.
//!
//! A guest has the lower half of the 64-bit address space, except PML4 slot 255, which is the hypervisor's:
//! it holds the hypercall page and the vCPU pages. No address inside slot 255 may be stored in guest memory
//! other than the fixed ones named here, so that a saved guest can go on under another engine.

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A guest-physical address. It is a claim until the host has checked it, and on the host it cannot be
/// dereferenced: only guest memory turns it into bytes.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct GuestPhys(pub u64);
const _: () = assert!(size_of::<GuestPhys>() == 8 && align_of::<GuestPhys>() == 8);

impl fmt::Debug for GuestPhys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "P:{:#x}", self.0)
    }
}

/// Lowest guest-virtual address that can ever be mapped; below it a null pointer always faults.
pub const LOWEST_MAPPABLE: u64 = 0x1_0000;

/// First address above PML4 slot 254, the last slot that a guest may map: where slot 255 begins.
pub const SLOT_255: u64 = 0x7f80_0000_0000;

/// Guest-virtual address of the hypercall page, the same in every guest; its entries are in [`entry`].
pub const HYPERCALL_PAGE: u64 = SLOT_255;

/// Guest-virtual address of vCPU 0's page; vCPU `n`'s is at `VCPU_PAGES + n * VCPU_STRIDE`. In the guest
/// kernel, the GS base of vCPU `n` is that address, too.
pub const VCPU_PAGES: u64 = SLOT_255 + 0x20_0000;

/// Bytes from one vCPU's page to the next one's. What lies between them is the engine's.
pub const VCPU_STRIDE: u64 = 0x2_0000;

/// Bytes from a vCPU's page to the clock page behind it, which is read-only.
pub const CLOCK_PAGE: u64 = 0x1000;

/// The most vCPUs that a VM can have.
pub const MAX_VCPUS: u32 = 64;

/// Guest-virtual address of the direct map: guest-physical address `p` is mapped, readable and writable, at
/// `DIRECT_MAP + p`. Boot information repeats it, and guests should take it from there.
pub const DIRECT_MAP: u64 = 0x1000_0000_0000;

/// The most guest-physical memory that a VM can have, in bytes: 512 GiB.
pub const MAX_MEMORY: u64 = 512 << 30;

/// First guest-virtual address of the guest kernel's own mappings, which go up to [`SLOT_255`]: what the page tables under
/// [`BootInfo::kernel_root`](crate::boot::BootInfo::kernel_root) translate. It is PML4 slot 33; image and direct map lie
/// below.
pub const KERNEL_SPACE: u64 = DIRECT_MAP + MAX_MEMORY;
const _: () = assert!(KERNEL_SPACE == 33 << 39);

/// Byte offsets of the entry points within the hypercall page. Each is called as a function of the System V
/// calling convention and preserves what that convention preserves.
pub mod entry {
    /// `(call, a0, a1, a2, a3, a4) -> (status, value)`: makes a hypercall.
    pub const CALL: u64 = 0x00;
    /// `(deadline) -> (status, value)`: gives the CPU back until an event or the deadline.
    pub const BLOCK: u64 = 0x40;
    /// Jumped to, not called, with RSP at an [`UpcallFrame`](crate::vcpu::UpcallFrame): ends an upcall.
    pub const UPCALL_RETURN: u64 = 0x80;
    /// `(root, context) -> (status, trap)`: runs a guest user program until it traps. Not yet served: calling
    /// it gives `UNKNOWN_CALL`.
    pub const ENTER_USER: u64 = 0xc0;
}

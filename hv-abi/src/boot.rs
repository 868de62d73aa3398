//! Boot information: what a guest kernel is told at its first instruction.
//!
//! The image's entry point is entered with RDI = guest-virtual address of a [`BootInfo`] in the direct map, RSP
//! undefined (an image brings its own stack), upcalls and all channels masked, and flags, x87 and SSE state as
//! the System V ABI has them at process start.

use crate::{CpuFeatures, Features, GuestPhys};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First field of [`BootInfo`]: `hvboot` and two zeros, read as a little-endian number.
pub const MAGIC: u64 = u64::from_le_bytes(*b"hvboot\0\0");

/// A run of bytes in guest-physical memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Blob {
    /// Where it begins.
    pub start: GuestPhys,
    /// Its length; bytes for text and files, entries for tables.
    pub length: u64,
}
const _: () = assert!(size_of::<Blob>() == 16);

/// What a guest kernel is told about the machine. Lives in guest memory that the memory map calls
/// [`region::BOOT`]; a guest may reuse it once it has read everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BootInfo {
    /// [`MAGIC`].
    pub magic: u64,
    /// Version of the ABI that the host serves.
    pub abi_version: u32,
    /// Bytes of this structure as the host knows it; later versions only append.
    pub size: u32,
    /// Features in force: what the image's note needs, and of what it likes, what the host has.
    pub features: Features,
    /// Guest-physical memory, in bytes: it is one run from 0.
    pub memory_size: u64,
    /// Where that memory is mapped, readable and writable: P is at `direct_map + P`.
    pub direct_map: u64,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Zero.
    pub reserved: u32,
    /// Command line: UTF-8, arguments separated by a zero byte, none at the end.
    pub command_line: Blob,
    /// Ramdisk; length 0 if there is none.
    pub ramdisk: Blob,
    /// Table of [`MemoryRegion`], sorted by address, without overlap, covering all memory.
    pub memory_map: Blob,
    /// Table of [`DeviceEntry`](crate::device::DeviceEntry), in a region [`region::DEVICE`]; empty without the feature `DEVICES`.
    pub devices: Blob,
    /// Root page table of the guest kernel, in a region [`region::ROOT`]; 0 if the feature `MMU` is not in force.
    pub kernel_root: GuestPhys,
    /// Instructions beyond baseline x86-64 that the guest may use.
    pub cpu_features: CpuFeatures,
    /// Bytes of an `XSAVE` area in standard format, with all components of `xstate_mask`.
    pub xstate_size: u64,
    /// Components of extended state in use (XCR0).
    pub xstate_mask: u64,
    /// Frequency of the time-stamp counter, in Hz, as well as the host knows it. For display; the clock page is
    /// what time is read from.
    pub tsc_hz: u64,
    /// Random bytes from the host's generator, different for every start. After a restore or a clone the guest gets
    /// fresh ones elsewhere (docs/abi.md, "Restore"): this memory may be reused by then.
    pub seed: [u8; 32],
}
const _: () = assert!(size_of::<BootInfo>() == 184);
const _: () = assert!(core::mem::offset_of!(BootInfo, command_line) == 48);
const _: () = assert!(core::mem::offset_of!(BootInfo, seed) == 152);

/// One run of guest-physical memory and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MemoryRegion {
    /// Where it begins; page-aligned.
    pub start: GuestPhys,
    /// Bytes, whole pages.
    pub length: u64,
    /// One of [`region`].
    pub kind: u32,
    /// [`region::ZERO`] or 0.
    pub flags: u32,
}
const _: () = assert!(size_of::<MemoryRegion>() == 24);

/// Kinds and flags of a [`MemoryRegion`].
pub mod region {
    /// Free for the guest.
    pub const USABLE: u32 = 1;
    /// Holds the guest image.
    pub const IMAGE: u32 = 2;
    /// Holds boot information, command line and memory map.
    pub const BOOT: u32 = 3;
    /// Holds the ramdisk.
    pub const RAMDISK: u32 = 4;
    /// Holds the table of devices and their pages.
    pub const DEVICE: u32 = 5;
    /// Holds the guest kernel's root page table.
    pub const ROOT: u32 = 6;
    /// Flag: every byte is already zero; nobody need clear it again.
    pub const ZERO: u32 = 1 << 0;
}

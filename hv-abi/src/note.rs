//! The ELF note by which an image says what it is.
//!
//! A `PT_NOTE` segment holds one note with owner [`OWNER`] and type [`TYPE`] whose descriptor is an
//! [`ImageNote`]. The host reads it before the first guest instruction and refuses an image that it cannot serve.

use crate::Features;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The note's owner, without the terminating zero that ELF adds.
pub const OWNER: &str = "hv";

/// The note's type.
pub const TYPE: u32 = 1;

/// The note's descriptor. Little-endian, like everything here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ImageNote {
    /// [`ABI_VERSION`](crate::ABI_VERSION) of the crate that the image was built with.
    pub abi_version: u32,
    /// Zero; a host refuses anything else.
    pub reserved: u32,
    /// Features without which the image cannot run.
    pub needed: Features,
    /// Features that the image uses when they are there.
    pub liked: Features,
    /// Least guest-physical memory that the image runs with, in bytes.
    pub least_memory: u64,
}
const _: () = assert!(size_of::<ImageNote>() == 32 && core::mem::offset_of!(ImageNote, least_memory) == 24);

/// A whole note, as it stands in the image: header, owner, descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct ElfNote {
    /// Bytes of `owner` with its zero: 3.
    pub owner_size: u32,
    /// Bytes of `image`: 32.
    pub descriptor_size: u32,
    /// [`TYPE`].
    pub kind: u32,
    /// [`OWNER`], zero-padded to four bytes.
    pub owner: [u8; 4],
    /// The descriptor, as 32 bytes: a note is only four-byte aligned.
    pub image: [u8; 32],
}
const _: () = assert!(size_of::<ElfNote>() == 48 && core::mem::offset_of!(ElfNote, image) == 16);

impl ElfNote {
    /// The note of an image that needs `needed`, likes `liked` and runs with `least_memory` bytes or more.
    pub const fn new(needed: Features, liked: Features, least_memory: u64) -> Self {
        let mut image = [0; 32];
        put(&mut image, 0, crate::ABI_VERSION as u64);
        put(&mut image, 8, needed.bits());
        put(&mut image, 16, liked.bits());
        put(&mut image, 24, least_memory);
        Self { owner_size: 3, descriptor_size: 32, kind: TYPE, owner: *b"hv\0\0", image }
    }
}

/// Writes `value` little-endian at `at`.
const fn put(bytes: &mut [u8; 32], at: usize, value: u64) {
    let value = value.to_le_bytes();
    let mut i = 0;
    while i < 8 {
        bytes[at + i] = value[i];
        i += 1;
    }
}

//! Packets between the guest and the device, as they are in the rings (Virtual I/O Device 1.3, section 5.10.6).

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What begins each packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Header {
    pub source_cid: u32,
    pub source_cid_high: u32,
    pub destination_cid: u32,
    pub destination_cid_high: u32,
    pub source_port: u32,
    pub destination_port: u32,
    /// Bytes of data behind the header.
    pub length: u32,
    /// What kind of socket: [`STREAM`].
    pub kind: u16,
    /// One of [`operation`].
    pub operation: u16,
    pub flags: u32,
    /// Bytes that the sender has room for, in all, and that it has passed on so far (modulo 2^32).
    pub buffer: u32,
    pub forwarded: u32,
}
const _: () = assert!(size_of::<Header>() == 44);

/// The one kind of socket.
pub(super) const STREAM: u16 = 1;

pub(super) mod operation {
    pub(crate) const REQUEST: u16 = 1;
    pub(crate) const RESPONSE: u16 = 2;
    pub(crate) const RESET: u16 = 3;
    pub(crate) const SHUTDOWN: u16 = 4;
    pub(crate) const DATA: u16 = 5;
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// In the flags of a shutdown: what its sender will not do any more.
pub(super) mod closed {
    pub(crate) const RECEIVES: u32 = 1;
    pub(crate) const SENDS: u32 = 2;
    pub(crate) const BOTH: u32 = RECEIVES | SENDS;
}

/// The two ports of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub guest: u32,
    pub host: u32,
}

//! Requests that are a run of bytes, one way or the other.

use crate::queue::{Buffers, Parts};
use alloc::vec::Vec;

/// Room for the device to fill.
pub(crate) struct Inbound(pub Vec<u8>);

/// Bytes for the device to read.
pub(crate) struct Outbound(pub Vec<u8>);

impl Buffers for Inbound {
    fn parts<'a>(&'a mut self, parts: &mut Parts<'a>) {
        parts.write(&mut self.0);
    }
}

impl Buffers for Outbound {
    fn parts<'a>(&'a mut self, parts: &mut Parts<'a>) {
        parts.read(&self.0);
    }
}

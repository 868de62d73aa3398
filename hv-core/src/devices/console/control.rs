//! What a console's driver and device tell each other of its ports (Virtual I/O Device 1.3, section 5.3.6.2).

use zerocopy::{FromBytes, Immutable, IntoBytes};

#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Control {
    pub port: u32,
    /// One of [`event`].
    pub event: u16,
    pub value: u16,
}

pub(super) mod event {
    pub(crate) const DEVICE_READY: u16 = 0;
    pub(crate) const PORT_ADD: u16 = 1;
    pub(crate) const PORT_READY: u16 = 3;
    pub(crate) const CONSOLE_PORT: u16 = 4;
    pub(crate) const RESIZE: u16 = 5;
    pub(crate) const PORT_OPEN: u16 = 6;
    pub(crate) const PORT_NAME: u16 = 7;
}

/// A message, and what is behind it.
pub(super) fn message(port: usize, event: u16, value: u16, rest: &[u8]) -> Vec<u8> {
    let control = Control { port: port as u32, event, value };
    [control.as_bytes(), rest].concat()
}

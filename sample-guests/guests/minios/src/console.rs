//! The console.
//!
//! Writing is a hypercall. There is nothing to read yet: input comes with the console device, and this is the place to
//! plug it in; its event then has to wake those who wait as for a pipe. Until then whoever reads is told that it has ended.

/// Writes. The host takes all.
pub fn write(bytes: &[u8]) {
    guest_sdk::console::write(bytes);
}

/// Takes what was typed, as much as fits; 0 if nobody will ever type anything. `None`: nothing yet, ask again.
pub fn read(_buffer: &mut [u8]) -> Option<usize> {
    Some(0)
}

/// Whether anybody can type.
pub fn has_input() -> bool {
    false
}

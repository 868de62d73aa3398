//! The console.
//!
//! It is no terminal: bytes come as they were typed and are not shown. Who wants a line edited does that itself, as the
//! shell does.

use guest_sdk::events::Channel;
use guest_sdk::hypercall;

/// Writes. The host takes all.
pub fn write(bytes: &[u8]) {
    guest_sdk::console::write(bytes);
}

/// Takes what was typed, as much as fits; 0 if nobody will ever type anything. `None`: nothing yet, ask again when
/// [`input_came`] says so.
pub fn read(buffer: &mut [u8]) -> Option<usize> {
    guest_sdk::console::read(buffer)
}

/// Whether anybody can type.
pub fn has_input() -> bool {
    hypercall::console_read(&mut []).is_ok()
}

/// Has this vCPU, to which the console's events go, woken by them.
pub fn listen() {
    Channel::CONSOLE.unmask();
}

/// Whether there is something to read, or an end, since the last time. For the vCPU that listens.
pub fn input_came() -> bool {
    Channel::CONSOLE.take()
}

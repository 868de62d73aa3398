//! The console.
//!
//! It is no terminal: bytes come as they were typed and are not shown. Who wants a line edited does that itself, as the
//! shell does.

use guest_sdk::events::{Channel, without_upcalls};
use guest_sdk::hypercall;

/// Writes. The host takes all.
pub fn write(bytes: &[u8]) {
    guest_sdk::console::write(bytes);
}

/// Takes what was typed, as much as fits; 0 if nobody will ever type anything. `None`: nothing yet, ask again when
/// [`input_came`] says so.
pub fn read(buffer: &mut [u8]) -> Option<usize> {
    let read = guest_sdk::console::read(buffer);
    if read.is_none() {
        Channel::CONSOLE.unmask();
    }
    read
}

/// Whether anybody can type.
pub fn has_input() -> bool {
    hypercall::console_read(&mut []).is_ok()
}

/// Whether there is something to read, or an end, since the last time.
pub fn input_came() -> bool {
    Channel::CONSOLE.take()
}

/// Gives the processor back until a moment, on the guest's clock in nanoseconds, or until an event. Not if input has come:
/// nobody has looked yet.
pub fn block(until: u64) {
    // Masked, so that no input comes between the look and the sleep.
    without_upcalls(|| {
        if !Channel::CONSOLE.is_pending() {
            hypercall::block(until);
        }
    });
}

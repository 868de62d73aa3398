//! What a guest's panic does: it tells the host the message and the place, and the VM ends.

use core::fmt::Write;
use core::panic::PanicInfo;
use hv_abi::call::PANIC_TEXT_MAX;

/// Room for the message; what is longer is cut. On the stack, since the heap may be what panicked.
struct Message {
    bytes: [u8; 1024],
    used: usize,
}

const _: () = assert!(1024 <= PANIC_TEXT_MAX);

impl Write for Message {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.len() - self.used;
        let length = text.floor_char_boundary(room);
        self.bytes[self.used..][..length].copy_from_slice(&text.as_bytes()[..length]);
        self.used += length;
        if length == text.len() { Ok(()) } else { Err(core::fmt::Error) } // what follows the cut is left out, too
    }
}

/// Ends the VM with the panic's message and place. `entry!` makes this the panic handler.
pub fn handle(info: &PanicInfo<'_>) -> ! {
    let (file, line, column) = info.location().map_or(("", 0, 0), |l| (l.file(), l.line(), l.column()));
    end(info.message(), file, line, column)
}

/// Ends the VM as panicked.
pub(crate) fn end(text: impl core::fmt::Display, file: &str, line: u32, column: u32) -> ! {
    let mut message = Message { bytes: [0; 1024], used: 0 };
    let _ = write!(message, "{text}"); // fails if it is cut
    let _ = crate::hypercall::panic(&message.bytes[..message.used], file.as_bytes(), line, column);
    // The host refused the report, which is a fault of this SDK; the code says so at least.
    crate::hypercall::shutdown(101)
}

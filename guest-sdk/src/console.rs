//! Text to the console.

use core::fmt::{self, Write};
use hv_abi::call::CONSOLE_WRITE_MAX;

/// Prints to the console, as `std`'s `print!` does.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(format_args!($($argument)*)) };
}

/// Prints a line to the console, as `std`'s `println!` does. A line of up to 512 bytes is one hypercall.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}

/// Collects text, so that a line is one hypercall.
struct Buffer {
    bytes: [u8; 512],
    used: usize,
}

impl Buffer {
    fn flush(&mut self) {
        write(&self.bytes[..self.used]);
        self.used = 0;
    }
}

impl Write for Buffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > self.bytes.len() - self.used {
            self.flush();
        }
        if text.len() > self.bytes.len() {
            write(text.as_bytes());
        } else {
            self.bytes[self.used..][..text.len()].copy_from_slice(text.as_bytes());
            self.used += text.len();
        }
        Ok(())
    }
}

/// Writes bytes to the console. What the host refuses is lost: a console has nowhere to report it.
pub fn write(bytes: &[u8]) {
    for chunk in bytes.chunks(CONSOLE_WRITE_MAX as usize) {
        let _ = crate::hypercall::console_write(chunk);
    }
}

/// What `print!` calls.
#[doc(hidden)]
pub fn print(arguments: fmt::Arguments<'_>) {
    let mut buffer = Buffer { bytes: [0; 512], used: 0 };
    let _ = buffer.write_fmt(arguments); // fails only if a `Display` does; what came before is printed
    buffer.flush();
}

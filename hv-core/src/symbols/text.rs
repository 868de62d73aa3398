//! An image's names as a report can show them: one line each, of bounded length, demangled.

use core::fmt::{self, Write};

/// Bytes of a function's name or a file's.
pub(crate) const LONGEST_TEXT: usize = 4096;

/// Text of one line and some length.
struct Line(String);

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for char in text.chars() {
            let char = if char.is_control() { char::REPLACEMENT_CHARACTER } else { char };
            if self.0.len() + char.len_utf8() > LONGEST_TEXT {
                return Err(fmt::Error);
            }
            self.0.push(char);
        }
        Ok(())
    }
}

fn line(text: impl fmt::Display) -> String {
    let mut line = Line(String::new());
    let _ = write!(line, "{text:#}"); // what is too long is cut
    line.0
}

/// A file's or directory's name.
pub(super) fn text(bytes: &[u8]) -> String {
    line(String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_TEXT)]))
}

/// A function's name, demangled if it is Rust's.
pub(super) fn function_name(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(LONGEST_TEXT)];
    line(rustc_demangle::demangle(&String::from_utf8_lossy(bytes)))
}

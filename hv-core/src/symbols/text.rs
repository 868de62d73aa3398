//! An image's names as a report can show them: one line each, of bounded length, demangled.

use core::fmt::{self, Write};

/// Bytes of a function's name or a file's.
pub(crate) const LONGEST_TEXT: usize = 1024;
/// Bytes of a name as it is in the image. Demangled, most are shorter.
const LONGEST_NAME: usize = 4 * LONGEST_TEXT;

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
    line(String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_NAME)]))
}

/// A function's name, demangled if it is Rust's.
pub(super) fn function_name(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(LONGEST_NAME)];
    line(rustc_demangle::demangle(&String::from_utf8_lossy(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_line_of_bounded_length() {
        assert_eq!(function_name(b"_RNvC1a1b"), "a::b");
        assert_eq!(function_name(b"a\nb\x1b[2J"), "a\u{fffd}b\u{fffd}[2J");
        assert_eq!(text(&[b'/'; 1 << 20]).len(), LONGEST_TEXT);
        // Types within types: a slice of slices, and tuples of what stands before them.
        let slices = [&b"_RMC0"[..], &[b'S'; 4000], b"u"].concat();
        let tuples = [&b"_RMC0"[..], &b"TTTTTTTTuB4_EB3_B3_B3_EB2_B2_EB1_B1_EB0_B0_E".repeat(50)].concat();
        for name in [slices, tuples] {
            assert!(function_name(&name).len() <= LONGEST_TEXT);
        }
    }
}

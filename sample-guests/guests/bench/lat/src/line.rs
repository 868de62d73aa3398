//! A line of text, written by one system call, so that what a system says of itself does not come between.

use crate::System;
use core::fmt::{self, Write};

const OUTPUT: u32 = 1;

/// Text that is gathered; what is longer than a line may be is an error of who writes it.
pub(crate) struct Line {
    bytes: [u8; 2048],
    used: usize,
}

impl Line {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; 2048], used: 0 }
    }

    pub(crate) fn print<S: System>(&self) {
        S::write(OUTPUT, &self.bytes[..self.used]);
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.used + text.len();
        self.bytes.get_mut(self.used..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.used = end;
        Ok(())
    }
}

pub(crate) fn print<S: System>(text: fmt::Arguments<'_>) {
    let mut line = Line::new();
    line.write_fmt(text).expect("a line is short");
    line.print::<S>();
}

//! `echo WORD..`: writes its arguments.

#![no_std]
#![no_main]

use core::fmt::Write;
use os::io::Output;

os::entry!(main);

fn main() -> i32 {
    let mut output = Output::new();
    for (i, word) in os::arguments().iter().enumerate() {
        let blank = if i > 0 { " " } else { "" };
        let _ = write!(output, "{blank}{word}"); // output takes all
    }
    output.bytes(b"\n");
    0
}

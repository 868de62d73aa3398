//! `ls`: lists the files, with their lengths.

#![no_std]
#![no_main]

use core::fmt::Write;
use os::io::{self, Output};

os::entry!(main);

fn main() -> i32 {
    let mut output = Output::new();
    for file in io::files() {
        let _ = writeln!(output, "{:8} {}", file.size, file.name.as_str()); // output takes all
    }
    0
}

//! `ls [PATH..]`: lists directories, and the lengths of files.

#![no_std]
#![no_main]

use core::fmt::Write;
use os::io::{self, Output, file_kind};

os::entry!(main);

fn main() -> i32 {
    let paths = os::arguments();
    let mut status = 0;
    for path in if paths.is_empty() { &["/"] } else { paths } {
        if paths.len() > 1 {
            os::println!("{path}:");
        }
        if let Err(error) = list(path) {
            os::eprintln!("ls: {path}: {error}");
            status = 1;
        }
    }
    status
}

fn list(path: &str) -> os::Result<()> {
    let mut output = Output::new();
    for file in io::list(path)? {
        let mark = if file.kind == file_kind::DIRECTORY { "/" } else { "" };
        let _ = writeln!(output, "{:8} {}{mark}", file.size, file.name()); // output takes all
    }
    Ok(())
}

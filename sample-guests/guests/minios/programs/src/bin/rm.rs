//! `rm [-r] PATH..`: removes files and empty directories; with `-r`, directories and all that is in them.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use os::io::{self, file_kind};
use os::{Error, Result};

os::entry!(main);

fn main() -> i32 {
    match os::arguments() {
        ["-r", paths @ ..] => os::each_of("rm", paths, remove_all),
        paths => os::each_of("rm", paths, io::remove),
    }
}

/// By depth, as far as the stack goes: deeper than a path can name is no directory.
fn remove_all(path: &str) -> Result<()> {
    match io::remove(path) {
        Err(Error::NotEmpty) => {}
        done => return done,
    }
    for file in io::list(path)? {
        let inner = format!("{path}/{}", file.name());
        if file.kind == file_kind::DIRECTORY { remove_all(&inner)? } else { io::remove(&inner)? }
    }
    io::remove(path)
}

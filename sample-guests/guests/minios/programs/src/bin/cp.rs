//! `cp [-r] FROM TO`: copies a file; with `-r`, a directory and all that is in it. What has the new name is written over.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use os::io::{self, file_kind};
use os::{Error, Result};

os::entry!(main);

fn main() -> i32 {
    let copied = match os::arguments() {
        ["-r", from, to] => copy_all(from, to),
        [from, to] => copy(from, to),
        _ => {
            os::eprintln!("usage: cp [-r] FROM TO");
            return 2;
        }
    };
    match copied {
        Ok(()) => 0,
        Err(error) => {
            os::eprintln!("cp: {error}");
            1
        }
    }
}

fn copy(from: &str, to: &str) -> Result<()> {
    let input = io::open(from)?;
    let output = io::create(to).inspect_err(|_| io::close(input))?;
    let copied = io::copy(input, output);
    io::close(input);
    io::close(output);
    copied
}

fn copy_all(from: &str, to: &str) -> Result<()> {
    let files = match io::list(from) {
        Err(Error::NotDirectory) => return copy(from, to),
        files => files?,
    };
    match io::make_directory(to) {
        Ok(()) | Err(Error::Exists) => {}
        error => return error,
    }
    for file in files.iter().filter(|file| file.kind != file_kind::OTHER) {
        copy_all(&format!("{from}/{}", file.name()), &format!("{to}/{}", file.name()))?;
    }
    Ok(())
}

//! `cat [FILE..]`: writes files, or what it reads.

#![no_std]
#![no_main]

use os::Error;
use os::io::{self, descriptor};
use os::process;

os::entry!(main);

fn main() -> i32 {
    let mut status = 0;
    let all =
        io::each_input("cat", os::arguments(), |name, input| match io::copy(input, descriptor::OUTPUT) {
            Ok(()) => {}
            Err(Error::BrokenPipe) => process::exit(io::NOBODY_READS),
            Err(error) => {
                os::eprintln!("cat: {}: {error}", name.unwrap_or("input"));
                status = 1;
            }
        });
    if all { status } else { 1 }
}

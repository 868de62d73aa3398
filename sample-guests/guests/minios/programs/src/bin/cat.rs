//! `cat [FILE..]`: writes files, or what it reads.

#![no_std]
#![no_main]

use os::io::{self, Output, descriptor};

os::entry!(main);

fn main() -> i32 {
    let all = io::each_input("cat", os::arguments(), |_, input| copy(input));
    i32::from(!all)
}

fn copy(input: u32) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = io::read(input, &mut buffer) {
        let mut output = Output::to(descriptor::OUTPUT);
        output.bytes(&buffer[..length]);
    }
}

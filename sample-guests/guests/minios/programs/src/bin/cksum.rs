//! `cksum [FILE..]`: a checksum and the length of each file, as POSIX has them.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;
use os::io;

os::entry!(main);

/// The polynomial that POSIX says.
const POLYNOMIAL: u32 = 0x04c1_1db7;

/// What a byte adds.
static TABLE: [u32; 256] = table();

fn main() -> i32 {
    let all = io::each_input("cksum", os::arguments(), |name, input| {
        let (sum, length) = sum(input);
        match name {
            Some(name) => os::println!("{sum} {length} {name}"),
            None => os::println!("{sum} {length}"),
        }
    });
    i32::from(!all)
}

fn sum(input: u32) -> (u32, u64) {
    let (mut sum, mut length) = (0, 0);
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = io::read(input, &mut buffer) {
        sum = buffer[..read].iter().fold(sum, |sum, byte| add(sum, *byte));
        length += read as u64;
    }
    let mut rest = length;
    while rest != 0 {
        sum = add(sum, rest as u8);
        rest >>= 8;
    }
    (!sum, length)
}

fn add(sum: u32, byte: u8) -> u32 {
    (sum << 8) ^ TABLE[usize::from((sum >> 24) as u8 ^ byte)]
}

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut sum, mut bit) = ((byte as u32) << 24, 0);
        while bit < 8 {
            sum = if sum >> 31 == 1 { (sum << 1) ^ POLYNOMIAL } else { sum << 1 };
            bit += 1;
        }
        table[byte] = sum;
        byte += 1;
    }
    table
}

//! `true`: succeeds.

#![no_std]
#![no_main]

os::entry!(main);

fn main() -> i32 {
    0
}

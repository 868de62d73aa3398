//! `mkdir PATH..`: makes directories.

#![no_std]
#![no_main]

use os::io;

os::entry!(main);

fn main() -> i32 {
    os::each_of("mkdir", os::arguments(), io::make_directory)
}

//! `mount`: shows what file systems there are, and where.

#![no_std]
#![no_main]

use os::io;

os::entry!(main);

fn main() -> i32 {
    for mount in io::mounts() {
        os::println!("{:16} {}", mount.place.as_str(), mount.kind.as_str());
    }
    0
}

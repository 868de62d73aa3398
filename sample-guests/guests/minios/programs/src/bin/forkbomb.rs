//! `forkbomb`: makes processes that make processes, until the kernel gives no more. Each holds its place for a moment, so
//! that all of them get there, and ends after its children.

#![no_std]
#![no_main]

use core::time::Duration;
use os::process::{self, Fork};

os::entry!(main);

fn main() -> i32 {
    let first = process::own();
    let mut children = 0;
    let refusal = loop {
        match process::fork() {
            Ok(Fork::Child) => children = 0,
            Ok(Fork::Parent(_)) => children += 1,
            Err(refusal) => break refusal,
        }
    };
    process::sleep(Duration::from_millis(200));
    while process::wait(None).is_ok() {}
    if process::own() == first {
        os::println!("forkbomb: had {children} children of its own when it was told: {refusal}");
    }
    0
}

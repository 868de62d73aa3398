//! `pipebomb`: makes processes that fill as many pipes as they can have, until the kernel gives no more.

#![no_std]
#![no_main]

use core::time::Duration;
use os::io;
use os::process::{self, Fork};

os::entry!(main);

fn main() -> i32 {
    let first = process::own();
    let refusal = loop {
        while let Ok((_, write)) = io::pipe() {
            let _ = io::write(write, &[1; 16 << 10]); // exactly what a pipe holds, so it does not wait
        }
        match process::fork() {
            // A child lets go of what it was given and makes its own.
            Ok(Fork::Child) => (3..32).for_each(io::close),
            Ok(Fork::Parent(_)) => {}
            Err(refusal) => break refusal,
        }
    };
    process::sleep(Duration::from_millis(200));
    while process::wait(None).is_ok() {}
    if process::own() == first {
        os::println!("pipebomb: {refusal}");
    }
    0
}

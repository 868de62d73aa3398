//! `spin`: never ends, and never asks the kernel for anything.

#![no_std]
#![no_main]

os::entry!(main);

fn main() -> i32 {
    loop {
        core::hint::spin_loop();
    }
}

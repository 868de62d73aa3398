//! `free`: how much memory there is and how much is free, how many processes, and since when.

#![no_std]
#![no_main]

use os::process;

os::entry!(main);

fn main() -> i32 {
    match process::system() {
        Ok(info) => {
            let seconds = info.up_nanoseconds / 1_000_000_000;
            os::println!(
                "{} of {} KiB free, {} processes, up {seconds} s",
                info.free_pages * 4,
                info.pages * 4,
                info.processes
            );
            0
        }
        Err(error) => {
            os::eprintln!("free: {error}");
            1
        }
    }
}

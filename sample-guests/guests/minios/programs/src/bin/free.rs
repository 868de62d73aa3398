//! `free`: how much memory there is, how much is free and how much of it the host has, how many processes, and since when.

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
            os::println!(
                "the host has {} KiB of what is free, and {} KiB by the balloon, of which it wants {} KiB",
                info.reported_pages * 4,
                info.balloon_pages * 4,
                info.balloon_target * 4
            );
            0
        }
        Err(error) => {
            os::eprintln!("free: {error}");
            1
        }
    }
}

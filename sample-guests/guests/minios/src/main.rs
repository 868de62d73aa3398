//! A small operating system: fork, exec, pipes, files, copy-on-write, preemption, a shell.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::String;
use guest_sdk::{balloon, boot, println};
use minios::console;
use minios::files::Files;
use minios::kernel::Kernel;

guest_sdk::entry!(main, memory = 16 << 20);

/// The programs and other files, packed by the build script.
static FILES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/files.tar"));

/// Runs the shell with the guest's arguments. Without any, and with nobody to type, it is given something to show.
fn main() -> u8 {
    balloon::start();
    let mut arguments = String::from("sh");
    for argument in boot::arguments() {
        arguments.push('\0');
        arguments.push_str(argument);
    }
    if boot::arguments().next().is_none() && !console::has_input() {
        println!("Nobody can type here; this is what the shell would do if somebody typed it.\n");
        arguments.push_str("\0-v\0demo");
    }
    match Kernel::new(Files::new(&[boot::ramdisk(), FILES]), "sh", arguments.as_bytes()) {
        Ok(mut kernel) => kernel.run() as u8,
        Err(error) => {
            println!("minios: the shell cannot be started: {error}");
            1
        }
    }
}

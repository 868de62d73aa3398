//! A small operating system: fork, exec, pipes, files, copy-on-write, preemption, threads, several vCPUs, a shell.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::String;
use alloc::sync::Arc;
use guest_sdk::sync::Lock;
use guest_sdk::{balloon, boot, println, smp};
use minios::files::Files;
use minios::kernel::Kernel;
use minios::mounts::Mounts;
use minios::{console, disk, share, vcpu};

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
    let mut mounts = Mounts::new(Files::new(&[boot::ramdisk(), FILES]));
    share::mount_all(&mut mounts);
    disk::mount_all(&mut mounts);
    match Kernel::new(mounts, "sh", arguments.as_bytes()) {
        Ok(kernel) => run(Arc::new(Lock::new(kernel))),
        Err(error) => {
            println!("minios: the shell cannot be started: {error}");
            1
        }
    }
}

/// Runs the kernel on all vCPUs until it is over; whichever learns of that first ends the guest.
fn run(kernel: Arc<Lock<Kernel>>) -> u8 {
    for vcpu in 1..smp::count() {
        let kernel = kernel.clone();
        if let Err(status) = smp::start(vcpu, move || guest_sdk::process::exit(run_here(&kernel))) {
            println!("minios: goes on without vCPU {vcpu}: {status:?}");
        }
    }
    run_here(&kernel)
}

/// Runs it on this vCPU; gives the exit code.
fn run_here(kernel: &Lock<Kernel>) -> u8 {
    match vcpu::run(kernel) {
        Ok(status) => status as u8,
        Err(status) => panic!("no event channel for vCPU {}: {status:?}", smp::current()),
    }
}

//! `lat [ROUNDS [MICROSECONDS]]`: measures what minios charges a program. `hv bench process` runs it, and the same on the host.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "a system call by the processor's instruction")]

extern crate alloc;

use alloc::boxed::Box;
use core::fmt::Arguments;
use core::mem::MaybeUninit;
use lat::{Pipe, System};
use os::process::{self, Fork};
use os::{abi, io};

os::entry!(main);

fn main() -> i32 {
    lat::main::<Minios>(os::arguments().iter().copied());
    0
}

struct Minios;

impl System for Minios {
    const NULL_CALLS: &'static [(&'static str, fn())] = &[
        ("lat_syscall null", by_gate),
        ("lat_syscall null, rewritten", rewritten),
        ("lat_syscall null, trapped", trapped),
    ];

    fn now() -> u64 {
        process::system().expect("the kernel tells its time").up_nanoseconds
    }

    fn fork() -> Option<u32> {
        match process::fork().expect("there is room for a child") {
            Fork::Child => None,
            Fork::Parent(child) => Some(child),
        }
    }

    fn wait(child: u32) {
        assert_eq!(process::wait(Some(child)), Ok((child, 0)), "a child failed");
    }

    fn exit() -> ! {
        process::exit(0)
    }

    fn exec_exit() -> ! {
        panic!("{}", process::exec("lat", &["lat", "exit"]))
    }

    fn pipe() -> Pipe {
        let (read, write) = io::pipe().expect("there is room for a pipe");
        Pipe { read, write }
    }

    fn close(end: u32) {
        io::close(end);
    }

    fn send(end: u32) {
        io::write(end, b"x").expect("somebody reads");
    }

    fn receive(end: u32) -> bool {
        io::read(end, &mut [0]).expect("an end to read") == 1
    }

    fn fresh(length: usize) -> &'static mut [MaybeUninit<u8>] {
        Box::leak(Box::new_uninit_slice(length))
    }

    fn print(text: Arguments<'_>) {
        os::print!("{text}");
    }
}

fn by_gate() {
    process::own();
}

/// The same call by `SYSCALL`, as ordinary programs make it: the engine makes it a jump.
fn rewritten() {
    // SAFETY: the call touches no memory; as everywhere, RAX, RCX and R11 change.
    unsafe {
        core::arch::asm!(
            "mov eax, {}", "syscall", const abi::call::PROCESS,
            lateout("rax") _, lateout("rcx") _, lateout("r11") _, options(nostack),
        );
    }
}

/// The same with something between the number and the call, so that it stays a call, and traps.
fn trapped() {
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "mov eax, {}", "nop", "syscall", const abi::call::PROCESS,
            lateout("rax") _, lateout("rcx") _, lateout("r11") _, options(nostack),
        );
    }
}

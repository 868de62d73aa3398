//! `lat`: measures what minios charges a program. `hv bench process` runs it, and the same on the host; `bench/peers` does with
//! other systems, too.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "a system call by the processor's instruction")]

use core::time::Duration;
use lat::{Pipe, Region, System};
use os::process::{self, Fork};
use os::{abi, io, memory};

os::entry!(main);

fn main() -> i32 {
    lat::main::<Minios>(os::arguments().iter().copied());
    0
}

struct Minios;

impl System for Minios {
    type Region = Mapped;

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

    fn sleep() -> ! {
        loop {
            process::sleep(Duration::from_secs(1 << 20));
        }
    }

    fn pipe() -> Pipe {
        let (read, write) = io::pipe().expect("there is room for a pipe");
        Pipe { read, write }
    }

    fn close(end: u32) {
        io::close(end);
    }

    fn open(path: &str) -> u32 {
        io::open(path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn read(descriptor: u32, buffer: &mut [u8]) -> usize {
        io::read(descriptor, buffer).expect("an end to read")
    }

    fn write(descriptor: u32, bytes: &[u8]) {
        io::write(descriptor, bytes).expect("somebody reads");
    }
}

struct Mapped(memory::Region);

impl Region for Mapped {
    fn new(length: usize) -> Self {
        Self(memory::Region::new(length).expect("there is memory"))
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }

    fn while_read_only(&mut self, look: impl FnOnce(&[u8])) {
        self.0.while_read_only(look).expect("memory can be protected");
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

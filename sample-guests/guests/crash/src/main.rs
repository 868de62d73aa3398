//! Dies, each time in the way its argument names: what a report of each looks like.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "dying takes it")]

use core::arch::asm;
use core::hint::black_box;
use guest_sdk::println;

guest_sdk::entry!(main);

/// A way to die: its name, what it does, and the function.
type Way = (&'static str, &'static str, fn());

const WAYS: &[Way] = &[
    ("panic", "a Rust panic", || panic!("this is what a guest's panic looks like")),
    ("page-fault", "writes where nothing is mapped", page_fault),
    ("read-only", "writes to its own code", read_only),
    ("execute", "jumps to its own data", execute),
    ("null", "reads through a null pointer", null),
    ("illegal-instruction", "runs an instruction that does not exist", illegal_instruction),
    ("stack-overflow", "recurses until the guard page", || println!("{}", recurse(0))),
    ("divide", "divides by zero", divide),
    ("syscall", "makes a host system call", system_call),
    ("loop", "never ends; needs --timeout", endless),
];

fn main() -> u8 {
    let name = guest_sdk::boot::arguments().next().unwrap_or("");
    match WAYS.iter().find(|way| way.0 == name) {
        Some((_, _, way)) => way(),
        None => {
            println!("usage: crash WAY");
            WAYS.iter().for_each(|(name, about, _)| println!("  {name:<20} {about}"));
        }
    }
    2
}

#[inline(never)]
fn page_fault() {
    // SAFETY: not met: nothing is mapped there, which is the point.
    unsafe { black_box(0x1234_5678_9000 as *mut u64).write_volatile(1) };
}

#[inline(never)]
fn read_only() {
    // SAFETY: not met: code is not writable, which is the point.
    unsafe { (main as *mut u8).write_volatile(0) };
}

#[inline(never)]
fn execute() {
    static DATA: [u8; 16] = [0xc3; 16];
    // SAFETY: not met: data is not a function, which is the point.
    let data = unsafe { core::mem::transmute::<*const [u8; 16], fn()>(&raw const DATA) };
    black_box(data)();
}

#[inline(never)]
fn null() {
    // SAFETY: not met: null is never mapped, which is the point.
    black_box(unsafe { black_box(8 as *const u64).read_volatile() });
}

#[inline(never)]
fn illegal_instruction() {
    // SAFETY: not met: the instruction does not return, which is the point.
    unsafe { asm!("ud2") };
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let ballast = black_box([depth; 64]);
    recurse(depth + 1) + ballast[0]
}

#[inline(never)]
fn divide() {
    // SAFETY: not met: dividing by zero does not return, which is the point.
    unsafe { asm!("div {0}", in(reg) 0_u64, inout("rax") 1_u64 => _, inout("rdx") 0_u64 => _) };
}

#[inline(never)]
fn system_call() {
    const GETPID: u64 = 39;
    // SAFETY: not met: the host's system calls are not a guest's, which is the point.
    unsafe { asm!("syscall", inout("rax") GETPID => _, out("rcx") _, out("r11") _) };
}

#[inline(never)]
fn endless() {
    loop {
        black_box(0);
    }
}

//! A program's start and its end: what `entry!` expands to calls this.

#![expect(unsafe_code, reason = "the arguments are memory that the kernel filled")]

use crate::io::{self, descriptor};
use crate::process::exit;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use guest_user::System;
use minios_abi::Start;

/// What guest-user needs to know of minios.
pub struct Minios;

impl System for Minios {
    fn exit(code: u64) -> ! {
        exit(code as i32)
    }

    fn write(bytes: &[u8]) {
        let _ = io::write(descriptor::ERRORS, bytes); // it is a panic's text: there is nobody else to tell
    }
}

/// The arguments; the first is the program's name.
static ARGUMENTS: AtomicPtr<Vec<&'static str>> = AtomicPtr::new(core::ptr::null_mut());

/// Runs a program; gives its status. `start` is what the kernel put into RDI.
pub fn run(start: u64, main: fn() -> i32) -> i32 {
    // SAFETY: `from_raw_parts` needs memory that is readable and does not change: the kernel has put a `Start` and what it
    // names at the stack's end, above the first stack pointer, where nobody writes.
    let bytes = unsafe {
        let start = &*core::ptr::with_exposed_provenance::<Start>(start as usize);
        let arguments = core::ptr::with_exposed_provenance::<u8>(start.arguments as usize);
        core::slice::from_raw_parts(arguments, start.length as usize)
    };
    let words: Vec<&'static str> = core::str::from_utf8(bytes).unwrap_or_default().split('\0').collect();
    ARGUMENTS.store(Box::leak(words.into()), Relaxed);
    main()
}

/// The program's arguments, without its name.
pub fn arguments() -> &'static [&'static str] {
    let arguments = ARGUMENTS.load(Relaxed);
    // SAFETY: null, or what `start` has leaked, which nobody writes to.
    unsafe { arguments.as_ref() }.and_then(|all| all.get(1..)).unwrap_or_default()
}

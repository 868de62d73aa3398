//! A program's start and its end in a panic: what `entry!` expands to calls this.

#![expect(unsafe_code, reason = "the arguments are memory that the kernel filled")]

use crate::process::exit;
use alloc::vec::Vec;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};

/// Status of a program that panicked.
const PANICKED: i32 = 101;

/// The arguments; the first is the program's name.
static ARGUMENTS: AtomicPtr<Vec<&'static str>> = AtomicPtr::new(core::ptr::null_mut());

/// Runs a program.
pub fn start(arguments: *const u8, length: usize, main: fn() -> i32) -> ! {
    // SAFETY: `from_raw_parts` needs memory that is readable and does not change: `entry!` passes what the kernel has put
    // at the stack's end, above the first stack pointer, where nobody writes.
    let bytes = unsafe { core::slice::from_raw_parts(arguments, length) };
    let text = core::str::from_utf8(bytes).unwrap_or_default();
    let words: Vec<&'static str> = text.split('\0').collect();
    ARGUMENTS.store(alloc::boxed::Box::leak(words.into()), Relaxed);
    exit(main())
}

/// The program's arguments, without its name.
pub fn arguments() -> &'static [&'static str] {
    all_arguments().get(1..).unwrap_or_default()
}

fn all_arguments() -> &'static [&'static str] {
    let arguments = ARGUMENTS.load(Relaxed);
    // SAFETY: null, or what `start` has leaked, which nobody writes to.
    unsafe { arguments.as_ref() }.map_or(&[], Vec::as_slice)
}

/// Says so, and ends the program.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    crate::eprintln!("{}: {info}", all_arguments().first().copied().unwrap_or("?"));
    exit(PANICKED)
}

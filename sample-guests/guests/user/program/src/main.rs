//! The program that the sample guest `user` runs, four times.

#![no_std]
#![no_main]

use core::fmt::Write;
use guest_user::{Console, System, syscall};

guest_user::entry!(main, Kernel);

/// The sample guest's system calls.
struct Kernel;

#[expect(unsafe_code, reason = "system calls")]
impl System for Kernel {
    fn exit(code: u64) -> ! {
        // SAFETY: the call touches no memory.
        unsafe { syscall(0, [code, 0, 0, 0, 0, 0]) };
        unreachable!("a program that has exited does not go on")
    }

    fn write(bytes: &[u8]) {
        // SAFETY: the call reads the bytes.
        unsafe { syscall(1, [bytes.as_ptr().addr() as u64, bytes.len() as u64, 0, 0, 0, 0]) };
    }
}

fn main(what: u64) {
    match what {
        0 => Kernel::write(b"Hello from user mode.\n"),
        1 => {
            let page = core::ptr::without_provenance_mut::<u64>(0x7000_0000);
            #[expect(unsafe_code, reason = "memory that is there when it is used")]
            // SAFETY: the kernel makes a page there, readable and writable, at the first access.
            let sum = unsafe {
                page.write_volatile(40);
                page.read_volatile() + 2 + page.add(1).read_volatile()
            };
            let _ = writeln!(Console::<Kernel>::new(), "A page on demand says {sum}.");
        }
        #[expect(unsafe_code, reason = "it is to crash")]
        // SAFETY: not at all: nothing is there.
        2 => unsafe { core::ptr::without_provenance_mut::<u64>(0xdead_0000).write_volatile(1) },
        _ => loop {
            core::hint::spin_loop();
        },
    }
}

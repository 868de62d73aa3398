//! Host system calls, by every instruction that makes one.

#![expect(unsafe_code, reason = "system calls")]

use crate::Numbers;
use core::arch::asm;

/// `syscall`, `int 0x80`, `sysenter`, the vsyscall page.
pub fn make([method, number, _]: Numbers) {
    // SAFETY: not met: a guest has no host system calls, which is the point.
    unsafe {
        match method {
            0 => asm!("syscall", inout("rax") number => _, out("rcx") _, out("r11") _),
            1 => asm!("int 0x80", inout("rax") number => _),
            2 => asm!("sysenter", in("rax") number, options(noreturn)),
            _ => asm!(
                "call {0}",
                in(reg) 0xffff_ffff_ff60_0000 + (number % 4) * 0x400,
                out("rax") _, clobber_abi("sysv64")
            ),
        }
    }
}

//! `crash [WAY]`: does what the kernel does not let it do.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "doing wrong is what it is for")]

extern crate alloc;

use core::arch::asm;

os::entry!(main);

fn main() -> i32 {
    match os::arguments() {
        [] | ["null"] => touch(0),
        ["kernel"] => touch(0x1000_0000_0000),
        ["code"] => touch(main as fn() -> i32 as usize),
        ["stack"] => os::println!("{}", deep(0)),
        ["memory"] => grow(),
        // SAFETY: it raises an exception, and never comes back.
        ["illegal"] => unsafe { asm!("ud2") },
        // SAFETY: as above.
        ["privileged"] => unsafe { asm!("hlt") },
        // SAFETY: as above: a division by zero.
        ["divide"] => unsafe { asm!("xor ecx, ecx", "div ecx", out("ecx") _, out("eax") _, out("edx") _) },
        ["panic"] => panic!("on purpose"),
        _ => {
            os::eprintln!("usage: crash [null|kernel|code|stack|memory|illegal|privileged|divide|panic]");
            return 2;
        }
    }
    os::println!("crash: still here");
    0
}

/// Writes where it may not.
fn touch(address: usize) {
    // SAFETY: nothing of this program's is there, or nothing that may be written: the kernel ends it.
    unsafe { asm!("mov byte ptr [{}], 1", in(reg) address) };
}

/// Uses up the stack.
fn deep(level: u64) -> u64 {
    let room = core::hint::black_box([level; 64]);
    if room[0] == u64::MAX { 0 } else { deep(level + 1) + room[1] }
}

/// Uses up the memory.
fn grow() {
    loop {
        let mut piece = alloc::vec![0_u8; 1 << 20];
        piece.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        core::mem::forget(core::hint::black_box(piece));
    }
}

#![doc = include_str!("../README.md")]
//!
//! Start at [`entry!`] and [`System`].

#![no_std]

mod memory;

use core::fmt;
use core::marker::PhantomData;
use hv_abi::user::GATE;

/// What this crate needs of the kernel's system calls.
pub trait System {
    /// Ends the program.
    fn exit(code: u64) -> !;

    /// Writes to wherever the program's output goes. What cannot be written is lost.
    fn write(bytes: &[u8]);
}

/// Makes a system call by the usual convention: number in RAX, arguments in RDI, RSI, RDX, R10, R8, R9, result in RAX.
///
/// # Safety
///
/// What the kernel does to the program's memory on its account must be what the caller may have done.
#[expect(unsafe_code, reason = "a system call")]
pub unsafe fn syscall(number: u64, arguments: [u64; 6]) -> u64 {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: a call of the gate is a system call (docs/abi.md, "User mode"): it changes RAX, and what the kernel changes,
    // for which the caller answers. It pushes a return address, which a block without `nostack` may.
    unsafe {
        core::arch::asm!(
            "call {gate}",
            gate = in(reg) GATE,
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The program's output, for `write!`. Each piece of text is a [`System::write`].
pub struct Console<S>(PhantomData<S>);

impl<S> Console<S> {
    /// The output; there is one, however many of these there are.
    #[expect(clippy::new_without_default, reason = "it is written to, not kept")]
    pub const fn new() -> Self {
        Self(PhantomData)
    }
}

impl<S: System> fmt::Write for Console<S> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        S::write(text.as_bytes());
        Ok(())
    }
}

/// Makes `main` a program's entry: first instructions and panic handler. To be used once, in the binary.
///
/// `main` takes what the kernel put into RDI. When it returns, the program exits with code 0; when it panics, with the
/// message on the console and code 101. The kernel has set RSP to the upper end of a stack.
#[macro_export]
macro_rules! entry {
    ($main:path, $system:ty) => {
        #[panic_handler]
        fn guest_user_panic(info: &::core::panic::PanicInfo<'_>) -> ! {
            use ::core::fmt::Write;
            let _ = ::core::writeln!($crate::Console::<$system>::new(), "{info}");
            <$system as $crate::System>::exit(101)
        }

        // A zero frame pointer ends backtraces.
        ::core::arch::global_asm!(
            ".globl _start",
            ".type _start, @function",
            "_start:",
            "xor ebp, ebp",
            "and rsp, -16",
            "call guest_user_main",
            "ud2",
            ".size _start, . - _start",
        );

        #[unsafe(no_mangle)]
        extern "C" fn guest_user_main(argument: u64) -> ! {
            $main(argument);
            <$system as $crate::System>::exit(0)
        }
    };
}

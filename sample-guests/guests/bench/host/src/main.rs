//! `lat` for Linux, by raw system calls: the same on a host, in a container, and in other systems that are to be compared. Where
//! it is the first process, as in a VM without another, its end is the machine's.

#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "system calls")]

use core::ffi::{CStr, c_char};
use core::fmt::Write;
use core::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use guest_user as _; // for its memory functions
use lat::{Pipe, Region, System};

// The kernel starts a program with what it is told on the stack: the number of arguments, and their addresses.
core::arch::global_asm!(
    ".globl _start",
    ".type _start, @function",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call lat_main",
    "ud2",
    ".size _start, . - _start",
    // (rdi = text) -> its length; `core` refers to it
    ".globl strlen",
    "strlen:",
    "xor eax, eax",
    "2: cmp byte ptr [rdi + rax], 0",
    "je 3f",
    "inc rax",
    "jmp 2b",
    "3: ret",
);

/// Numbers of system calls.
mod number {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const OPEN: usize = 2;
    pub const CLOSE: usize = 3;
    pub const MMAP: usize = 9;
    pub const MPROTECT: usize = 10;
    pub const MUNMAP: usize = 11;
    pub const MADVISE: usize = 28;
    pub const PAUSE: usize = 34;
    pub const GETPID: usize = 39;
    pub const FORK: usize = 57;
    pub const EXECVE: usize = 59;
    pub const WAIT4: usize = 61;
    pub const GETPPID: usize = 110;
    pub const REBOOT: usize = 169;
    pub const CLOCK_GETTIME: usize = 228;
    pub const EXIT_GROUP: usize = 231;
    pub const PIPE2: usize = 293;
}

/// Makes a system call that may fail.
///
/// # Safety
///
/// What the call does to the program's memory must be what the caller may have done.
unsafe fn try_call(number: usize, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    // SAFETY: a system call changes RAX, RCX and R11, and memory, for which the caller answers.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            in("r10") d,
            in("r8") e,
            in("r9") f,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Makes a system call that does not fail.
///
/// # Safety
///
/// As for [`try_call`].
unsafe fn call<const N: usize>(number: usize, arguments: [usize; N]) -> usize {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    // SAFETY: the caller answers for it.
    let result = unsafe { try_call(number, all) };
    assert!(result >= 0, "system call {number} failed with {result}");
    result as usize
}

/// This program's path: its name, by which it was started.
static PATH: AtomicPtr<c_char> = AtomicPtr::new(core::ptr::null_mut());

#[unsafe(no_mangle)]
extern "C" fn lat_main(stack: *const usize) -> ! {
    // SAFETY: the kernel has put the number of arguments there, and behind it their addresses; they are texts that end with
    // zero, and stay, since nobody writes above the first stack pointer.
    let argument = |i: usize| unsafe { CStr::from_ptr(stack.add(1 + i).cast::<*const c_char>().read()) };
    // SAFETY: as above.
    let count = unsafe { stack.read() };
    if count > 0 {
        PATH.store(argument(0).as_ptr().cast_mut(), Relaxed);
    }
    lat::main::<Linux>((1..count).map(|i| argument(i).to_str().unwrap_or_default()));
    switch_off_if_first();
    Linux::exit()
}

/// Ends the machine, if this is its first process and it may.
fn switch_off_if_first() {
    const MAGIC: [usize; 2] = [0xfee1_dead, 0x2812_1969];
    const POWER_OFF: usize = 0x4321_fedc;
    // SAFETY: touches no memory.
    if unsafe { call(number::GETPID, []) } == 1 {
        // SAFETY: touches no memory; there are no files that could lose something.
        let _ = unsafe { try_call(number::REBOOT, [MAGIC[0], MAGIC[1], POWER_OFF, 0, 0, 0]) };
    }
}

struct Linux;

impl System for Linux {
    type Region = Mapped;

    const NULL_CALLS: &'static [(&'static str, fn())] = &[("lat_syscall null", get_parent)];

    fn now() -> u64 {
        const MONOTONIC: usize = 1;
        let mut time = [0_u64; 2];
        // SAFETY: writes seconds and nanoseconds to `time`.
        unsafe { call(number::CLOCK_GETTIME, [MONOTONIC, (&raw mut time).expose_provenance()]) };
        time[0] * 1_000_000_000 + time[1]
    }

    fn fork() -> Option<u32> {
        // SAFETY: the child goes on with a copy of everything, and there is one thread.
        let child = unsafe { call(number::FORK, []) };
        (child != 0).then_some(child as u32)
    }

    fn wait(child: u32) {
        let mut status = 0_u32;
        // SAFETY: writes the status.
        unsafe { call(number::WAIT4, [child as usize, (&raw mut status).expose_provenance(), 0, 0]) };
        assert_eq!(status, 0, "a child failed");
    }

    fn exit() -> ! {
        loop {
            // SAFETY: does not return.
            unsafe { call(number::EXIT_GROUP, [0]) };
        }
    }

    fn exec_exit() -> ! {
        let path = PATH.load(Relaxed).expose_provenance();
        let arguments = [path, c"exit".as_ptr().expose_provenance(), 0];
        let environment = [0_usize];
        let (arguments, environment) = (&raw const arguments, &raw const environment);
        // SAFETY: reads the path, and two lists of addresses that end with zero.
        unsafe {
            call(number::EXECVE, [path, arguments.expose_provenance(), environment.expose_provenance()])
        };
        unreachable!("the program was replaced")
    }

    fn sleep() -> ! {
        loop {
            // SAFETY: touches no memory.
            let _ = unsafe { try_call(number::PAUSE, [0; 6]) }; // a signal is no reason to go on
        }
    }

    fn pipe() -> Pipe {
        let mut ends = [0_u32; 2];
        // SAFETY: writes two descriptors.
        unsafe { call(number::PIPE2, [(&raw mut ends).expose_provenance(), 0]) };
        Pipe { read: ends[0], write: ends[1] }
    }

    fn close(end: u32) {
        // SAFETY: touches no memory.
        unsafe { call(number::CLOSE, [end as usize]) };
    }

    fn open(path: &str) -> u32 {
        const MOST: usize = 256;
        let mut text = [0_u8; MOST];
        assert!(path.len() < MOST, "{path} is longer than {MOST} bytes");
        text[..path.len()].copy_from_slice(path.as_bytes());
        // SAFETY: reads the path, which ends with zero, and opens it for reading.
        unsafe { call(number::OPEN, [text.as_ptr().expose_provenance(), 0, 0]) as u32 }
    }

    fn read(descriptor: u32, buffer: &mut [u8]) -> usize {
        let at = buffer.as_mut_ptr().expose_provenance();
        // SAFETY: writes into the buffer, as much as it has room for.
        unsafe { call(number::READ, [descriptor as usize, at, buffer.len()]) }
    }

    fn write(descriptor: u32, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[write(descriptor, bytes)..];
        }
    }
}

/// Memory by MMAP.
struct Mapped {
    at: usize,
    length: usize,
}

impl Region for Mapped {
    fn new(length: usize) -> Self {
        const PRIVATE_ANONYMOUS: usize = 0x22;
        const NO_HUGE_PAGE: usize = 15;
        // SAFETY: maps memory where nothing is.
        let at = unsafe { call(number::MMAP, [0, length, READ_WRITE, PRIVATE_ANONYMOUS, usize::MAX, 0]) };
        if length >= HUGE_PAGE {
            // Where there are no large pages the call fails, and there is nothing to prevent.
            // SAFETY: changes no content.
            let _ = unsafe { try_call(number::MADVISE, [at, length, NO_HUGE_PAGE, 0, 0, 0]) };
        }
        Self { at, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: readable, writable, zero at first, and this value's own as long as it is there.
        unsafe {
            core::slice::from_raw_parts_mut(core::ptr::with_exposed_provenance_mut(self.at), self.length)
        }
    }

    fn while_read_only(&mut self, look: impl FnOnce(&[u8])) {
        const READ: usize = 1;
        // SAFETY: nobody has a reference by which it could be written, until it is writable again.
        unsafe { call(number::MPROTECT, [self.at, self.length, READ]) };
        look(self.bytes());
        // SAFETY: changes no content.
        unsafe { call(number::MPROTECT, [self.at, self.length, READ_WRITE]) };
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference to it any more.
        unsafe { call(number::MUNMAP, [self.at, self.length]) };
    }
}

const READ_WRITE: usize = 3;
const HUGE_PAGE: usize = 2 << 20;

fn get_parent() {
    // SAFETY: touches no memory.
    unsafe { call(number::GETPPID, []) };
}

fn write(descriptor: u32, bytes: &[u8]) -> usize {
    // SAFETY: reads the bytes.
    unsafe { call(number::WRITE, [descriptor as usize, bytes.as_ptr().expose_provenance(), bytes.len()]) }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    struct Errors;
    impl Write for Errors {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            // SAFETY: reads the text. If it cannot be written there is nobody to tell.
            let _ = unsafe {
                try_call(number::WRITE, [2, text.as_ptr().expose_provenance(), text.len(), 0, 0, 0])
            };
            Ok(())
        }
    }
    let _ = writeln!(Errors, "lat: {info}"); // `Errors` does not fail
    loop {
        // SAFETY: does not return.
        unsafe { try_call(number::EXIT_GROUP, [101, 0, 0, 0, 0, 0]) };
    }
}

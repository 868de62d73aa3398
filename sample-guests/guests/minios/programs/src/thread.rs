//! Threads: making them, and waiting for what they give.
//!
//! A thread has a stack that the kernel maps, at whose upper end is a word that the kernel sets when the thread runs no more.
//! Who joins it waits for that word and then gives the stack back. A panic ends the process, so every thread that ends has a
//! result. The stack of one that nobody joins stays.
//!
//! Start at [`spawn`].

#![expect(unsafe_code, reason = "a thread's first instructions, and its stack")]

use crate::sync::{self, Mutex};
use crate::{Result, system};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering::Acquire};
use minios_abi::call;

/// Bytes of a stack. It takes memory as it is used.
const STACK: u64 = 64 << 10;

/// A thread that somebody is to wait for.
pub struct JoinHandle<T> {
    stack: u64,
    result: Arc<Mutex<Option<T>>>,
}

/// What a thread finds at its first instruction: RDI is the address of this.
struct Launch {
    main: Box<dyn FnOnce()>,
    /// The address of the word that says that the thread has ended.
    ended: u64,
}

core::arch::global_asm!(
    ".pushsection .text.os_thread_entry, \"ax\", @progbits",
    ".globl os_thread_entry",
    "os_thread_entry:",
    "xor ebp, ebp", // ends backtraces
    "call {run}",
    "ud2",
    ".popsection",
    run = sym run,
);

unsafe extern "C" {
    static os_thread_entry: u8;
}

/// Starts a thread.
///
/// # Errors
///
/// There is no memory for it, or there are too many threads.
pub fn spawn<T: Send + 'static>(main: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let result = Arc::new(Mutex::new(None));
    let given = result.clone();
    let main = Box::new(move || *given.lock() = Some(main()));
    let stack = system::call(call::MAP, [STACK, 0, 0, 0])?;
    let ended = ended(stack);
    let launch = Box::into_raw(Box::new(Launch { main, ended }));
    let entry = (&raw const os_thread_entry).addr() as u64;
    // The word is where the stack pointer is at first: what is pushed goes below it.
    if let Err(error) =
        system::call(call::THREAD_CREATE, [entry, ended, launch.expose_provenance() as u64, 0])
    {
        // SAFETY: it came from `Box::into_raw` above, and there is no thread that could have it.
        drop(unsafe { Box::from_raw(launch) });
        unmap(stack);
        return Err(error);
    }
    Ok(JoinHandle { stack, result })
}

impl<T> JoinHandle<T> {
    /// Waits until the thread has ended; gives its result.
    pub fn join(self) -> T {
        // SAFETY: the word is in the thread's stack, which is zeroed, aligned to 16 there, and mapped until `unmap` below; the
        // thread does not touch it.
        let word = unsafe { &*core::ptr::with_exposed_provenance::<AtomicU32>(ended(self.stack) as usize) };
        while word.load(Acquire) == 0 {
            sync::wait(word, 0);
        }
        unmap(self.stack);
        self.result.lock().take().expect("a thread that has ended has left its result")
    }
}

/// The address of the word at the upper end of a stack, aligned as a stack pointer has to be before a call.
fn ended(stack: u64) -> u64 {
    stack + STACK - 16
}

fn unmap(stack: u64) {
    let _ = system::call(call::UNMAP, [stack, 0, 0, 0]); // without memory to do it the stack stays
}

/// A thread, on its own stack.
extern "C" fn run(launch: *mut Launch) -> ! {
    // SAFETY: `spawn` made it by `Box::into_raw`, and only this thread was given it.
    let Launch { main, ended } = *unsafe { Box::from_raw(launch) };
    main();
    loop {
        let _ = system::call(call::THREAD_EXIT, [ended, 0, 0, 0]); // it does not return
    }
}

//! Processes: making, becoming, awaiting and ending them.

use crate::system;
use crate::{Error, Result};
use alloc::vec::Vec;
use core::time::Duration;
pub use minios_abi::{KILLED, SystemInfo, ThreadInfo, state};
use minios_abi::{WAIT_POLL, call};

/// What [`fork`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// This is the copy.
    Child,
    /// This is the original; the copy has that id.
    Parent(u32),
}

/// Makes a copy of this process, with the thread that calls this alone. If another one holds a [`Mutex`](crate::sync::Mutex) of the
/// original, such as the heap's, it is held for ever in the copy.
///
/// # Errors
///
/// There is no memory for it, or there are too many processes.
pub fn fork() -> Result<Fork> {
    Ok(match system::call(call::FORK, [0; 4])? {
        0 => Fork::Child,
        child => Fork::Parent(child as u32),
    })
}

/// Becomes another program, unless there are other threads. Comes back only to say why not.
pub fn exec(path: &str, arguments: &[&str]) -> Error {
    let mut joined = Vec::new();
    for (i, argument) in arguments.iter().enumerate() {
        if i > 0 {
            joined.push(0);
        }
        joined.extend_from_slice(argument.as_bytes());
    }
    system::exec(path.as_bytes(), &joined)
}

/// Waits until a child has ended; any of them if none is named. Gives its id and status.
///
/// # Errors
///
/// There is no such child.
pub fn wait(child: Option<u32>) -> Result<(u32, i32)> {
    let (child, status) = system::with_answer(call::WAIT, [child.unwrap_or(0).into(), 0, 0, 0], 1)?;
    Ok((child as u32, status))
}

/// As [`wait`], for any child that has ended by now.
///
/// # Errors
///
/// There are no children.
pub fn wait_poll() -> Result<Option<(u32, i32)>> {
    let (child, status) = system::with_answer(call::WAIT, [0, 0, WAIT_POLL, 0], 1)?;
    Ok((child != 0).then_some((child as u32, status)))
}

/// Ends another process.
///
/// # Errors
///
/// There is none.
pub fn kill(process: u32) -> Result<()> {
    system::call(call::KILL, [process.into(), 0, 0, 0]).map(drop)
}

/// Ends this process, all its threads.
pub fn exit(status: i32) -> ! {
    loop {
        let _ = system::call(call::EXIT, [status as u64, 0, 0, 0]); // it does not return
    }
}

/// This process's id.
pub fn own() -> u32 {
    system::call(call::PROCESS, [0; 4]).map_or(0, |process| process as u32)
}

/// Lets other threads run.
pub fn give_way() {
    let _ = system::call(call::YIELD, [0; 4]); // it cannot fail
}

/// Waits.
pub fn sleep(duration: Duration) {
    let _ = system::call(call::SLEEP, [duration.as_nanos() as u64, 0, 0, 0]); // it cannot fail
}

/// All threads, and processes that have ended, as they are looked at one after the other.
pub fn threads() -> impl Iterator<Item = ThreadInfo> {
    let mut next = 0;
    core::iter::from_fn(move || {
        let (found, info) = system::with_answer::<ThreadInfo>(call::LIST_THREADS, [next, 0, 0, 0], 1).ok()?;
        next = u64::from(info.thread) + 1;
        (found != 0).then_some(info)
    })
}

/// What the system has.
///
/// # Errors
///
/// None, as long as the kernel knows the call.
pub fn system() -> Result<SystemInfo> {
    system::with_answer(call::SYSTEM, [0; 4], 0).map(|(_, info)| info)
}

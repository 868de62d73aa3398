//! `lat`: what a system charges a program for system calls, processes, pipes and memory, measured from inside.
//!
//! One program for every system that it compares: each says in [`System`] how its calls are made, and nothing else differs.
//! What is done, and its name, is as in lmbench (`lat_syscall`, `lat_proc`, `lat_pipe`, `lat_ctx`). Each sample is a line:
//! the name, and nanoseconds for one.
//!
//! The clock may be slow: it is read around whole batches, whose size follows from how fast the system is.
//!
//! Start at [`main`].

#![no_std]
#![forbid(unsafe_code)]

use core::fmt::Arguments;
use core::mem::MaybeUninit;

/// A system. Calls that fail end the program with a message: there is nothing to measure then.
pub trait System {
    /// A system call that does next to nothing, in each way in which one can be made.
    const NULL_CALLS: &'static [(&'static str, fn())];

    /// Nanoseconds since some moment.
    fn now() -> u64;

    /// Makes a copy of the process; gives the child's id, or `None` in the child.
    fn fork() -> Option<u32>;

    /// Waits until a child has ended.
    fn wait(child: u32);

    /// Ends the process.
    fn exit() -> !;

    /// Becomes this program from its start, with the argument `exit`.
    fn exec_exit() -> !;

    /// Makes a pipe.
    fn pipe() -> Pipe;

    /// Gives an end of a pipe back.
    fn close(end: u32);

    /// Writes a byte.
    fn send(end: u32);

    /// Reads a byte; false if there will be no more.
    fn receive(end: u32) -> bool;

    /// Memory that nobody has touched yet, in pages of 4 KiB.
    fn fresh(length: usize) -> &'static mut [MaybeUninit<u8>];

    /// Prints.
    fn print(text: Arguments<'_>);
}

/// The two ends of a pipe.
#[derive(Clone, Copy)]
pub struct Pipe {
    /// Where it is read.
    pub read: u32,
    /// Where it is written.
    pub write: u32,
}

/// How long is measured.
#[derive(Clone, Copy)]
struct Effort {
    /// Samples of each row.
    rounds: u64,
    /// The least nanoseconds that a batch takes.
    batch: u64,
}

const PAGE: usize = 4096;

/// Bytes that a process touches.
const FRESH: usize = 4 << 20;

/// The program: `lat [ROUNDS [MICROSECONDS]]`, the samples of each row and the least that a batch takes; or `lat exit`,
/// which does nothing.
pub fn main<S: System>(mut arguments: impl Iterator<Item = &'static str>) {
    let first = arguments.next();
    if first == Some("exit") {
        return;
    }
    let number = |word: Option<&str>, default| word.and_then(|word| word.parse().ok()).unwrap_or(default);
    let effort = Effort { rounds: number(first, 11), batch: number(arguments.next(), 5000) * 1000 };
    for (name, call) in S::NULL_CALLS {
        report::<S>(name, effort, call);
    }
    report::<S>("lat_proc fork", effort, || child::<S>(|| S::exit()));
    report::<S>("lat_proc exec", effort, || child::<S>(|| S::exec_exit()));
    pipes::<S>(effort);
    for _ in 0..effort.rounds {
        child::<S>(|| touch::<S>());
    }
}

/// Runs something in a child, and waits for its end.
fn child<S: System>(what: impl FnOnce()) {
    match S::fork() {
        Some(child) => S::wait(child),
        None => {
            what();
            S::exit();
        }
    }
}

/// Nanoseconds for `count` times.
fn batch<S: System>(count: u64, operation: &mut impl FnMut()) -> u64 {
    let start = S::now();
    (0..count).for_each(|_| operation());
    S::now() - start
}

/// How many fill a batch.
fn count_for<S: System>(effort: Effort, operation: &mut impl FnMut()) -> u64 {
    let mut count = 1;
    while batch::<S>(count, operation) < effort.batch {
        count *= 2;
    }
    count
}

/// Measures an operation.
fn report<S: System>(name: &str, effort: Effort, mut operation: impl FnMut()) {
    let count = count_for::<S>(effort, &mut operation);
    for _ in 0..effort.rounds {
        line::<S>(name, batch::<S>(count, &mut operation), count);
    }
}

/// Prints a sample: `count` took `ns`.
fn line<S: System>(name: &str, ns: u64, count: u64) {
    let tenths = ns * 10 / count;
    S::print(format_args!("{name} {}.{}\n", tenths / 10, tenths % 10));
}

/// A byte to another process and back; and from that, as in lmbench, what a switch between processes takes: half of it, less
/// what writing to a pipe and reading from it takes in one process.
fn pipes<S: System>(effort: Effort) {
    let (there, back, own) = (S::pipe(), S::pipe(), S::pipe());
    let Some(echo) = S::fork() else {
        S::close(there.write);
        S::close(back.read);
        while S::receive(there.read) {
            S::send(back.write);
        }
        S::exit();
    };
    S::close(there.read);
    S::close(back.write);
    let mut round_trip = || {
        S::send(there.write);
        S::receive(back.read);
    };
    let mut alone = || {
        S::send(own.write);
        S::receive(own.read);
    };
    let count = count_for::<S>(effort, &mut round_trip);
    // The least, since whatever else runs only adds to it: a difference of two that are disturbed would say nothing.
    let alone = (0..effort.rounds).map(|_| batch::<S>(count, &mut alone)).min().unwrap_or(0);
    for _ in 0..effort.rounds {
        let both = batch::<S>(count, &mut round_trip);
        line::<S>("lat_pipe", both, count);
        line::<S>("lat_ctx", (both / 2).saturating_sub(alone), count);
    }
    S::close(there.write);
    S::wait(echo);
}

/// Writes to each page of fresh memory, in order.
fn touch<S: System>() {
    let memory = S::fresh(FRESH);
    let start = S::now();
    memory.iter_mut().step_by(PAGE).for_each(|byte| {
        byte.write(1);
    });
    core::hint::black_box(memory);
    line::<S>("touch of fresh memory", S::now() - start, (FRESH / PAGE) as u64);
}

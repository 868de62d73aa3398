//! `lat`: what a system charges a program for system calls, processes, pipes, memory and files, measured from inside.
//!
//! One program for every system that it compares: each says in [`System`] how its calls are made, and nothing else differs.
//! It does one of four things, by its first argument:
//!
//! - `lat [ROUNDS [MICROSECONDS]]`: the rows of `hv bench process`, named as in lmbench. Each sample is a line: the name, and
//!   nanoseconds for one.
//! - `lat rows [ROUNDS [MICROSECONDS [FILE]]]`: the rows of the comparison in `bench/peers` ([`rows`]), each a line of JSON.
//! - `lat idle`: says so, and sleeps for ever.
//! - `lat exit`: ends.
//!
//! `ROUNDS` are the samples of each row, `MICROSECONDS` the least that a batch takes. The clock may be slow: it is read around
//! whole batches, whose size follows from how fast the system is.
//!
//! Start at [`main`].

#![no_std]
#![forbid(unsafe_code)]

mod line;
mod rows;

use line::{Line, print};

/// A system. Calls that fail end the program with a message: there is nothing to measure then.
pub trait System {
    /// Memory from the system.
    type Region: Region;

    /// A system call that does next to nothing, in each way in which one can be made; first in the usual one.
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

    /// Sleeps for ever.
    fn sleep() -> !;

    /// Makes a pipe.
    fn pipe() -> Pipe;

    /// Opens a file for reading; gives its descriptor.
    fn open(path: &str) -> u32;

    /// Gives a descriptor back.
    fn close(descriptor: u32);

    /// Reads what is there, as much as fits; gives how much, 0 at the end.
    fn read(descriptor: u32, buffer: &mut [u8]) -> usize;

    /// Writes everything.
    fn write(descriptor: u32, bytes: &[u8]);
}

/// Memory from the system, all zero, in pages of 4 KiB. It goes back with this value.
pub trait Region {
    /// So many bytes, whole pages, which nobody has touched yet.
    fn new(length: usize) -> Self;

    /// What is in it.
    fn bytes(&mut self) -> &mut [u8];

    /// Makes it read-only, lets `look` see it, and makes it writable again.
    fn while_read_only(&mut self, look: impl FnOnce(&[u8]));
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

/// The program.
pub fn main<S: System>(mut arguments: impl Iterator<Item = &'static str>) {
    let number = |word: Option<&str>, default| word.and_then(|word| word.parse().ok()).unwrap_or(default);
    let effort = |rounds: Option<&str>, microseconds: Option<&str>| Effort {
        rounds: number(rounds, 11),
        batch: number(microseconds, 5000) * 1000,
    };
    match arguments.next() {
        Some("exit") => {}
        Some("idle") => {
            print::<S>(format_args!("idle\n"));
            S::sleep()
        }
        Some("rows") => {
            let effort = effort(arguments.next(), arguments.next());
            rows::all::<S>(effort, arguments.next());
        }
        rounds => latencies::<S>(effort(rounds, arguments.next())),
    }
}

/// The rows of `hv bench process`.
fn latencies<S: System>(effort: Effort) {
    for (name, call) in S::NULL_CALLS {
        report::<S>(name, effort, call);
    }
    report::<S>("lat_proc fork", effort, || child::<S>(|| S::exit()));
    report::<S>("lat_proc exec", effort, || child::<S>(|| S::exec_exit()));
    let pipes = Pipes::<S>::new();
    let (count, alone) = pipes.prepare(effort);
    for _ in 0..effort.rounds {
        let both = batch::<S>(count, &mut || pipes.round_trip());
        sample::<S>("lat_pipe", both, count);
        sample::<S>("lat_ctx", (both / 2).saturating_sub(alone), count);
    }
    drop(pipes);
    for _ in 0..effort.rounds {
        child::<S>(|| sample::<S>("touch of fresh memory", touch::<S>(), (FRESH / PAGE) as u64));
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
        sample::<S>(name, batch::<S>(count, &mut operation), count);
    }
}

/// Prints a sample: `count` took `ns`.
fn sample<S: System>(name: &str, ns: u64, count: u64) {
    let tenths = ns * 10 / count;
    print::<S>(format_args!("{name} {}.{}\n", tenths / 10, tenths % 10));
}

/// A byte to another process and back; and from that, as in lmbench, what a switch between processes takes: half of it, less
/// what writing to a pipe and reading from it takes in one process. The other process ends with this value.
struct Pipes<S: System> {
    there: u32,
    back: u32,
    own: Pipe,
    echo: u32,
    system: core::marker::PhantomData<S>,
}

impl<S: System> Pipes<S> {
    fn new() -> Self {
        let (there, back, own) = (S::pipe(), S::pipe(), S::pipe());
        let Some(echo) = S::fork() else {
            S::close(there.write);
            S::close(back.read);
            while S::read(there.read, &mut [0]) == 1 {
                S::write(back.write, b"x");
            }
            S::exit();
        };
        S::close(there.read);
        S::close(back.write);
        Self { there: there.write, back: back.read, own, echo, system: core::marker::PhantomData }
    }

    fn round_trip(&self) {
        S::write(self.there, b"x");
        S::read(self.back, &mut [0]);
    }

    fn alone(&self) {
        S::write(self.own.write, b"x");
        S::read(self.own.read, &mut [0]);
    }

    /// How many round trips fill a batch, and what as many take in one process. That is the least, since whatever else runs
    /// only adds to it: a difference of two that are disturbed would say nothing.
    fn prepare(&self, effort: Effort) -> (u64, u64) {
        let count = count_for::<S>(effort, &mut || self.round_trip());
        let alone = (0..effort.rounds).map(|_| batch::<S>(count, &mut || self.alone())).min();
        (count, alone.unwrap_or(0))
    }
}

impl<S: System> Drop for Pipes<S> {
    fn drop(&mut self) {
        [self.there, self.back, self.own.read, self.own.write].into_iter().for_each(S::close);
        S::wait(self.echo);
    }
}

/// Nanoseconds to write to each page of fresh memory, in order.
fn touch<S: System>() -> u64 {
    let mut memory = S::Region::new(FRESH);
    let start = S::now();
    write_to_pages(memory.bytes());
    S::now() - start
}

fn write_to_pages(memory: &mut [u8]) {
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    core::hint::black_box(memory);
}

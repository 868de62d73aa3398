//! The rows of the comparison with other systems (`bench/peers`). Each is a line of JSON: its name, unit, samples, and of
//! these the median, the least and the most.
//!
//! Start at [`all`]; a row is sampled by [`sampled`], and printed by [`Samples::print`].

use crate::{Effort, FRESH, Line, PAGE, Pipes, Region, System};
use crate::{batch, child, count_for, touch, write_to_pages};
use core::fmt::Write;
use core::hint::black_box;

const MIB: usize = 1 << 20;

/// Bytes that are mapped, or whose protection is changed, at once, and that a pipe or a file is asked for.
const SOME: usize = 64 << 10;

/// Steps of a computation.
const STEPS: u64 = 1000;

/// Measures everything. Files are read if one is named.
pub(crate) fn all<S: System>(effort: Effort, file: Option<&str>) {
    row::<S>("null system call", effort, S::NULL_CALLS[0].1);
    memory::<S>(effort);
    row::<S>("fork, exit, wait", effort, || child::<S>(|| S::exit()));
    row::<S>("fork, exec, exit, wait", effort, || child::<S>(|| S::exec_exit()));
    pipes::<S>(effort);
    row::<S>("integer, 1000 steps", effort, || {
        black_box(integer(black_box(1)));
    });
    row::<S>("floating point, 1000 steps", effort, || {
        black_box(floating_point(black_box(0.3)));
    });
    let (mut from, mut to) = (S::Region::new(MIB), S::Region::new(MIB));
    write_to_pages(from.bytes());
    row::<S>("memcpy, 1 MiB", effort, || copy(to.bytes(), from.bytes()));
    if let Some(file) = file {
        files::<S>(effort, file);
    }
}

fn memory<S: System>(effort: Effort) {
    Samples::of(effort, || touch::<S>() * 10 / (FRESH / PAGE) as u64).print::<S>("page touch, fresh memory");
    let mut region = S::Region::new(SOME);
    write_to_pages(region.bytes());
    row::<S>("protect 64 KiB and back, touched", effort, || {
        region.while_read_only(|bytes| {
            black_box(bytes.iter().step_by(PAGE).fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
        });
        write_to_pages(region.bytes());
    });
    row::<S>("map, touch, unmap 64 KiB", effort, || write_to_pages(S::Region::new(SOME).bytes()));
}

fn pipes<S: System>(effort: Effort) {
    let pipes = Pipes::<S>::new();
    let (count, alone) = pipes.prepare(effort);
    let round_trip = Samples::of(effort, || batch::<S>(count, &mut || pipes.round_trip()) * 10 / count);
    let switch = |tenths: u64| (tenths / 2).saturating_sub(alone * 10 / count);
    round_trip.print::<S>("pipe, a byte there and back");
    round_trip.map(switch).print::<S>("context switch");
    drop(pipes);
    throughput::<S>(effort);
}

/// To another process, which says when it has had a MiB.
fn throughput<S: System>(effort: Effort) {
    let (data, done) = (S::pipe(), S::pipe());
    let mut buffer = S::Region::new(SOME);
    let Some(reader) = S::fork() else {
        S::close(data.write);
        let mut missing = MIB;
        loop {
            match S::read(data.read, buffer.bytes()) {
                0 => S::exit(),
                length => missing -= length,
            }
            if missing == 0 {
                S::write(done.write, b"x");
                missing = MIB;
            }
        }
    };
    S::close(data.read);
    row::<S>("pipe, 1 MiB", effort, || {
        (0..MIB / SOME).for_each(|_| S::write(data.write, buffer.bytes()));
        S::read(done.read, &mut [0]);
    });
    [data.write, done.read, done.write].into_iter().for_each(S::close);
    S::wait(reader);
}

/// Reads a file that is in the host's memory, if the system asks the host, or in its own.
fn files<S: System>(effort: Effort, path: &str) {
    let mut buffer = S::Region::new(SOME);
    row::<S>("file: open, read 4 KiB, close", effort, || {
        let file = S::open(path);
        assert!(S::read(file, &mut buffer.bytes()[..PAGE]) > 0, "{path} is empty");
        S::close(file);
    });
    let mut length = 0;
    let whole = sampled::<S>(effort, || {
        let file = S::open(path);
        length = 0;
        loop {
            match S::read(file, buffer.bytes()) {
                0 => break,
                more => length += more as u64,
            }
        }
        S::close(file);
    });
    whole.map(|tenths| tenths * MIB as u64 / length).print::<S>("file: read, a MiB");
}

/// Multiplications, shifts and additions, each of which needs the one before.
fn integer(seed: u64) -> u64 {
    (0..STEPS).fold(seed, |x, i| (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9).wrapping_add(i))
}

/// The logistic map, in its chaotic range: three operations, each of which needs the one before.
fn floating_point(seed: f64) -> f64 {
    (0..STEPS).fold(seed, |x, _| 3.9 * x * (1.0 - x))
}

/// Copies by registers, 128 bytes at a time, as memory functions of libraries do. The compiler is kept from making it one call
/// of a function of this program's, which would be a string instruction: no measure of a system that emulates those.
fn copy(to: &mut [u8], from: &[u8]) {
    let (to, from) = (to.as_chunks_mut::<128>().0, from.as_chunks::<128>().0);
    to.iter_mut().zip(from).for_each(|(to, from)| *black_box(to) = *from);
}

/// Measures an operation, and prints it.
fn row<S: System>(name: &str, effort: Effort, operation: impl FnMut()) {
    sampled::<S>(effort, operation).print::<S>(name);
}

/// Measures an operation.
fn sampled<S: System>(effort: Effort, mut operation: impl FnMut()) -> Samples {
    let count = count_for::<S>(effort, &mut operation);
    Samples::of(effort, || batch::<S>(count, &mut operation) * 10 / count)
}

/// Samples of a row, sorted, each in tenths of a nanosecond.
#[derive(Clone, Copy)]
struct Samples {
    all: [u64; Self::MOST],
    count: usize,
}

impl Samples {
    const MOST: usize = 63;

    /// As many as there are rounds, within bounds.
    fn of(effort: Effort, mut sample: impl FnMut() -> u64) -> Self {
        let count = effort.rounds.clamp(1, Self::MOST as u64) as usize;
        let mut all = [0; Self::MOST];
        all[..count].fill_with(&mut sample);
        all[..count].sort_unstable();
        Self { all, count }
    }

    /// The same, converted by something that does not change their order.
    fn map(mut self, convert: impl Fn(u64) -> u64) -> Self {
        self.all.iter_mut().for_each(|sample| *sample = convert(*sample));
        self
    }

    fn print<S: System>(&self, name: &str) {
        let mut line = Line::new();
        self.write(name, &mut line).expect("a row is a short line");
        line.print::<S>();
    }

    fn write(&self, name: &str, line: &mut Line) -> core::fmt::Result {
        let all = &self.all[..self.count];
        let (median, least, most) = (all[all.len() / 2], all[0], all[all.len() - 1]);
        write!(line, "{{\"row\":\"{name}\",\"unit\":\"ns\",\"median\":{},", Tenths(median))?;
        write!(line, "\"min\":{},\"max\":{},\"samples\":[{}", Tenths(least), Tenths(most), Tenths(least))?;
        all[1..].iter().try_for_each(|sample| write!(line, ",{}", Tenths(*sample)))?;
        writeln!(line, "]}}")
    }
}

/// Shown as whole ones.
struct Tenths(u64);

impl core::fmt::Display for Tenths {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}", self.0 / 10, self.0 % 10)
    }
}

//! `par LIMIT THREADS`: counts the primes below a limit by trial division, with one thread and then with several, and says how
//! much faster that was.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use os::{Error, process, thread};

os::entry!(main);

fn main() -> i32 {
    let [limit, threads] = os::arguments() else { return usage() };
    let (Ok(limit), Ok(threads @ 1..)) = (limit.parse(), threads.parse()) else { return usage() };
    match (timed(limit, 1), timed(limit, threads)) {
        (Ok((alone, slow)), Ok((together, fast))) => {
            os::println!("par: {alone} primes with 1 thread, {together} with {threads}");
            let times = slow * 100 / fast.max(1);
            os::eprintln!("par: {slow} us and {fast} us: {}.{:02} times as fast", times / 100, times % 100);
            i32::from(alone != together)
        }
        (Err(error), _) | (_, Err(error)) => {
            os::eprintln!("par: {error}");
            1
        }
    }
}

/// How many primes there are, and the microseconds that it took to count them.
fn timed(limit: u64, threads: u64) -> Result<(usize, u64), Error> {
    let now = || process::system().map(|info| info.up_nanoseconds / 1000);
    let start = now()?;
    // Each takes every so-many-th of the odd numbers, so that all have as much to do.
    let mut running = Vec::new();
    for first in 0..threads {
        let odd = (2 * first + 1..limit).step_by(2 * threads as usize);
        running.push(thread::spawn(move || odd.filter(|n| is_odd_prime(*n)).count())?);
    }
    let odd: usize = running.into_iter().map(thread::JoinHandle::join).sum();
    Ok((odd + usize::from(limit > 2), now()? - start))
}

/// Whether an odd number is a prime.
fn is_odd_prime(n: u64) -> bool {
    n > 1 && (3..).step_by(2).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn usage() -> i32 {
    os::eprintln!("usage: par LIMIT THREADS");
    2
}

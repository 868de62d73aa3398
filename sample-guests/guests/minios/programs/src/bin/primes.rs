//! `primes N`: writes the primes up to N, one a line, found with a sieve.

#![no_std]
#![no_main]

use core::fmt::Write;
use os::io::Output;

os::entry!(main);

fn main() -> i32 {
    let [limit] = os::arguments() else { return usage() };
    let Some(limit) = limit.parse().ok().filter(|limit| *limit <= 100_000_000_usize) else { return usage() };
    let mut composite = alloc::vec![false; limit + 1];
    let mut output = Output::new();
    for n in 2..=limit {
        if composite[n] {
            continue;
        }
        let _ = writeln!(output, "{n}"); // output takes all
        (n * n..=limit).step_by(n).for_each(|multiple| composite[multiple] = true);
    }
    0
}

extern crate alloc;

fn usage() -> i32 {
    os::eprintln!("usage: primes N, up to 100000000");
    2
}

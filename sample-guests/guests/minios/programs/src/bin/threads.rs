//! `threads N M`: N threads add 1 to each of two sums M times, to one under a mutex, to the other by an atomic operation.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use os::sync::Mutex;
use os::thread;

os::entry!(main);

static MUTEX: Mutex<u64> = Mutex::new(0);
static ATOMIC: AtomicU64 = AtomicU64::new(0);

fn main() -> i32 {
    let [count, turns] = os::arguments() else { return usage() };
    let (Ok(count), Ok(turns)) = (count.parse::<u64>(), turns.parse::<u64>()) else { return usage() };
    let add = move || {
        for _ in 0..turns {
            *MUTEX.lock() += 1;
            ATOMIC.fetch_add(1, Relaxed);
        }
        turns
    };
    let mut running = Vec::new();
    for _ in 0..count {
        match thread::spawn(add) {
            Ok(thread) => running.push(thread),
            Err(error) => {
                os::eprintln!("threads: {error}");
                return 1;
            }
        }
    }
    let done: u64 = running.into_iter().map(thread::JoinHandle::join).sum();
    let (locked, atomic) = (*MUTEX.lock(), ATOMIC.load(Relaxed));
    os::println!("threads: {done} turns, {locked} under the mutex, {atomic} by atomic additions");
    i32::from(locked != done || atomic != done)
}

fn usage() -> i32 {
    os::eprintln!("usage: threads N M");
    2
}

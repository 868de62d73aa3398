//! Reads the time, sleeps with `block`, and prints how late it woke.

#![no_std]
#![no_main]

use core::sync::atomic::{AtomicU64, Ordering};
use guest_sdk::println;
use guest_sdk::time::{self, Duration, Instant};

guest_sdk::entry!(main);

/// When the timer's handler ran, in nanoseconds.
static FIRED: AtomicU64 = AtomicU64::new(0);

fn main() {
    println!("up for {:?}, {} s since 1970", Instant::START.elapsed(), time::since_epoch().as_secs());
    for milliseconds in [1, 5, 20] {
        let deadline = Instant::now() + Duration::from_millis(milliseconds);
        time::sleep_until(deadline);
        println!("slept {milliseconds:2} ms, woke {:?} late", deadline.elapsed());
    }
    let deadline = Instant::now() + Duration::from_millis(2);
    time::timer::set(deadline, |_| FIRED.store(Instant::now().as_nanos(), Ordering::Relaxed));
    while FIRED.load(Ordering::Relaxed) == 0 {
        core::hint::spin_loop(); // the timer interrupts this
    }
    let late = FIRED.load(Ordering::Relaxed) - deadline.as_nanos();
    println!("timer of 2 ms interrupted a busy loop {:?} late", Duration::from_nanos(late));
}

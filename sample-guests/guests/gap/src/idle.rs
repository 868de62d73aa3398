//! A guest that has nothing to do.
//!
//! A loop that waits and a loop that computes are the same to the host: both execute instructions. So it gives a guest that spins
//! its full share of the processor, and takes it from whoever has work. `block` is what a kernel's idle loop knows and a host
//! cannot see: there is nothing to do before the next event, or that deadline.

use core::hint::{black_box, spin_loop};
use guest_sdk::println;
use guest_sdk::time::{Duration, Instant};

/// Idles as on a machine of its own.
pub fn spin() {
    println!("idle");
    loop {
        spin_loop();
    }
}

/// Idles by giving the processor back.
pub fn block() {
    println!("idle");
    crate::rest();
}

/// The other guest, which has work to do: prints how many steps of it were done in so much time.
pub fn work(milliseconds: u64) {
    println!("ready");
    let end = Instant::now() + Duration::from_millis(milliseconds);
    let (mut steps, mut value) = (0_u64, 1_u64);
    while Instant::now() < end {
        // What is computed does not matter; that it is, does.
        (0..1000).for_each(|i| value = black_box(value.wrapping_mul(31).wrapping_add(i)));
        steps += 1;
    }
    println!("{steps}");
}

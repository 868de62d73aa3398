//! A guest that no longer needs memory.
//!
//! The host sees when a guest touches a page for the first time. That it will not touch it again, nobody tells it: a page that was
//! used stays the guest's until the VM ends, whether the guest's allocator calls it free or not. A kernel that reports its free
//! pages when it is idle lets the host use them, and finds them zeroed when it takes them again.

use alloc::vec::Vec;
use guest_sdk::frames::{self, Frame, LARGE_ORDER};
use guest_sdk::println;
use guest_sdk::time::sleep_until;

/// Says nothing of it.
pub fn keep(mib: u64) {
    use_and_free(mib);
    println!("idle");
}

/// Reports it, as an idle kernel does: what was free for a while, until nothing is left to report.
pub fn report(mib: u64) {
    use_and_free(mib);
    while let Some(again) = frames::report_free() {
        sleep_until(again);
    }
    println!("idle");
}

fn use_and_free(mib: u64) {
    let large = || frames::allocate(LARGE_ORDER).expect("there is memory");
    let frames: Vec<Frame> = (0..mib / 2).map(|_| large()).collect();
    frames.iter().for_each(|frame| frame.fill(0xa5));
}

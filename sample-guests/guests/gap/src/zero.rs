//! An allocator of zeroed pages.
//!
//! The host gives zeroed memory, for it must not show one VM what another one wrote. A kernel that does not know that clears every
//! page once more. That is not only the clearing: a page that nobody has stored to costs the host nothing yet, and clearing it
//! is storing to it. The memory map says which pages are zero, and the SDK's allocator remembers.

use alloc::vec::Vec;
use guest_sdk::frames::{self, Frame};
use guest_sdk::println;
use guest_sdk::time::Instant;

/// Of so many pages one is used, where not all are: as of a large table that is filled here and there.
const FEW: u64 = 8;

/// Clears each page, whatever it is.
pub fn clear(pages: u64) {
    let mut cleared = 0;
    measure(pages, || {
        let frame = frames::allocate(0).expect("there is memory");
        frame.fill(0);
        cleared += frame.size() as u64;
        frame
    });
    println!("{cleared}");
}

/// Leaves it to the allocator, which clears what it does not know to be zero.
pub fn ask(pages: u64) {
    measure(pages, || frames::allocate_zeroed(0).expect("there is memory"));
    println!("{}", frames::figures().cleared);
}

/// Prints nanoseconds for taking pages and storing to each, and for as many of which few are stored to.
fn measure(pages: u64, mut allocate: impl FnMut() -> Frame) {
    let mut taken = Vec::with_capacity(2 * pages as usize); // kept: a page that was used and given back would be taken again
    for every in [1, FEW] {
        let start = Instant::now();
        for i in 0..pages {
            let frame = allocate();
            if i % every == 0 {
                frame.write_at(0, &[1]);
            }
            taken.push(frame);
        }
        println!("{}", start.elapsed().as_nanos());
    }
}

//! What free pages cost: clearing those that are known to be zero or not, reporting them, taking them again.
//!
//! Samples are printed in picoseconds for one page.
//!
//! Start at [`measure`].

use crate::print_all;
use alloc::vec::Vec;
use guest_sdk::frames::{self, Frame};
use guest_sdk::hv_abi::pages::PageRun;
use guest_sdk::hypercall::{pages_claim, pages_report};
use guest_sdk::time::Instant;

/// Order of the runs that are reported, 64 MiB, and pages of a sample of the others.
const RUN: u32 = 14;
const PAGES: u64 = 1024;

/// Measures what `what` names, if it is one of these.
pub fn measure(what: &str, samples: usize) -> bool {
    let sample: fn() -> u64 = match what {
        "zero-known" => || zeroed(true, false),
        "zero-cleared-again" => || zeroed(true, true),
        "zero-used" => || zeroed(false, false),
        "report" => || report()[0],
        "claim" => || report()[1],
        "touch-claimed" => || report()[2],
        _ => return false,
    };
    print_all((0..samples).map(|_| sample()).collect::<Vec<_>>().into_iter());
    true
}

fn picoseconds_each(start: Instant, pages: u64) -> u64 {
    start.elapsed().as_nanos() as u64 * 1000 / pages
}

/// Takes zeroed pages and stores to each: pages that nobody has touched yet, or that were used just now. Clears them once
/// more if that is wanted, as an allocator does that does not know.
fn zeroed(untouched: bool, clear: bool) -> u64 {
    if !untouched {
        let used: Vec<Frame> = (0..PAGES).filter_map(|_| frames::allocate(0).ok()).collect();
        used.iter().for_each(|frame| frame.fill(0xa5));
    }
    let mut taken = Vec::with_capacity(PAGES as usize);
    let before = frames::figures();
    let start = Instant::now();
    for _ in 0..PAGES {
        let frame = frames::allocate_zeroed(0).expect("there is memory");
        if clear {
            frame.fill(0);
        }
        frame.write_at(0, &[1]);
        taken.push(frame);
    }
    let each = picoseconds_each(start, PAGES);
    let cleared = frames::figures().cleared - before.cleared;
    assert_eq!(cleared == 0, untouched, "{cleared} bytes were cleared");
    if untouched {
        core::mem::forget(taken); // used now: the next sample has others
    }
    each
}

/// Fills 64 MiB, reports them, claims them, and touches them: what a page costs in each of the last three.
#[expect(unsafe_code, reason = "pages that are nobody's")]
fn report() -> [u64; 3] {
    let frame = frames::allocate(RUN).expect("there is memory");
    frame.fill(0xa5);
    let runs = [PageRun { start: frame.phys(), count: frame.pages() }];
    let start = Instant::now();
    // SAFETY: the frame is this function's, which touches it again when it is claimed.
    unsafe { pages_report(&runs) }.expect("it is served");
    let reported = picoseconds_each(start, frame.pages());
    let start = Instant::now();
    pages_claim(&runs).expect("it is served");
    let claimed = picoseconds_each(start, frame.pages());
    let start = Instant::now();
    (0..frame.pages()).for_each(|page| frame.write_at(page as usize * 4096, &[1]));
    [reported, claimed, picoseconds_each(start, frame.pages())]
}

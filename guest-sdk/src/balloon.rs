//! The balloon: pages that the guest gives up because the host asks for them.
//!
//! A kernel calls [`start`] once. From then on the balloon holds as many pages as the host asks for, as far as there are so
//! many free, and lets go of them when it asks for fewer. When the kernel is idle ([`report_free`](crate::frames::report_free))
//! it goes on with what could not be had before.
//!
//! Start at [`follow`].

use crate::events::Channel;
use crate::frames::Content::{Held, Reported, Used, Zero};
use crate::frames::pool::{report, transfer, with};
use crate::hypercall;

/// Pages that the balloon leaves to the rest of the guest: it is better short of what the host asks for than a kernel of memory.
const LEFT: u64 = 256;

/// Follows what the host asks for, now and whenever that changes. Does nothing without `PAGE_REPORTING`.
pub fn start() {
    Channel::BALLOON.on_event(|_| follow());
    follow();
}

/// Makes the balloon hold what the host asks for, as far as it can.
pub fn follow() {
    loop {
        let held = with(|pool| pool.buddy.count(Held));
        let Ok(target) = hypercall::balloon(held) else { return };
        with(|pool| pool.target = target);
        let moved = if held < target { inflate(target - held) } else { deflate(held - target) };
        if moved == 0 {
            return;
        }
    }
}

/// As [`follow`], if it could not before.
pub(crate) fn follow_if_short() {
    if with(|pool| pool.buddy.count(Held) < pool.target) {
        follow();
    }
}

/// Takes at most so many pages; gives how many. What the host has already comes first.
fn inflate(pages: u64) -> u64 {
    let pages = pages.min(with(|pool| pool.buddy.free()).saturating_sub(LEFT));
    match transfer(Reported, Held, pages, |_| Ok(())) {
        0 => {}
        moved => return moved,
    }
    match transfer(Used, Held, pages, report) {
        0 => transfer(Zero, Held, pages, report),
        moved => moved,
    }
}

/// Lets go of at most so many pages; gives how many. The host is told before anybody can claim them.
fn deflate(pages: u64) -> u64 {
    transfer(Held, Reported, pages, |_| hypercall::balloon(with(|pool| pool.buddy.count(Held))).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use crate::frames::{Frame, allocate, available, figures};
    use hv_abi::Features;
    use std::vec::Vec;

    #[test]
    fn the_balloon_follows_its_target_up_and_down() {
        let total = available();
        start();
        for target in [100, 1000, 1000, 3, 512, 0] {
            fake::set_balloon(target);
            assert_eq!((figures().held, figures().target, fake::reported().1), (target, target, target));
            assert_eq!(available(), total - target);
        }
        let all: Vec<Frame> = core::iter::from_fn(|| allocate(0).ok()).collect();
        assert_eq!(all.len() as u64, total, "all of it can be had again");
        fake::finish();
    }

    #[test]
    fn a_target_from_before_the_start_is_followed() {
        fake::set_balloon(50);
        start();
        assert_eq!(figures().held, 50);
        fake::finish();
    }

    #[test]
    fn what_the_host_has_already_is_taken_first() {
        let frames: Vec<Frame> = (0..300).map(|_| allocate(0).unwrap()).collect();
        drop(frames);
        while let Some(again) = crate::frames::report_free() {
            fake::advance(again - crate::time::Instant::now());
        }
        start();
        fake::calls();
        fake::set_balloon(200);
        assert_eq!((figures().held, figures().reported), (200, 100));
        assert!(fake::calls().iter().all(|(call, _)| *call == hv_abi::Call::BALLOON));
    }

    #[test]
    fn a_balloon_leaves_a_kernel_something_and_goes_on_when_more_is_free() {
        let mut frames: Vec<Frame> = core::iter::from_fn(|| allocate(0).ok()).collect();
        let total = frames.len() as u64;
        start();
        fake::set_balloon(total);
        assert_eq!(figures().held, 0);
        frames.truncate(1000);
        crate::frames::report_free();
        assert_eq!(figures().held, total - 1000 - LEFT);
        assert_eq!(available(), LEFT);
        drop(frames);
        crate::frames::report_free();
        assert_eq!(figures().held, total - LEFT);
        assert!(allocate(0).is_ok());
        fake::set_balloon(0);
        assert_eq!(available(), total);
    }

    #[test]
    fn without_the_feature_there_is_no_balloon() {
        fake::set_features(Features::EVENTS);
        start();
        assert_eq!(fake::reported(), (0, 0));
    }
}

//! Pages that are reported free and claimed again, and the balloon.

use crate::{after, outside, phys, raw};
use alloc::{vec, vec::Vec};
use guest_sdk::frames::{self, Frame};
use guest_sdk::hv_abi::call::MulticallEntry;
use guest_sdk::hv_abi::pages::{PAGE_RUNS_MAX, PageRun};
use guest_sdk::hv_abi::{Call, GuestPhys, PAGE_SIZE, Status};
use guest_sdk::time::Instant;

const FILLED: u8 = 0xa5;

/// Sixteen pages in a run, filled.
fn filled() -> Frame {
    let frame = frames::allocate(4).expect("there is memory");
    frame.fill(FILLED);
    frame
}

/// The run of some of a frame's pages.
fn run(frame: &Frame, first: u64, count: u64) -> PageRun {
    PageRun { start: GuestPhys(frame.phys().0 + first * PAGE_SIZE), count }
}

fn report(runs: &[PageRun]) -> Result<u64, Status> {
    raw(Call::PAGES_REPORT, [phys(&runs[0]), runs.len() as u64])
}

fn claim(runs: &[PageRun]) -> Result<u64, Status> {
    raw(Call::PAGES_CLAIM, [phys(&runs[0]), runs.len() as u64])
}

/// What each page of a frame is filled with, all of it.
#[track_caller]
fn contents(frame: &Frame) -> Vec<u8> {
    let mut bytes = vec![0; frame.size()];
    frame.read_at(0, &mut bytes);
    let uniform = |page: &[u8]| {
        assert!(page.iter().all(|byte| *byte == page[0]), "a page is neither kept nor cleared");
        page[0]
    };
    bytes.chunks(PAGE_SIZE as usize).map(uniform).collect()
}

/// A frame's contents when these of its pages are zero.
fn zero_at(pages: &[usize]) -> Vec<u8> {
    (0..16).map(|page| if pages.contains(&page) { 0 } else { FILLED }).collect()
}

/// Makes a bad call of each kind with both calls; none may change anything of a frame that is reported in part.
fn refused(arguments: [u64; 2], status: Status) {
    for call in [Call::PAGES_REPORT, Call::PAGES_CLAIM] {
        assert_eq!(raw(call, arguments), Err(status), "{call:?} {arguments:x?}");
    }
}

guest_sdk::tests! {
    "PAGES_REPORT-001 PAGES_REPORT-002 PAGES_REPORT-003 PAGES_CLAIM-001 PAGES_CLAIM-003"
    fn reported_pages_come_back_zero_and_others_keep_what_they_hold() {
        let frame = filled();
        let runs = [run(&frame, 1, 2), run(&frame, 7, 1), run(&frame, 12, 4)];
        for _ in 0..3 {
            assert_eq!(report(&runs), Ok(3));
            assert_eq!(claim(&runs), Ok(3));
            assert_eq!(contents(&frame), zero_at(&[1, 2, 7, 12, 13, 14, 15]));
            frame.fill(FILLED);
            assert_eq!(contents(&frame), zero_at(&[]), "they keep what is stored");
        }
    }

    "PAGES_REPORT-001" fn reported_pages_are_zero_at_every_address() {
        let space = guest_sdk::area::Area::new(2).expect("there is memory");
        let at = space.address() as *mut u8;
        let pages = PageRun { start: space.phys(), count: 4 };
        #[expect(unsafe_code, reason = "memory at two addresses")]
        // SAFETY: the area's bytes, which are mapped at `at` while it lives, and of which nobody has a reference.
        let (first, last) = unsafe {
            at.write_bytes(FILLED, 4 * PAGE_SIZE as usize);
            assert_eq!((report(&[pages]), claim(&[pages])), (Ok(1), Ok(1)));
            (at.read_volatile(), at.add(4 * PAGE_SIZE as usize - 1).read_volatile())
        };
        assert_eq!((first, last), (0, 0));
        assert!(crate::direct(pages.start, 4 * PAGE_SIZE).iter().all(|byte| *byte == 0));
    }

    "PAGES_REPORT-009 PAGES_REPORT-002" fn a_page_may_be_reported_several_times() {
        let frame = filled();
        let all = [run(&frame, 2, 4), run(&frame, 3, 1), run(&frame, 2, 4), run(&frame, 5, 3)];
        assert_eq!(report(&all), Ok(4));
        assert_eq!(report(&all[1..2]), Ok(1));
        // Six pages are reported, however often they were: the balloon holds no more.
        assert_eq!(raw(Call::BALLOON, [100]), Ok(0));
        assert_eq!(claim(&[run(&frame, 2, 1)]), Err(Status::BUSY));
        assert_eq!(raw(Call::BALLOON, [5]), Ok(0));
        assert_eq!(claim(&[run(&frame, 2, 1)]), Ok(1));
        assert_eq!(claim(&[run(&frame, 3, 1)]), Err(Status::BUSY));
        assert_eq!((raw(Call::BALLOON, [0]), claim(&all)), (Ok(0), Ok(4)));
        assert_eq!(contents(&frame), zero_at(&[2, 3, 4, 5, 6, 7]));
    }

    "PAGES_CLAIM-002" fn claiming_what_was_not_reported_leaves_it() {
        let frame = filled();
        assert_eq!(claim(&[run(&frame, 0, 16)]), Ok(1));
        assert_eq!(report(&[run(&frame, 4, 1)]), Ok(1));
        assert_eq!(claim(&[run(&frame, 0, 16), run(&frame, 0, 16)]), Ok(2));
        assert_eq!(contents(&frame), zero_at(&[4]));
    }

    "PAGES_REPORT-003 PAGES_REPORT-004 PAGES_REPORT-005 PAGES_CLAIM-003 PAGES_CLAIM-004 PAGES_CLAIM-005"
    fn so_many_runs_are_taken_and_no_more() {
        let frame = filled();
        let runs = vec![run(&frame, 3, 1); PAGE_RUNS_MAX as usize + 1];
        let at = phys(&runs[0]);
        for count in [PAGE_RUNS_MAX + 1, 1 << 32, u64::MAX] {
            refused([at, count], Status::OUT_OF_RANGE);
        }
        assert_eq!(contents(&frame), zero_at(&[]));
        for call in [Call::PAGES_REPORT, Call::PAGES_CLAIM] {
            assert_eq!(raw(call, [at, 0]), Ok(0));
        }
        assert_eq!(contents(&frame), zero_at(&[]));
        for call in [Call::PAGES_REPORT, Call::PAGES_CLAIM] {
            assert_eq!(raw(call, [at, PAGE_RUNS_MAX]), Ok(PAGE_RUNS_MAX));
        }
        assert_eq!(contents(&frame), zero_at(&[3]));
    }

    "PAGES_REPORT-006 PAGES_CLAIM-006 RULE-008 RULE-009" fn runs_outside_memory_or_misaligned_are_bad_addresses() {
        let frame = filled();
        let runs = [run(&frame, 0, 1); 3];
        for start in outside(32).into_iter().chain([phys(&runs) + 4, phys(&runs) + 1]) {
            refused([start, 2], Status::BAD_ADDRESS);
        }
        refused([4, 0], Status::BAD_ADDRESS);
        for start in [0, 8, 1 << 63] {
            assert_eq!((raw(Call::PAGES_REPORT, [start, 0]), raw(Call::PAGES_CLAIM, [start, 0])), (Ok(0), Ok(0)));
        }
        assert_eq!(contents(&frame), zero_at(&[]));
    }

    "PAGES_REPORT-007 PAGES_CLAIM-007 PAGES_REPORT-008 RULE-006" fn a_run_that_is_not_pages_of_memory_spoils_the_call() {
        let frame = filled();
        assert_eq!(report(&[run(&frame, 9, 1)]), Ok(1));
        let start = frame.phys().0;
        let pages = crate::memory_size() / PAGE_SIZE;
        let bad = [
            (start + 8, 1), (start + 2048, 1), (start + 1, 0), (pages * PAGE_SIZE, 1), ((pages - 1) * PAGE_SIZE, 2), (0, pages + 1),
            (start, u64::MAX), (start, 1 << 52), (start, (1 << 52) - 1), (1 << 63, 1), (u64::MAX - 4095, 1), (u64::MAX - 4095, 2),
        ];
        for (start, count) in bad {
            let bad = PageRun { start: GuestPhys(start), count };
            for runs in [[bad, run(&frame, 0, 16)], [run(&frame, 0, 16), bad]] {
                refused([phys(&runs), 2], Status::BAD_ADDRESS);
            }
        }
        let mut empty = [0, pages * PAGE_SIZE, 1 << 63, u64::MAX - 4095].map(|start| PageRun { start: GuestPhys(start), count: 0 });
        empty[0].start = frame.phys();
        assert_eq!((report(&empty), claim(&empty)), (Ok(4), Ok(4)));
        // One page is still reported, and no other is.
        assert_eq!((raw(Call::BALLOON, [100]), claim(&[run(&frame, 9, 1)])), (Ok(0), Err(Status::BUSY)));
        assert_eq!((raw(Call::BALLOON, [0]), claim(&[run(&frame, 9, 1)])), (Ok(0), Ok(1)));
        assert_eq!(contents(&frame), zero_at(&[9]));
    }

    "PAGES_CLAIM-008 BALLOON-001 BALLOON-003" fn what_the_balloon_holds_is_not_claimed() {
        let frame = filled();
        assert_eq!(raw(Call::BALLOON, [0]), Ok(0), "nobody asks for anything");
        assert_eq!(report(&[run(&frame, 0, 4)]), Ok(1));
        for held in [4, 5, 1 << 32, u64::MAX] {
            assert_eq!(raw(Call::BALLOON, [held]), Ok(0));
            assert_eq!(claim(&[run(&frame, 3, 13)]), Err(Status::BUSY), "{held}");
            assert_eq!(claim(&[run(&frame, 4, 12)]), Ok(1), "they were not reported");
        }
        // What is reported later is not held: which pages the four are is the guest's affair.
        assert_eq!(report(&[run(&frame, 8, 4)]), Ok(1));
        assert_eq!(claim(&[run(&frame, 0, 5), run(&frame, 8, 1)]), Err(Status::BUSY));
        assert_eq!(claim(&[run(&frame, 0, 4)]), Ok(1));
        assert_eq!(claim(&[run(&frame, 8, 4)]), Err(Status::BUSY));
        assert_eq!((raw(Call::BALLOON, [0]), claim(&[run(&frame, 8, 4)])), (Ok(0), Ok(1)));
        assert_eq!(contents(&frame), zero_at(&[0, 1, 2, 3, 8, 9, 10, 11]));
    }

    "RULE-010 PAGES_REPORT-002" fn a_store_to_runs_behind_the_call_changes_nothing() {
        let frame = filled();
        let mut runs = [run(&frame, 2, 1)];
        assert_eq!(report(&runs), Ok(1));
        runs[0] = run(&frame, 5, 1);
        core::hint::black_box(&mut runs);
        assert_eq!((claim(&runs), claim(&[run(&frame, 2, 1)])), (Ok(1), Ok(1)));
        assert_eq!(contents(&frame), zero_at(&[2]));
    }

    "MULTICALL-001 PAGES_REPORT-001 PAGES_CLAIM-001" fn pages_are_reported_and_claimed_in_a_multicall() {
        let frame = filled();
        let runs = [run(&frame, 6, 2)];
        let entry = |call, arguments| MulticallEntry { call, arguments, ..MulticallEntry::default() };
        let of_runs = [phys(&runs), 1, 0, 0, 0];
        let entries = [
            entry(Call::PAGES_REPORT, of_runs), entry(Call::BALLOON, [2, 0, 0, 0, 0]), entry(Call::PAGES_CLAIM, of_runs),
            entry(Call::BALLOON, [0; 5]), entry(Call::PAGES_CLAIM, of_runs),
        ];
        assert_eq!(raw(Call::MULTICALL, [phys(&entries), 5]), Ok(5));
        let statuses = core::hint::black_box(&entries).map(|entry| (entry.status, entry.value));
        let ok = |value| (Status::SUCCESS, value);
        assert_eq!(statuses, [ok(1), ok(0), (Status::BUSY, 0), ok(0), ok(1)]);
        assert_eq!(contents(&frame), zero_at(&[6, 7]));
    }

    "PAGES_REPORT-001 PAGES_REPORT-002 PAGES_CLAIM-001 PAGES_CLAIM-002" fn patterns_survive_any_reports_and_claims() {
        let frames: Vec<Frame> = (0..8).map(|_| filled()).collect();
        let mut expected = [FILLED; 8 * 16];
        let mut random = 1_u64;
        let mut next = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let end = after(200);
        while Instant::now() < end {
            let (of, first) = (next(8), next(16));
            let count = next(17 - first);
            let pages = (of * 16 + first) as usize..(of * 16 + first + count) as usize;
            let runs = [run(&frames[of as usize], first, count)];
            if next(2) == 0 {
                assert_eq!(report(&runs), Ok(1));
                expected[pages].fill(0);
            } else {
                assert_eq!(claim(&runs), Ok(1));
                for page in pages {
                    let frame = &frames[page / 16];
                    let at = page % 16 * PAGE_SIZE as usize;
                    let mut found = [0; PAGE_SIZE as usize];
                    frame.read_at(at, &mut found);
                    assert!(found.iter().all(|byte| *byte == expected[page]), "page {page}");
                    expected[page] = next(256) as u8;
                    frame.fill_at(at, PAGE_SIZE as usize, expected[page]);
                }
            }
        }
        assert_eq!(claim(&frames.iter().map(|frame| run(frame, 0, 16)).collect::<Vec<_>>()), Ok(8));
        for (of, frame) in frames.iter().enumerate() {
            assert_eq!(contents(frame), &expected[of * 16..][..16]);
        }
    }
}

/// Follows the balloon by the calls alone, as often as the target changes, and says on the console what it was. The last
/// target is 0.
pub fn follow_balloon() {
    let frame = filled();
    let mut last = 0;
    loop {
        guest_sdk::events::Channel::BALLOON.wait();
        let target = raw(Call::BALLOON, [last]).expect("it is served");
        guest_sdk::println!("{target}");
        assert_eq!(report(&[run(&frame, 0, target)]), Ok(1));
        assert_eq!(raw(Call::BALLOON, [target]), Ok(target));
        if target == 0 {
            return;
        }
        last = target;
    }
}

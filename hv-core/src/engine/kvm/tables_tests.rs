//! Page tables as ring 0 copies and changes them, in made-up memory.

use super::layout::{GATE, PAGE, SHARED_PAGES, SPACE_PAGES, SPACES_MAX, Shared, frame};
use super::tables::{ADDRESS, Batch, LARGE, NO_EXECUTE, PRESENT, Tables, USER, WRITE, places};
use crate::shared::SharedFile;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

const FRAMES: u64 = 64;
const MEMORY: u64 = FRAMES * PAGE;
const LINK: u64 = PRESENT | WRITE | USER;
const SLOT_255: u64 = 0x7000_0000 | LINK;
const GATE_PAGE: u64 = 0x7100_0000 | PRESENT | USER;

/// Guest memory, and what the engine keeps beside it: a root at frame 1 with tables at 2, 3 and 4 for its first 2 MiB.
struct Made {
    file: SharedFile,
}

impl Made {
    fn new() -> Self {
        let pages = FRAMES + SHARED_PAGES + 1 + 1 + SPACES_MAX as u64 * SPACE_PAGES;
        let made = Self { file: SharedFile::new("tables", pages * PAGE).unwrap() };
        let shared = made.shared();
        shared.memory.store(MEMORY, Relaxed);
        shared.slot_255.store(SLOT_255, Relaxed);
        shared.gate.store(GATE_PAGE, Relaxed);
        for (place, space) in (0..).zip(&shared.spaces) {
            space.cr3.store(0x1_0000_0000 + place * SPACE_PAGES * PAGE, Relaxed);
        }
        for table in 1..4 {
            made.store(table, 0, ((table + 1) * PAGE) | LINK);
        }
        made
    }

    fn shared(&self) -> &Shared {
        self.file.at(MEMORY)
    }

    fn tables(&self) -> Tables<'_> {
        let at = |page: u64| self.file.pointer(page * PAGE, 1).addr().get() as u64;
        let behind = FRAMES + SHARED_PAGES;
        Tables {
            shared: self.shared(),
            direct_map: at(0),
            frames: at(behind),
            kernel_table: at(behind + 1),
            pages: at(behind + 2),
        }
    }

    fn store(&self, table: u64, index: u64, entry: u64) {
        self.file.store_word(table * PAGE + index * 8, entry);
    }

    /// The root's place, ready to be entered.
    fn place(&self) -> usize {
        let place = places(PAGE).next().unwrap();
        self.shared().spaces[place].root.store(PAGE, SeqCst);
        self.shared().spaces[place].stale.store(1, SeqCst);
        self.tables().refresh(place);
        place
    }

    /// An entry of a copy: of the root, or of the table of a level below.
    fn copied(&self, place: usize, below: u64, index: u64) -> u64 {
        let page = FRAMES + SHARED_PAGES + 2 + place as u64 * SPACE_PAGES + below;
        self.file.at::<AtomicU64>(page * PAGE + index * 8).load(Relaxed)
    }

    /// Makes one update; gives the old value and the status.
    fn update(&self, entry: u64, new: u64) -> (u64, u64) {
        let at = 32; // a frame for the call's own structures
        [entry, new, 0, 0].into_iter().zip(0..).for_each(|(word, index)| self.store(at, index, word));
        let mut batch: Box<Batch> = Box::new([[0; 4]; 512]);
        self.tables().update(&mut batch, at * PAGE, 1).expect("a good call");
        let word = |index: u64| self.file.at::<AtomicU64>(at * PAGE + index * 8).load(Relaxed);
        (word(2), word(3))
    }
}

#[test]
fn a_copy_has_the_guests_entries_and_the_hypervisors() {
    let made = Made::new();
    made.store(1, 7, (5 * PAGE) | LINK);
    made.store(4, 40, (6 * PAGE) | LINK | NO_EXECUTE);
    made.store(4, 3, (6 * PAGE) | LINK); // below what a program can map
    let place = made.place();
    assert_eq!(made.copied(place, 0, 7), (5 * PAGE) | LINK);
    assert_eq!((made.copied(place, 0, 255), made.copied(place, 0, 256)), (SLOT_255, 0));
    assert_eq!(made.copied(place, 3, 40), (6 * PAGE) | LINK | NO_EXECUTE);
    assert_eq!((made.copied(place, 3, 3), made.copied(place, 3, GATE / PAGE)), (0, GATE_PAGE));
    let own = made.shared().spaces[place].cr3.load(Relaxed);
    assert_eq!(made.copied(place, 0, 0), (own + PAGE) | LINK);
    assert_eq!(made.copied(place, 2, 0) & ADDRESS, own + 3 * PAGE);
}

#[test]
fn rights_above_hold_below_and_what_breaks_a_rule_is_absent() {
    let made = Made::new();
    made.store(1, 0, (2 * PAGE) | PRESENT | USER | NO_EXECUTE);
    made.store(4, 40, (6 * PAGE) | LINK);
    made.store(2, 5, (6 * PAGE) | LINK | LARGE);
    made.store(1, 9, MEMORY | LINK);
    made.store(1, 10, (5 * PAGE) | LINK | (1 << 8));
    let place = made.place();
    assert_eq!(made.copied(place, 3, 40), (6 * PAGE) | PRESENT | USER | NO_EXECUTE);
    assert_eq!([made.copied(place, 1, 5), made.copied(place, 0, 9), made.copied(place, 0, 10)], [0; 3]);
    assert_eq!(
        made.copied(place, 3, GATE / PAGE),
        GATE_PAGE,
        "the gate is there, whatever the guest's tables say"
    );
}

#[test]
fn without_tables_below_the_gate_is_there_all_the_same() {
    let made = Made::new();
    made.store(1, 0, 0);
    let place = made.place();
    assert_eq!((made.copied(place, 3, GATE / PAGE), made.copied(place, 3, 40)), (GATE_PAGE, 0));
}

#[test]
fn a_change_of_a_copied_table_makes_the_copy_anew_and_no_other_does() {
    let made = Made::new();
    let place = made.place();
    let stale = || made.shared().spaces[place].stale.load(SeqCst);
    assert_eq!(made.update(9 * PAGE, (6 * PAGE) | LINK), (0, 0));
    assert_eq!(stale(), 0, "a table that is not copied");
    assert_eq!(made.update(4 * PAGE + 40 * 8, (6 * PAGE) | LINK), (0, 0));
    assert_eq!(stale(), 1);
    made.tables().refresh(place);
    assert_eq!((stale(), made.copied(place, 3, 40)), (0, (6 * PAGE) | LINK));
}

#[test]
fn updates_are_checked_and_a_roots_upper_entries_are_refused() {
    let made = Made::new();
    let tables = made.tables();
    tables.frame(PAGE).fetch_or(frame::ROOT, SeqCst);
    const BAD_ARGUMENT: (u64, u64) = (0, 2);
    const BAD_ADDRESS: (u64, u64) = (0, 3);
    assert_eq!(made.update(PAGE + 255 * 8, (6 * PAGE) | LINK), BAD_ARGUMENT);
    assert_eq!(made.update(9 * PAGE + 4, 0), BAD_ADDRESS);
    assert_eq!(made.update(MEMORY, 0), BAD_ADDRESS);
    assert_eq!(made.update(9 * PAGE, MEMORY | LINK), BAD_ADDRESS);
    assert_eq!(made.update(9 * PAGE, (6 * PAGE) | LINK | (1 << 8)), BAD_ARGUMENT);
    assert_eq!(made.update(9 * PAGE, (6 * PAGE) | LINK | LARGE), BAD_ARGUMENT, "not aligned to its size");
    tables.frame(10 * PAGE).fetch_or(frame::KERNEL_ROOT, SeqCst);
    assert_eq!(made.update(10 * PAGE + 32 * 8, (6 * PAGE) | LINK), BAD_ARGUMENT);
    assert_eq!(made.update(10 * PAGE + 33 * 8, (6 * PAGE) | LINK), (0, 0));
    let behind = (FRAMES + SHARED_PAGES + 1) * PAGE + 33 * 8;
    assert_eq!(made.file.at::<AtomicU64>(behind).load(Relaxed), (6 * PAGE) | LINK, "it is in force at once");
}

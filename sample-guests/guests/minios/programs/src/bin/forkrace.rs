//! `forkrace N`: forks N times while two other threads write and look at the memory that is copied.
//!
//! The writer stores its turn's number to one page after the other. So at any moment each page's number is that of the page
//! before or one less: for the reader, which looks from the last page to the first, and for a child, whose copy is of one
//! moment and must not change any more.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use os::process::{self, Fork};
use os::thread;

os::entry!(main);

const PAGES: usize = 48;
/// Words in a page.
const PAGE: usize = 512;

type Pages = &'static [AtomicU64];

static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> i32 {
    let [count] = os::arguments() else { return usage() };
    let Ok(count) = count.parse() else { return usage() };
    let words: Vec<AtomicU64> = (0..PAGES * PAGE).map(|_| AtomicU64::new(0)).collect();
    let pages: Pages = Box::leak(words.into());
    let (Ok(writer), Ok(reader)) =
        (thread::spawn(move || write(pages)), thread::spawn(move || look_often(pages)))
    else {
        os::eprintln!("forkrace: no threads");
        return 1;
    };
    let children = (0..count).filter(|_| child_sees_one_moment(pages)).count() as u64;
    STOP.store(true, SeqCst);
    let (turns, seen) = (writer.join(), reader.join());
    let kept = numbers(pages).all(|number| number == turns);
    let good = children == count && seen && kept;
    os::println!("forkrace: {children} of {count} children, reader {seen}, writer {kept}");
    i32::from(!good)
}

/// The pages' numbers, looked at from the last one to the first.
fn numbers(pages: Pages) -> impl Iterator<Item = u64> {
    pages.iter().step_by(PAGE).rev().map(|word| word.load(SeqCst))
}

/// Stores to all pages, turn for turn; gives how many turns there were.
fn write(pages: Pages) -> u64 {
    for turn in 1.. {
        pages.iter().step_by(PAGE).for_each(|word| word.store(turn, SeqCst));
        if STOP.load(SeqCst) {
            return turn;
        }
    }
    unreachable!("turns do not run out")
}

/// Whether no look finds a page's number before it is in the page that is written first.
fn look_often(pages: Pages) -> bool {
    while !STOP.load(SeqCst) {
        if !numbers(pages).is_sorted() {
            return false;
        }
    }
    true
}

/// Forks. Whether the child sees the pages as they were at one moment, and later the same.
fn child_sees_one_moment(pages: Pages) -> bool {
    match process::fork() {
        Ok(Fork::Child) => {
            // Nothing is allocated here: another thread may have held the heap's mutex when this one was copied.
            let mut first = [0; PAGES];
            first.iter_mut().zip(numbers(pages)).for_each(|(to, number)| *to = number);
            let is_moment = first.is_sorted() && first[PAGES - 1] - first[0] <= 1;
            let stays = (0..20).all(|_| {
                process::give_way();
                numbers(pages).eq(first)
            });
            process::exit(i32::from(!is_moment || !stays))
        }
        Ok(Fork::Parent(child)) => process::wait(Some(child)) == Ok((child, 0)),
        Err(_) => false,
    }
}

fn usage() -> i32 {
    os::eprintln!("usage: forkrace N");
    2
}

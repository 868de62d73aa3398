//! `cowtest`: checks that parent and child share no memory that one of them has written to.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use os::process::{self, Fork};

os::entry!(main);

const WORDS: usize = 64 << 10; // half a MiB, 128 pages

fn main() -> i32 {
    let mut words: Vec<usize> = (0..WORDS).collect();
    let mut children = 0;
    for generation in 1..=3 {
        match process::fork() {
            Ok(Fork::Child) => return child(&mut words, generation),
            Ok(Fork::Parent(_)) => children += 1,
            Err(error) => {
                os::eprintln!("cowtest: {error}");
                return 1;
            }
        }
        words.iter_mut().step_by(generation).for_each(|word| *word += WORDS);
    }
    let mut good = 0;
    while let Ok((_, status)) = process::wait(None) {
        good += i32::from(status == 0);
    }
    let own =
        (0..WORDS).all(|i| words[i] == i + WORDS * (1..=3).filter(|step| i.is_multiple_of(*step)).count());
    os::println!("cowtest: {good} of {children} children and {} parent saw what was theirs", u8::from(own));
    i32::from(!own || good != children)
}

/// Sees the memory as it was at the fork, changes all of it, and sees that.
fn child(words: &mut [usize], generation: usize) -> i32 {
    let at_fork = |i: usize| i + WORDS * (1..generation).filter(|step| i.is_multiple_of(*step)).count();
    let unchanged = (0..WORDS).all(|i| words[i] == at_fork(i));
    words.iter_mut().for_each(|word| *word = !*word);
    let changed = (0..WORDS).all(|i| words[i] == !at_fork(i));
    i32::from(!unchanged || !changed)
}

//! `cowtest [SEED]`: checks that parent and child share no memory that one of them has written to. With a seed, a tree of
//! processes writes, looks and forks at random; without one, three children do so in order.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec;
use alloc::vec::Vec;
use os::process::{self, Fork};

os::entry!(main);

const WORDS: usize = 64 << 10; // half a MiB, 128 pages
const PAGE: usize = 512;

fn main() -> i32 {
    match os::arguments() {
        [] => in_order(),
        [seed] => match seed.parse() {
            Ok(seed) => at_random(seed),
            Err(_) => usage(),
        },
        _ => usage(),
    }
}

fn usage() -> i32 {
    os::eprintln!("usage: cowtest [SEED]");
    2
}

fn in_order() -> i32 {
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

fn at_random(seed: u64) -> i32 {
    let mut walk = Walk { random: seed | 1, words: vec![0; WORDS], expected: [0; WORDS / PAGE], writes: 0 };
    match walk.go(0, 400) {
        Ok(processes) => {
            os::println!("cowtest: {processes} processes saw what was theirs");
            0
        }
        Err(what) => {
            os::eprintln!("cowtest: {what}");
            1
        }
    }
}

/// A process that writes, looks and forks at random.
struct Walk {
    random: u64,
    words: Vec<usize>,
    /// What the first and the last word of each page should be.
    expected: [usize; WORDS / PAGE],
    writes: usize,
}

impl Walk {
    /// Makes steps, and waits for its children. Gives how many processes they were with it.
    fn go(&mut self, depth: usize, steps: usize) -> Result<i32, &'static str> {
        let mut processes = 1;
        for _ in 0..steps {
            match self.random(64) {
                0 if depth < 3 => processes += self.fork(depth, steps / 2)?,
                1 if processes > 1 => drop(process::wait(None).map(|(_, status)| assert_eq!(status, 0))),
                2..48 => {
                    let page = self.random(WORDS / PAGE);
                    self.write(page);
                }
                _ => self.look()?,
            }
        }
        while let Ok((_, status)) = process::wait(None) {
            if status != 0 {
                return Err("a child saw what was not its own");
            }
        }
        self.look()?;
        Ok(processes)
    }

    /// Has a child go on from here, with another course. Out of memory, there is none.
    fn fork(&mut self, depth: usize, steps: usize) -> Result<i32, &'static str> {
        match process::fork() {
            Ok(Fork::Child) => {
                self.random ^= u64::from(process::own()) << 32;
                process::exit(i32::from(self.go(depth + 1, steps).is_err()))
            }
            Ok(Fork::Parent(_)) => Ok(1),
            Err(_) => Ok(0),
        }
    }

    fn write(&mut self, page: usize) {
        self.writes += 1;
        let value = self.writes << 16 | process::own() as usize;
        self.expected[page] = value;
        self.words[page * PAGE] = value;
        self.words[page * PAGE + PAGE - 1] = value;
    }

    fn look(&self) -> Result<(), &'static str> {
        let good = |page: usize| {
            let words = &self.words[page * PAGE..][..PAGE];
            words[0] == self.expected[page] && words[PAGE - 1] == self.expected[page]
        };
        if (0..WORDS / PAGE).all(good) { Ok(()) } else { Err("a page is not what this process wrote") }
    }

    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 33) as usize % below
    }
}

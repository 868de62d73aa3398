//! `wc [-lwc] [FILE..]`: counts lines, words and bytes.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use os::io;

os::entry!(main);

/// Lines, words, bytes.
type Counts = [u64; 3];

fn main() -> i32 {
    let options = |word: &&&str| word.len() > 1 && word.starts_with('-');
    let letters: String = os::arguments().iter().take_while(options).map(|word| &word[1..]).collect();
    let files: Vec<&str> = os::arguments().iter().skip_while(options).copied().collect();
    if letters.contains(|letter| !"lwc".contains(letter)) {
        os::eprintln!("usage: wc [-lwc] [FILE..]");
        return 2;
    }
    let mut total = Counts::default();
    let all = io::each_input("wc", &files, |name, input| {
        let counts = count(input);
        total.iter_mut().zip(counts).for_each(|(total, count)| *total += count);
        show(&letters, counts, name);
    });
    if files.len() > 1 {
        show(&letters, total, Some("total"));
    }
    i32::from(!all)
}

fn count(input: u32) -> Counts {
    let ([mut lines, mut words, mut bytes], mut in_word) = (Counts::default(), false);
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = io::read(input, &mut buffer) {
        bytes += length as u64;
        for byte in &buffer[..length] {
            lines += u64::from(*byte == b'\n');
            let blank = byte.is_ascii_whitespace() || *byte == 0x0b;
            words += u64::from(!blank && !in_word);
            in_word = !blank;
        }
    }
    [lines, words, bytes]
}

/// As POSIX says: the numbers that were asked for, then the name, with blanks between.
fn show(letters: &str, counts: Counts, name: Option<&str>) {
    let mut line = String::new();
    for (letter, count) in "lwc".chars().zip(counts) {
        if letters.is_empty() || letters.contains(letter) {
            let blank = if line.is_empty() { "" } else { " " };
            let _ = write!(line, "{blank}{count}"); // a string takes all
        }
    }
    match name {
        Some(name) => os::println!("{line} {name}"),
        None => os::println!("{line}"),
    }
}

//! `grep [-vcn] PATTERN [FILE..]`: writes the lines that a pattern is in; `os::pattern` says what that is.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::String;
use core::fmt::Write;
use os::io::{self, Lines, Output};
use os::pattern::Pattern;

os::entry!(main);

fn main() -> i32 {
    let arguments = os::arguments();
    let options = arguments.iter().take_while(|word| word.len() > 1 && word.starts_with('-')).count();
    let letters: String = arguments[..options].iter().map(|word| &word[1..]).collect();
    let [pattern, files @ ..] = &arguments[options..] else {
        os::eprintln!("usage: grep [-vcn] PATTERN [FILE..]");
        return 2;
    };
    let (inverted, counted, numbered) = (letters.contains('v'), letters.contains('c'), letters.contains('n'));
    let pattern = Pattern::new(pattern);
    let mut any = false;
    let all = io::each_input("grep", files, |name, input| {
        let name = name.filter(|_| files.len() > 1);
        let (mut output, mut found) = (Output::new(), 0);
        for (number, line) in (1..).zip(Lines::of(input)) {
            if pattern.is_in(&line) == inverted {
                continue;
            }
            found += 1;
            if counted {
                continue;
            }
            show_place(&mut output, name, numbered.then_some(number));
            let _ = writeln!(output, "{line}"); // output takes all
        }
        if counted {
            show_place(&mut output, name, None);
            let _ = writeln!(output, "{found}");
        }
        any |= found > 0;
    });
    if !all { 2 } else { i32::from(!any) }
}

fn show_place(output: &mut Output, name: Option<&str>, number: Option<u64>) {
    if let Some(name) = name {
        let _ = write!(output, "{name}:");
    }
    if let Some(number) = number {
        let _ = write!(output, "{number}:");
    }
}

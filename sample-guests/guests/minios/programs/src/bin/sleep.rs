//! `sleep SECONDS`: waits; fractions such as 0.25 count.

#![no_std]
#![no_main]

use core::time::Duration;
use os::process;

os::entry!(main);

fn main() -> i32 {
    match os::arguments() {
        [seconds] => match seconds.parse::<f64>().map(Duration::try_from_secs_f64) {
            Ok(Ok(duration)) => process::sleep(duration),
            _ => return usage(),
        },
        _ => return usage(),
    }
    0
}

fn usage() -> i32 {
    os::eprintln!("usage: sleep SECONDS");
    2
}

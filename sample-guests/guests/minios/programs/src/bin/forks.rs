//! `forks N`: forks, exits and waits N times, and says how long one took.

#![no_std]
#![no_main]

use os::process::{self, Fork};

os::entry!(main);

fn main() -> i32 {
    let [count] = os::arguments() else { return usage() };
    let Ok(count @ 1_u64..) = count.parse() else { return usage() };
    let now = || process::system().map_or(0, |info| info.up_nanoseconds);
    let start = now();
    for i in 0..count {
        let status = (i % 100) as i32;
        match process::fork() {
            Ok(Fork::Child) => return status,
            Ok(Fork::Parent(child)) => {
                if process::wait(Some(child)) != Ok((child, status)) {
                    os::eprintln!("forks: {child} did not end with status {status}");
                    return 1;
                }
            }
            Err(error) => {
                os::eprintln!("forks: {error}");
                return 1;
            }
        }
    }
    os::println!("forks: {count} children came and went");
    os::eprintln!("forks: {} us each", (now() - start) / count / 1000);
    0
}

fn usage() -> i32 {
    os::eprintln!("usage: forks N");
    2
}

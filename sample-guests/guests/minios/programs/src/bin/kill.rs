//! `kill PROCESS..`: ends processes.

#![no_std]
#![no_main]

use os::process;

os::entry!(main);

fn main() -> i32 {
    let mut status = 0;
    for word in os::arguments() {
        let killed = word.parse().map_err(|_| os::Error::NoProcess).and_then(process::kill);
        if let Err(error) = killed {
            os::eprintln!("kill: {word}: {error}");
            status = 1;
        }
    }
    status
}

//! `mv FROM TO`: gives a file or directory another name, within its file system.

#![no_std]
#![no_main]

use os::io;

os::entry!(main);

fn main() -> i32 {
    let [from, to] = os::arguments() else {
        os::eprintln!("usage: mv FROM TO");
        return 2;
    };
    match io::rename(from, to) {
        Ok(()) => 0,
        Err(error) => {
            os::eprintln!("mv: {from} to {to}: {error}");
            1
        }
    }
}

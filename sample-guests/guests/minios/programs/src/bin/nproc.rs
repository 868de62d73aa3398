//! `nproc`: how many vCPUs there are.

#![no_std]
#![no_main]

use os::process;

os::entry!(main);

fn main() -> i32 {
    match process::system() {
        Ok(info) => {
            os::println!("{}", info.vcpus);
            0
        }
        Err(error) => {
            os::eprintln!("nproc: {error}");
            1
        }
    }
}

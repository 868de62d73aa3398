//! The smallest guest: prints a line and ends.

#![no_std]
#![no_main]

guest_sdk::entry!(main);

fn main() {
    guest_sdk::println!("Hello from a guest kernel.");
}

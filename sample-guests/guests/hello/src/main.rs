//! Prints a greeting and ends: the smallest guest.

#![no_std]
#![no_main]

guest_sdk::entry!(main);

fn main() {
    guest_sdk::println!("Hello from a guest kernel.");
}

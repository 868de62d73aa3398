//! The conformance suite of the ABI: one test, in a VM of its own, for each clause that a guest can see.
//!
//! It is written against `hv-abi` and `guest-sdk` only. `cargo run -p conformance` runs it; by hand, `hv run
//! conformance -- N` runs test N. Calls are made raw where the SDK would not let a wrong one be made.

#![no_std]
#![no_main]

extern crate alloc;

mod calls;
mod entries;
mod events;
mod multicall;
mod timer;

use guest_sdk::hv_abi::{Call, Status};

guest_sdk::entry!(guest_sdk::testing::main);

/// Makes a call with any arguments; those that are not given are zero.
#[expect(unsafe_code, reason = "a raw hypercall")]
fn raw<const N: usize>(call: Call, arguments: [u64; N]) -> Result<u64, Status> {
    let mut all = [0; 5];
    all[..N].copy_from_slice(&arguments);
    // SAFETY: the tests name only memory that they own, or that no guest has.
    unsafe { guest_sdk::hypercall::any(call, all) }
}

/// Where something of the image, or of its stack, is in guest-physical memory.
fn phys<T>(value: &T) -> u64 {
    guest_sdk::memory::phys_of(core::slice::from_ref(value)).expect("the image is in memory").0
}

/// Bytes of guest memory.
fn memory_size() -> u64 {
    guest_sdk::boot::info().memory_size
}

/// Ranges of `length` bytes that are not wholly in guest memory.
fn outside(length: u64) -> [u64; 6] {
    let size = memory_size();
    [size, size - length + 8, size - 8, 1 << 63, u64::MAX - 7, (u64::MAX - length + 1) & !7]
}

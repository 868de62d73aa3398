//! The peaceful ones: a VM beside the others that must not notice, and one that uses all that it was given.

use crate::Numbers;
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::PAGE_SIZE;
use guest_sdk::hv_abi::boot::region;
use guest_sdk::time::{Duration, Instant, timer};
use guest_sdk::{hypercall, memory, println};

/// A checksum over memory, with calls, upcalls and sleeps in between; it must come out the same each time.
pub fn checksum(_: Numbers) {
    let mut words = alloc::vec![0_u64; 64 << 10];
    let first = round(&mut words);
    for number in 1_u64.. {
        let again = round(&mut words);
        assert_eq!(again, first, "round {number}: something changed what this guest computes");
        println!("round {number}");
    }
}

fn round(words: &mut [u64]) -> u64 {
    timer::set(Instant::now() + Duration::from_micros(100), tick);
    let mut random = fastrand::Rng::with_seed(7);
    words.iter_mut().for_each(|word| *word = random.u64(..));
    assert_eq!(hypercall::version(), 1);
    let sum = |sum: u64, word: &u64| (sum ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(13);
    let sum = words.iter().fold(0xcbf2_9ce4_8422_2325, sum);
    guest_sdk::time::sleep(Duration::from_millis(1));
    sum
}

fn tick(_: Channel) {
    timer::set(Instant::now() + Duration::from_micros(100), tick);
}

/// Writes to every page of memory, takes every channel, and stays.
pub fn touch(_: Numbers) {
    while hypercall::event_allocate(0).is_ok() {}
    let mut pages = 0_u64;
    for usable in memory::map().iter().filter(|region| region.kind == region::USABLE) {
        pages += usable.length / PAGE_SIZE;
    }
    let mut held = alloc::vec::Vec::new();
    // Until the heap has no more: it has all that is usable.
    loop {
        let mut block = alloc::vec::Vec::<u8>::new();
        if block.try_reserve_exact(64 << 10).is_err() {
            break;
        }
        block.resize(64 << 10, 0xa5);
        if held.try_reserve(1).is_err() {
            break;
        }
        held.push(block);
    }
    println!("touched {} of {} KiB", held.len() * 64, pages * 4);
    hypercall::block(guest_sdk::hv_abi::call::NEVER);
}

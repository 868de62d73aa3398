//! Rings that break the rules: the device stops, and works again after a reset.

use crate::ring::{
    COMMON, Descriptor, Device, DiskRequest, INDIRECT, READ_SECTORS, READY, Ring, number, pages, store_chain,
};
use crate::{memory_size, outside};
use core::sync::atomic::{AtomicU16, Ordering::SeqCst};
use guest_sdk::hv_abi::PAGE_SIZE;
use guest_sdk::hv_abi::device::{interrupt, kind, register};

/// Descriptors of the queues here.
const SIZE: u16 = 8;

/// What a device does that has found an offence: it says so, does nothing more, and works again once it was reset.
#[track_caller]
fn expect_broken(mut ring: Ring, what: &str) {
    let device = ring.device;
    device.channel().wait();
    assert!(device.is_broken(), "{what}");
    assert_ne!(device.read(register::INTERRUPT_STATUS) & interrupt::CONFIG_CHANGE, 0, "{what}");
    let used = ring.used_index();
    number::<AtomicU16>(ring.available + 4).store(0, SeqCst);
    Descriptor::writable(pages(1), 8).store(ring.descriptors, 0);
    ring.offered = used;
    ring.offer(0);
    device.notify();
    device.write(register::STATUS, READY);
    assert!(device.is_broken(), "{what}: a driver cannot say that it is well");
    device.reset();
    assert_eq!(ring.used_index(), used, "{what}: it worked on");
    assert!(!device.channel().take(), "{what}: it fired again");
    works(device);
}

/// Makes a device ready and has it serve a request.
#[track_caller]
fn works(device: Device) {
    let mut ring = Ring::new(device, SIZE, COMMON);
    ring.set_used_event(100);
    if device.0.kind == kind::BLOCK {
        let request = DiskRequest::new(READ_SECTORS, 0);
        assert_eq!(ring.serve(&request.chain(&[Descriptor::writable(pages(1), 512)])), 513);
    } else {
        assert_eq!(ring.serve(&[Descriptor::writable(pages(1), 16)]), 16);
    }
    assert!(!device.is_broken());
}

/// Has a device serve a good request, then one that breaks the rules.
#[track_caller]
fn offend(device: Device, what: &str, offence: impl FnOnce(&mut Ring)) {
    let mut ring = Ring::new(device, SIZE, COMMON);
    ring.set_used_event(100); // the channel fires for the offence alone
    if device.0.kind == kind::ENTROPY {
        ring.serve(&[Descriptor::writable(pages(1), 16)]);
    }
    offence(&mut ring);
    device.notify();
    expect_broken(ring, what);
}

fn entropy(what: &str, offence: impl FnOnce(&mut Ring)) {
    offend(Device::entropy(), what, offence);
}

/// A chain that has these descriptors, as they are.
fn descriptors(ring: &mut Ring, table: &[Descriptor]) {
    for (index, descriptor) in (0..).zip(table) {
        descriptor.store(ring.descriptors, index);
    }
    ring.offer(0);
}

fn indirect(address: u64, length: u32) -> Descriptor {
    Descriptor { address, length, flags: INDIRECT, next: 0 }
}

guest_sdk::tests! {
    "DEVICE-013" fn rings_that_are_not_in_guest_memory_or_misaligned() {
        for device in [Device::entropy(), Device::disk()] {
            let good = || Ring::without_device(device, SIZE);
            let broken = |ring: Ring, what: &str| {
                ring.set_up(COMMON);
                // Its parts may be anywhere; what is looked at afterwards is the driver's own.
                expect_broken(good(), what);
            };
            for at in [memory_size(), memory_size() - 16, 1 << 40, 1 << 63, 0u64.wrapping_sub(PAGE_SIZE)] {
                broken(Ring { descriptors: at, ..good() }, "the table is not in guest memory");
                broken(Ring { available: at, ..good() }, "the available ring is not in guest memory");
                broken(Ring { used: at, ..good() }, "the used ring is not in guest memory");
            }
            for (descriptors, available, used) in [(8, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 2), (0, 0, 1)] {
                let ring = good();
                let moved = Ring {
                    descriptors: ring.descriptors + descriptors,
                    available: ring.available + available,
                    used: ring.used + used,
                    ..ring
                };
                broken(moved, "a part of the ring is misaligned");
            }
        }
    }

    "DEVICE-013" fn indices_that_are_further_ahead_than_the_queue_is_long() {
        for ahead in [SIZE + 1, SIZE + 2, 0x7fff, 0x8000, 0xffff] {
            for device in [Device::entropy(), Device::disk()] {
                offend(device, "the available index", |ring| ring.publish(ring.offered.wrapping_add(ahead)));
            }
        }
    }

    "DEVICE-013" fn descriptors_that_the_table_does_not_have() {
        let buffer = Descriptor::writable(pages(1), 8);
        for index in [SIZE, SIZE + 1, 0x8000, 0xffff] {
            entropy("a head", |ring| ring.offer(index));
            entropy("a next descriptor", |ring| descriptors(ring, &[buffer.then(index)]));
            let table = pages(1);
            buffer.then(index).store(table, 0);
            entropy("a next one in a table", |ring| descriptors(ring, &[indirect(table, 16 * u32::from(SIZE))]));
        }
    }

    "DEVICE-013" fn chains_that_loop_or_are_longer_than_the_queue() {
        let buffer = Descriptor::writable(pages(1), 8);
        entropy("a descriptor behind itself", |ring| descriptors(ring, &[buffer.then(0)]));
        entropy("two behind each other", |ring| descriptors(ring, &[buffer.then(1), buffer.then(0)]));
        entropy("a loop at the end", |ring| descriptors(ring, &[buffer.then(1), buffer.then(2), buffer.then(1)]));
        let table = pages(1);
        store_chain(table, 0, &[buffer; SIZE as usize + 1]);
        entropy("a table with a longer chain", |ring| descriptors(ring, &[indirect(table, 16 * 9)]));
        entropy("a longer chain by a table", |ring| descriptors(ring, &[buffer.then(1), indirect(table, 16 * 9)]));
        buffer.then(0).store(table, 0);
        entropy("a loop in a table", |ring| descriptors(ring, &[indirect(table, 64)]));
    }

    "DEVICE-013" fn readable_buffers_behind_writable_ones() {
        let page = pages(1);
        let (readable, writable) = (Descriptor::readable(page, 8), Descriptor::writable(page, 8));
        entropy("at the end", |ring| descriptors(ring, &[writable.then(1), readable]));
        entropy("in the middle", |ring| descriptors(ring, &[readable.then(1), writable.then(2), readable.then(3), writable]));
        let table = pages(1);
        store_chain(table, 0, &[writable, readable]);
        entropy("in a table", |ring| descriptors(ring, &[indirect(table, 32)]));
    }

    "DEVICE-013" fn buffers_that_are_not_in_guest_memory() {
        let good = Descriptor::writable(pages(1), 8);
        for address in outside(64) {
            let bad = Descriptor::writable(address, 64);
            entropy("the only buffer", |ring| descriptors(ring, &[bad]));
            entropy("the second", |ring| descriptors(ring, &[good.then(1), bad]));
            entropy("one to read", |ring| descriptors(ring, &[Descriptor::readable(address, 64).then(1), good]));
            let table = pages(1);
            bad.store(table, 0);
            entropy("one of a table", |ring| descriptors(ring, &[indirect(table, 16)]));
            let request = DiskRequest::new(READ_SECTORS, 0);
            offend(Device::disk(), "one of a disk's", |ring| ring.request(&request.chain(&[bad])));
        }
        let long = Descriptor::writable(PAGE_SIZE, u32::MAX);
        entropy("one that is longer than memory", |ring| descriptors(ring, &[long]));
    }

    "DEVICE-013" fn tables_in_tables_and_tables_that_are_none() {
        let (buffer, table, inner) = (Descriptor::writable(pages(1), 8), pages(1), pages(1));
        buffer.store(inner, 0);
        indirect(inner, 16).store(table, 0);
        entropy("a table in a table", |ring| descriptors(ring, &[indirect(table, 16)]));
        buffer.then(1).store(table, 0);
        indirect(inner, 16).store(table, 1);
        entropy("behind a buffer", |ring| descriptors(ring, &[indirect(table, 32)]));
        for length in [0, 1, 15, 17] {
            entropy("a part of a descriptor", |ring| descriptors(ring, &[indirect(inner, length)]));
        }
        for address in outside(16) {
            entropy("not in guest memory", |ring| descriptors(ring, &[indirect(address, 16)]));
        }
        buffer.then(1).store(table, 0);
        entropy("with an end that is missing", |ring| descriptors(ring, &[indirect(table, 16)]));
    }

    "DEVICE-013" fn requests_that_are_too_short_for_their_device() {
        let page = pages(1);
        entropy("nothing to write to", |ring| descriptors(ring, &[Descriptor::readable(page, 64)]));
        entropy("a buffer of no bytes", |ring| descriptors(ring, &[Descriptor::writable(page, 0)]));
        let disk = |what: &str, chain: &[Descriptor]| offend(Device::disk(), what, |ring| ring.request(chain));
        let request = DiskRequest::new(READ_SECTORS, 0);
        disk("no room for the status", &[request.header()]);
        disk("no header", &[request.status_byte()]);
        disk("a part of a header", &[Descriptor { length: 15, ..request.header() }, request.status_byte()]);
        disk("nothing at all", &[Descriptor::readable(page, 0)]);
    }
}

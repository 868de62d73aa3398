//! Rings that keep the rules: what devices do with them.

use crate::program::{CODE, Space, TEXT, context, page, run};
use crate::ring::{
    COMMON, Descriptor, Device, DiskRequest, INDIRECT, READ_SECTORS, Ring, SECTOR, SECTORS, WRITE_SECTORS,
    number, pages, store_chain, until,
};
use crate::{phys, raw};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering::SeqCst, fence};
use guest_sdk::hv_abi::device::{feature, register};
use guest_sdk::hv_abi::user::trap;
use guest_sdk::hv_abi::{Call, GuestPhys, PAGE_SIZE};
use guest_sdk::smp;

/// What buffers hold before a device has written to them.
const BEFORE: u64 = 0xa5a5_a5a5_a5a5_a5a5;

/// Fills so many bytes from P `start` on.
fn fill(start: u64, length: u64, with: u64) {
    (start..start + length).step_by(8).for_each(|at| number::<AtomicU64>(at).store(with, SeqCst));
}

/// How many of the words there are no longer that.
fn changed(start: u64, length: u64, from: u64) -> usize {
    (start..start + length).step_by(8).filter(|at| number::<AtomicU64>(*at).load(SeqCst) != from).count()
}

/// What a word of a sector of the disk is at first.
fn of_sector(sector: u64) -> u64 {
    u64::from_ne_bytes([sector as u8; 8])
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    /// From 1 to `most`.
    fn up_to(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % most + 1
    }
}

/// Makes `total` requests of 16 bytes, in batches of all sizes. The driver does as an index says and no more: it rings when the
/// device's is passed, and waits for its channel alone.
fn drive(device: Device, size: u16, total: u32) {
    let mut ring = Ring::new(device, size, COMMON);
    let (buffers, channel) = (pages(1), device.channel());
    for head in 0..size {
        Descriptor::writable(buffers + 16 * u64::from(head), 16).store(ring.descriptors, head);
    }
    let (mut random, mut seen, mut left) = (Random(1), 0_u16, total);
    while left > 0 {
        let batch = random.up_to(u64::from(size)).min(left.into()) as u16;
        let first = random.up_to(u64::from(size)) as u16;
        let heads: Vec<u16> = (0..batch).map(|i| (first + i) % size).collect();
        let old = ring.offered;
        heads.iter().for_each(|head| ring.offer(*head));
        fence(SeqCst);
        let wanted = ring.available_event();
        if ring.offered.wrapping_sub(wanted).wrapping_sub(1) < ring.offered.wrapping_sub(old) {
            device.notify();
        }
        ring.set_used_event(ring.offered.wrapping_sub(1));
        fence(SeqCst);
        while ring.used_index() != ring.offered {
            channel.wait();
        }
        let mut used: Vec<u16> = Vec::new();
        while seen != ring.offered {
            let (head, written) = ring.used(seen);
            assert_eq!(written, 16, "of chain {head}");
            used.push(head as u16);
            seen = seen.wrapping_add(1);
        }
        let mut expected = heads;
        used.sort_unstable();
        expected.sort_unstable();
        assert_eq!(used, expected, "each chain is used once");
        left -= u32::from(batch);
    }
}

/// For a scenario: requests of all kinds, each of which must be served once, whatever happens to the VM meanwhile.
pub fn many_requests() {
    for round in 0..20 {
        drive(Device::entropy(), 32, 500);
        let mut ring = Ring::new(Device::disk(), 16, COMMON);
        let buffer = pages(1);
        for sector in 0..SECTORS {
            fill(buffer, SECTOR, round << 32 | sector);
            let request = DiskRequest::new(WRITE_SECTORS, sector);
            assert_eq!(ring.serve(&request.chain(&[Descriptor::readable(buffer, 512)])), 1);
            assert_eq!(request.status(), 0);
        }
        for sector in 0..SECTORS {
            let request = DiskRequest::new(READ_SECTORS, sector);
            assert_eq!(ring.serve(&request.chain(&[Descriptor::writable(buffer, 512)])), 513);
            assert_eq!((request.status(), changed(buffer, SECTOR, round << 32 | sector)), (0, 0), "{sector}");
        }
    }
}

guest_sdk::tests! {
    "DEVICE-008 DEVICE_NOTIFY-001" fn chains_are_used_once_with_as_many_bytes_as_were_written() {
        let mut ring = Ring::new(Device::entropy(), 64, COMMON);
        let (buffers, length) = (pages(16), 16 * PAGE_SIZE);
        fill(buffers, length, BEFORE);
        // Chain n is of descriptors 2n and 2n + 1, with 8n and 8 bytes. They are made available from the last on.
        for n in 0..32 {
            let at = buffers + 512 * u64::from(n);
            store_chain(ring.descriptors, 2 * n, &[Descriptor::writable(at, 8 * u32::from(n)), Descriptor::writable(at + 256, 8)]);
        }
        (0..32).rev().for_each(|n| ring.offer(2 * n));
        ring.device.notify();
        ring.wait();
        let mut used: Vec<(u32, u32)> = (0..32).map(|index| ring.used(index)).collect();
        used.sort_unstable();
        let expected: Vec<(u32, u32)> = (0..32).map(|n| (2 * n, 8 * n + 8)).collect();
        assert_eq!(used, expected);
        let words: usize = (0..32).map(|n| n + 1).sum();
        // A random word is what was there before once in 2^64.
        assert_eq!(changed(buffers, length, BEFORE), words, "it wrote elsewhere, or not where it said");
    }

    "DEVICE-008" fn a_disk_reads_and_writes_what_its_chains_say() {
        let mut ring = Ring::new(Device::disk(), 16, COMMON);
        let (buffers, length) = (pages(2), 2 * PAGE_SIZE);
        for sector in [0, 5, SECTORS - 3] {
            fill(buffers, length, BEFORE);
            // Three sectors, in parts that are none.
            let request = DiskRequest::new(READ_SECTORS, sector);
            let parts = [(0, 8), (64, 512), (1024, 0), (2048, 1016)].map(|(at, length)| Descriptor::writable(buffers + at, length));
            assert_eq!((ring.serve(&request.chain(&parts)), request.status()), (3 * 512 + 1, 0));
            let mut bytes = 0;
            for part in parts {
                for at in (part.address..part.address + u64::from(part.length)).step_by(8) {
                    let expected = of_sector(sector + bytes / SECTOR);
                    assert_eq!(number::<AtomicU64>(at).load(SeqCst), expected, "byte {bytes}");
                    bytes += 8;
                }
            }
            let untouched = changed(buffers, length, BEFORE);
            assert!(untouched <= 3 * 64, "it wrote beside its buffers");
        }
        fill(buffers, SECTOR, 77);
        let request = DiskRequest::new(WRITE_SECTORS, 9);
        assert_eq!((ring.serve(&request.chain(&[Descriptor::readable(buffers, 512)])), request.status()), (1, 0));
        let request = DiskRequest::new(READ_SECTORS, 9);
        assert_eq!(ring.serve(&request.chain(&[Descriptor::writable(buffers + 4096, 512)])), 513);
        assert_eq!((request.status(), changed(buffers + 4096, SECTOR, 77)), (0, 0));
        // Past the end: the request fails, and is used.
        let request = DiskRequest::new(READ_SECTORS, SECTORS);
        ring.serve(&request.chain(&[Descriptor::writable(buffers, 512)]));
        assert_eq!((request.status(), changed(buffers, SECTOR, 77)), (1, 0));
    }

    "DEVICE-009" fn a_chain_is_a_table_of_descriptors_or_as_long_as_the_queue() {
        let mut ring = Ring::new(Device::entropy(), 8, COMMON);
        let (buffers, table) = (pages(1), pages(1));
        let eight: [Descriptor; 8] = core::array::from_fn(|i| Descriptor::writable(buffers + 64 * i as u64, 8));
        assert_eq!(ring.serve(&eight), 64);
        for length in 1..=8_u16 {
            fill(buffers, PAGE_SIZE, BEFORE);
            store_chain(table, 0, &eight[..length.into()]);
            let indirect = Descriptor { address: table, length: 16 * u32::from(length), flags: INDIRECT, next: 0 };
            assert_eq!(ring.serve(&[indirect]), 8 * u32::from(length));
            assert_eq!(changed(buffers, PAGE_SIZE, BEFORE), length.into());
        }
        // In another order than the table's.
        eight[0].then(7).store(table, 0);
        eight[7].then(3).store(table, 7);
        eight[3].store(table, 3);
        assert_eq!(ring.serve(&[Descriptor { address: table, length: 128, flags: INDIRECT, next: 0 }]), 24);
        // A table behind a descriptor: a disk's header, then the rest.
        let mut ring = Ring::new(Device::disk(), 8, COMMON);
        let request = DiskRequest::new(READ_SECTORS, 3);
        store_chain(table, 0, &[Descriptor::writable(buffers, 512), request.status_byte()]);
        let indirect = Descriptor { address: table, length: 32, flags: INDIRECT, next: 0 };
        assert_eq!((ring.serve(&[request.header(), indirect]), request.status()), (513, 0));
        assert_eq!(changed(buffers, SECTOR, of_sector(3)), 0);
    }

    "DEVICE-010" fn without_event_idx_the_channel_fires_for_each_used_buffer() {
        let mut ring = Ring::new(Device::entropy(), 8, feature::VERSION_1 | feature::INDIRECT_DESC);
        for _ in 0..100 {
            ring.request(&[Descriptor::writable(pages(1), 8)]);
            ring.device.channel().wait();
            assert_eq!(ring.used_index(), ring.offered);
        }
        const NO_INTERRUPT: u16 = 1;
        number::<AtomicU16>(ring.available).store(NO_INTERRUPT, SeqCst);
        ring.serve(&[Descriptor::writable(pages(1), 8)]);
        ring.device.reset(); // behind all interrupts there are
        assert!(!ring.device.channel().take(), "it was not asked for");
    }

    "DEVICE-010" fn with_event_idx_the_channel_fires_when_its_index_is_passed() {
        let device = Device::entropy();
        let mut ring = Ring::new(device, 8, COMMON);
        let (buffer, channel) = ([Descriptor::writable(pages(1), 8)], device.channel());
        for _ in 0..50 {
            let first = ring.offered;
            ring.set_used_event(first.wrapping_add(5));
            for _ in 0..5 {
                ring.serve(&buffer);
            }
            assert!(!channel.take(), "not for these");
            ring.request(&buffer);
            channel.wait();
            assert_eq!(ring.used_index(), first.wrapping_add(6));
            ring.serve(&buffer); // the index is behind
        }
        // A reset comes behind all interrupts there are.
        device.reset();
        assert!(!channel.take(), "for what was used behind the index");
    }

    "DEVICE-010 DEVICE-011 DEVICE-008 DEVICE_NOTIFY-001" fn indices_of_16_bits_wrap() {
        drive(Device::entropy(), 64, 70_000);
    }

    "DEVICE-010 DEVICE-011" fn a_ring_of_one_wraps() {
        drive(Device::entropy(), 1, 2000);
    }

    "DEVICE-007" fn no_memory_is_touched_after_a_reset_in_flight() {
        let device = Device::disk();
        let (sectors, buffers) = (SECTORS * SECTOR, pages(8 * 8));
        for round in 0..60 {
            let mut ring = Ring::new(device, 32, COMMON);
            let requests: Vec<DiskRequest> = (0..8).map(|_| DiskRequest::new(READ_SECTORS, 0)).collect();
            for (n, request) in (0_u16..).zip(&requests) {
                let buffer = Descriptor::writable(buffers + u64::from(n) * sectors, sectors as u32);
                store_chain(ring.descriptors, 3 * n, &request.chain(&[buffer]));
                ring.offer(3 * n);
            }
            device.notify();
            if round % 2 == 1 {
                until(|| ring.used_index() > round % 8);
            }
            device.reset();
            let (used, entry) = (ring.used_index(), ring.used(0));
            fill(buffers, 8 * sectors, BEFORE);
            requests.iter().for_each(|request| number::<AtomicU16>(request.status_byte().address).store(0xffff, SeqCst));
            device.notify();
            guest_sdk::hypercall::block(crate::after(1).as_nanos());
            assert_eq!(changed(buffers, 8 * sectors, BEFORE), 0, "it wrote on");
            assert!(requests.iter().all(|request| request.status() == 0xff), "it wrote on");
            assert_eq!((ring.used_index(), ring.used(0)), (used, entry), "it used on");
        }
    }

    "DEVICE-014" fn a_queue_that_is_taken_out_of_use_is_not_touched() {
        let device = Device::entropy();
        let (buffers, length) = (pages(8), 8 * PAGE_SIZE);
        for round in 0..60 {
            let mut ring = Ring::new(device, 8, COMMON);
            for n in 0..8 {
                Descriptor::writable(buffers + u64::from(n) * PAGE_SIZE, 4096).store(ring.descriptors, n);
                ring.offer(n);
            }
            device.notify();
            if round % 2 == 1 {
                until(|| ring.used_index() > round % 8);
            }
            device.write(register::QUEUE_READY, 0);
            assert_eq!(device.read(register::QUEUE_READY), 0);
            let used = ring.used_index();
            fill(buffers, length, BEFORE);
            ring.publish(100); // which would break the rules
            device.notify();
            guest_sdk::hypercall::block(crate::after(1).as_nanos());
            assert_eq!((changed(buffers, length, BEFORE), ring.used_index()), (0, used), "it worked on");
            assert!(!device.is_broken());
        }
    }

    "DEVICE-015" fn a_devices_channel_fires_on_the_vcpu_that_it_is_bound_to() {
        static FIRED: AtomicBool = AtomicBool::new(false);
        let device = Device::entropy();
        let mut ring = Ring::new(device, 8, COMMON);
        assert_eq!(raw(Call::EVENT_BIND, [device.channel().number().into(), 1]), Ok(0));
        smp::start(1, move || {
            device.channel().wait();
            FIRED.store(true, SeqCst);
        })
        .expect("vCPU 1 can be started");
        ring.set_used_event(0);
        ring.serve(&[Descriptor::writable(pages(1), 8)]);
        until(|| FIRED.load(SeqCst));
        assert!(!device.channel().take(), "on vCPU 0, too");
    }

    "DEVICE-017" fn code_that_a_device_writes_is_run_as_it_is() {
        const SITE: u64 = 64;
        let mut ring = Ring::new(Device::disk(), 8, COMMON);
        let (mut space, text, source) = (Space::new(), phys(page()), pages(1));
        space.map(TEXT, GuestPhys(text), CODE);
        let mut context = Box::new(context(TEXT));
        for value in 0..10 {
            // nop; mov eax, value; syscall
            let code = u64::from_le_bytes([0x90, 0xb8, value, 0, 0, 0, 0x0f, 0x05]);
            number::<AtomicU64>(source + SITE).store(code, SeqCst);
            let request = DiskRequest::new(WRITE_SECTORS, 1);
            ring.serve(&request.chain(&[Descriptor::readable(source, 512)]));
            let request = DiskRequest::new(READ_SECTORS, 1);
            ring.serve(&request.chain(&[Descriptor::writable(text, 512)]));
            // Often enough for an engine to find a cheaper way.
            for _ in 0..40 {
                context.rip = TEXT + SITE;
                assert_eq!(run(space.root, &mut context), trap::SYSCALL);
                assert_eq!((context.rax, context.rip), (value.into(), TEXT + SITE + 8));
            }
        }
    }
}

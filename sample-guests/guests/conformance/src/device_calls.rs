//! The calls of devices, and what registers do.

use crate::raw;
use crate::ring::{COMMON, Descriptor, Device, READY, Ring, pages};
use core::sync::atomic::Ordering::SeqCst;
use guest_sdk::boot::{self, info};
use guest_sdk::hv_abi::boot::region;
use guest_sdk::hv_abi::device::{
    DeviceEntry, DevicePage, MAGIC, VENDOR, feature, interrupt, kind, register, status,
};
use guest_sdk::hv_abi::vcpu::{EVENT_CHANNELS, FIRST_DYNAMIC_CHANNEL};
use guest_sdk::hv_abi::{Call, PAGE_SIZE, Status};

/// Registers that can be read, below the configuration space.
const READABLE: [u64; 15] = [
    register::MAGIC_VALUE,
    register::VERSION,
    register::DEVICE_ID,
    register::VENDOR_ID,
    register::DEVICE_FEATURES,
    register::QUEUE_SIZE_MAX,
    register::QUEUE_READY,
    register::INTERRUPT_STATUS,
    register::STATUS,
    register::SHM_LEN_LOW,
    register::SHM_LEN_HIGH,
    register::SHM_BASE_LOW,
    register::SHM_BASE_HIGH,
    register::QUEUE_RESET,
    register::CONFIG_GENERATION,
];

/// Registers that can be written, below the configuration space.
const WRITABLE: [u64; 16] = [
    register::DEVICE_FEATURES_SEL,
    register::DRIVER_FEATURES,
    register::DRIVER_FEATURES_SEL,
    register::QUEUE_SEL,
    register::QUEUE_SIZE,
    register::QUEUE_READY,
    register::INTERRUPT_ACK,
    register::STATUS,
    register::QUEUE_DESC_LOW,
    register::QUEUE_DESC_HIGH,
    register::QUEUE_DRIVER_LOW,
    register::QUEUE_DRIVER_HIGH,
    register::QUEUE_DEVICE_LOW,
    register::QUEUE_DEVICE_HIGH,
    register::SHM_SEL,
    register::QUEUE_RESET,
];

fn devices() -> impl Iterator<Item = Device> {
    boot::devices().iter().map(Device)
}

/// Numbers of no device.
fn not_there() -> [u64; 5] {
    let count = boot::devices().len() as u64;
    [count, 32, 1 << 32, 1 << 63, u64::MAX]
}

fn read(device: Device, offset: u64) -> Result<u64, Status> {
    raw(Call::DEVICE_READ, [device.number(), offset])
}

fn write(device: Device, offset: u64, value: u64) -> Result<u64, Status> {
    raw(Call::DEVICE_WRITE, [device.number(), offset, value])
}

/// Whether a range is in a region of that kind.
fn is_in(kind: u32, start: u64, length: u64) -> bool {
    let mut map = guest_sdk::memory::map().iter();
    map.any(|run| run.kind == kind && run.start.0 <= start && start + length <= run.start.0 + run.length)
}

/// All that a driver can read back of a device, its queue 0 selected.
fn registers(device: Device) -> [u32; READABLE.len()] {
    READABLE.map(|offset| device.read(offset))
}

guest_sdk::tests! {
    "DEVICE-001" fn the_table_names_each_device_once() {
        let table = info().devices;
        assert!(table.length >= 2, "the runner gives this test two");
        assert!(is_in(region::DEVICE, table.start.0, table.length * size_of::<DeviceEntry>() as u64), "{table:?}");
        for (number, entry) in (0..).zip(boot::devices()) {
            assert_eq!((entry.device, entry.reserved), (number, 0), "{entry:?}");
            assert!(entry.queues > 0 && entry.page.0.is_multiple_of(PAGE_SIZE), "{entry:?}");
            assert!(is_in(region::DEVICE, entry.page.0, size_of::<DevicePage>() as u64), "{entry:?}");
            assert!((FIRST_DYNAMIC_CHANNEL..EVENT_CHANNELS).contains(&entry.channel), "{entry:?}");
            let others = boot::devices().iter().filter(|other| other.device != entry.device);
            assert!(others.clone().all(|other| other.channel != entry.channel && other.page != entry.page), "{entry:?}");
            let page = entry.page.0..entry.page.0 + PAGE_SIZE;
            assert!(!page.contains(&table.start.0), "the table is in a device's page");
            // Open, and this vCPU's.
            let channel = Device(entry).channel();
            assert!(!channel.take());
            channel.send().expect("it is open");
            assert!(channel.take(), "it is not vCPU 0's");
        }
        let kinds = boot::devices().iter().map(|entry| entry.kind);
        assert!(kinds.clone().eq([kind::ENTROPY, kind::BLOCK]), "not what the runner gives");
    }

    "DEVICE-002 DEVICE_READ-001" fn what_a_device_is_can_be_read() {
        for device in devices() {
            assert_eq!(device.read(register::MAGIC_VALUE), MAGIC);
            assert_eq!(device.read(register::VERSION), 2);
            assert_eq!(device.read(register::DEVICE_ID), device.0.kind);
            assert_eq!(device.read(register::VENDOR_ID), VENDOR);
            for offset in READABLE {
                let value = read(device, offset).expect("it can be read");
                assert!(value <= u32::MAX.into(), "{offset:#x}: {value:#x}");
            }
            for queue in 0..device.0.queues + 2 {
                device.write(register::QUEUE_SEL, queue);
                assert_eq!(device.read(register::QUEUE_SIZE_MAX) > 0, queue < device.0.queues, "queue {queue}");
            }
            for offset in [register::SHM_LEN_LOW, register::SHM_LEN_HIGH, register::SHM_BASE_LOW, register::SHM_BASE_HIGH] {
                assert_eq!(device.read(offset), u32::MAX, "there is no shared memory");
            }
        }
    }

    "DEVICE_READ-002 DEVICE_WRITE-001 DEVICE_NOTIFY-002" fn a_device_that_is_not_in_the_table_is_not_found() {
        for number in not_there() {
            assert_eq!(raw(Call::DEVICE_READ, [number, register::VERSION]), Err(Status::NOT_FOUND), "{number}");
            assert_eq!(raw(Call::DEVICE_WRITE, [number, register::STATUS, 0]), Err(Status::NOT_FOUND), "{number}");
            assert_eq!(raw(Call::DEVICE_NOTIFY, [number, 0]), Err(Status::NOT_FOUND), "{number}");
        }
    }

    "DEVICE_READ-003 DEVICE_WRITE-002" fn registers_are_at_multiples_of_4() {
        for device in devices() {
            for offset in [1, 2, 3, 5, 0x71, 0x72, 0x101, 0x102, 0x1003, u64::MAX] {
                assert_eq!(read(device, offset), Err(Status::BAD_ARGUMENT), "{offset:#x}");
                assert_eq!(write(device, offset, 0), Err(Status::BAD_ARGUMENT), "{offset:#x}");
            }
        }
    }

    "DEVICE_WRITE-002" fn a_value_has_32_bits() {
        for device in devices() {
            for value in [1 << 32, u64::MAX, 1 << 63] {
                for offset in WRITABLE {
                    assert_eq!(write(device, offset, value), Err(Status::BAD_ARGUMENT), "{value:#x} to {offset:#x}");
                }
            }
        }
    }

    "DEVICE_READ-004 DEVICE_WRITE-003" fn registers_that_there_are_not_are_out_of_range() {
        for device in devices() {
            // Whatever queue is selected, one that is not there included.
            for queue in [0, 1, 99, u32::MAX] {
                device.write(register::QUEUE_SEL, queue);
                for offset in (0..register::CONFIG).step_by(4) {
                    if !READABLE.contains(&offset) {
                        assert_eq!(read(device, offset), Err(Status::OUT_OF_RANGE), "{offset:#x}");
                    }
                    if !WRITABLE.contains(&offset) {
                        assert_eq!(write(device, offset, 1), Err(Status::OUT_OF_RANGE), "{offset:#x}");
                    }
                }
            }
            let end = register::CONFIG + u64::from(device.page().config_size.load(SeqCst)).next_multiple_of(4);
            for offset in [end, end + 4, 0x1000, 0x1100, 1 << 32, 1 << 63, u64::MAX - 3] {
                assert_eq!(read(device, offset), Err(Status::OUT_OF_RANGE), "{offset:#x}");
                assert_eq!(write(device, offset, 0), Err(Status::OUT_OF_RANGE), "{offset:#x}");
            }
        }
    }

    "DEVICE-003" fn the_page_and_the_calls_show_one_configuration_space() {
        for device in devices() {
            let (page, size) = (device.page(), device.page().config_size.load(SeqCst));
            for (word, offset) in page.config.iter().zip((register::CONFIG..).step_by(4)).take(size.div_ceil(4) as usize) {
                assert_eq!(device.read(offset), word.load(SeqCst), "{offset:#x}");
            }
            let generation = page.config_generation.load(SeqCst);
            assert_eq!(device.read(register::CONFIG_GENERATION), generation);
            assert!(generation.is_multiple_of(2), "nothing is changing");
        }
        // The disk's begins with how many sectors it has.
        let config = &Device::disk().page().config;
        assert_eq!([&config[0], &config[1]].map(|word| word.load(SeqCst)), [crate::ring::SECTORS as u32, 0]);
    }

    "DEVICE-004" fn every_device_offers_what_all_have() {
        for device in devices() {
            assert_eq!(device.offered() & COMMON, COMMON);
            device.write(register::DEVICE_FEATURES_SEL, 2);
            assert_eq!(device.read(register::DEVICE_FEATURES), 0, "there are 64 bits");
        }
    }

    "DEVICE-005" fn features_are_agreed_on_only_if_they_were_offered() {
        for device in devices() {
            let offered = device.offered();
            let mut tried = 0;
            for bit in 0..64 {
                let features = feature::VERSION_1 | 1 << bit;
                let agreed = device.negotiate(features) & status::FEATURES_OK != 0;
                assert_eq!(agreed, offered & 1 << bit != 0, "bit {bit}");
                tried += u32::from(!agreed);
            }
            assert!(tried > 0);
            for features in [0, offered & !feature::VERSION_1] {
                assert_eq!(device.negotiate(features) & status::FEATURES_OK, 0, "{features:#x}");
            }
            assert_ne!(device.negotiate(offered) & status::FEATURES_OK, 0);
        }
    }

    "DEVICE-006" fn features_do_not_change_once_they_are_agreed_on() {
        let device = Device::entropy();
        let ring = Ring::without_device(device, 8);
        device.negotiate(feature::VERSION_1);
        // With `EVENT_IDX` there would be no interrupt for the first used buffer, but for the one behind index 7.
        device.take(COMMON);
        ring.set_used_event(7);
        ring.tell_places();
        device.write(register::STATUS, READY);
        device.take(COMMON);
        let mut ring = ring;
        assert_eq!(ring.serve(&[Descriptor::writable(pages(1), 16)]), 16);
        device.channel().wait();
    }

    "DEVICE-006" fn a_queue_stays_where_it_is_while_it_is_ready() {
        let device = Device::entropy();
        let (mut ring, other) = (Ring::without_device(device, 8), Ring::without_device(device, 4));
        device.negotiate(COMMON);
        ring.tell_places();
        other.tell_places(); // to a queue that is ready
        device.write(register::STATUS, READY);
        other.tell_places(); // and in use
        assert_eq!(ring.serve(&[Descriptor::writable(pages(1), 16)]), 16);
        assert_eq!(other.used_index(), 0);
        // One that was not ready in time stays out of use.
        device.negotiate(COMMON);
        device.write(register::STATUS, READY);
        ring.tell_places();
        assert_eq!(device.read(register::QUEUE_READY), 0);
    }

    "DEVICE_WRITE-004" fn a_size_that_cannot_be_is_refused_and_changes_nothing() {
        for device in devices() {
            let mut ring = Ring::without_device(device, 8);
            device.negotiate(COMMON);
            device.write(register::QUEUE_SEL, 0);
            let most = u64::from(device.read(register::QUEUE_SIZE_MAX));
            let refused = || {
                for size in [0, 3, 5, 12, most + 1, most * 2, 65536, 1 << 31, u32::MAX.into()] {
                    assert_eq!(write(device, register::QUEUE_SIZE, size), Err(Status::BAD_ARGUMENT), "{size}");
                }
            };
            device.write(register::QUEUE_SIZE, 8);
            refused();
            device.write_long(register::QUEUE_DESC_LOW, ring.descriptors);
            device.write_long(register::QUEUE_DRIVER_LOW, ring.available);
            device.write_long(register::QUEUE_DEVICE_LOW, ring.used);
            device.write(register::QUEUE_READY, 1);
            refused();
            device.write(register::STATUS, READY);
            // The used ring's ninth entry is its first again.
            for _ in 0..9 {
                let request = crate::ring::DiskRequest::new(crate::ring::READ_SECTORS, 0);
                match device.0.kind {
                    kind::BLOCK => assert_eq!(ring.serve(&request.chain(&[])), 1),
                    _ => assert_eq!(ring.serve(&[Descriptor::writable(pages(1), 1)]), 1),
                }
            }
        }
    }

    "DEVICE_NOTIFY-003" fn the_doorbell_of_a_queue_that_is_not_there() {
        for device in devices() {
            for queue in [device.0.queues.into(), 64, 1 << 16, 1 << 32, u64::MAX] {
                let rung = raw(Call::DEVICE_NOTIFY, [device.number(), queue]);
                assert_eq!(rung, Err(Status::OUT_OF_RANGE), "{queue}");
            }
        }
    }

    "RULE-005" fn doorbells_and_writes_have_no_value() {
        for device in devices() {
            assert_eq!(raw(Call::DEVICE_WRITE, [device.number(), register::STATUS, 0]), Ok(0));
            assert_eq!(raw(Call::DEVICE_NOTIFY, [device.number(), 0]), Ok(0));
        }
    }

    "DEVICE_NOTIFY-004" fn a_doorbell_that_nobody_waits_for_does_nothing() {
        for device in devices() {
            let ring = Ring::without_device(device, 8);
            device.notify();
            let untouched = registers(device);
            device.notify();
            assert_eq!(registers(device), untouched);
            device.negotiate(COMMON);
            ring.tell_places();
            ring.publish(1);
            device.notify(); // the driver is not ready
            device.reset();
            assert_eq!(ring.used_index(), 0);
            assert_eq!(registers(device), untouched);
            assert!(!device.channel().take());
        }
    }

    "DEVICE-007" fn a_reset_makes_a_device_as_it_was_at_first() {
        for device in devices() {
            device.write(register::QUEUE_SEL, 0);
            let first = registers(device);
            for _ in 0..3 {
                let mut ring = Ring::new(device, 8, COMMON);
                ring.publish(9); // which it may not
                device.notify();
                crate::ring::until(|| device.is_broken());
                assert_ne!(device.read(register::INTERRUPT_STATUS), 0);
                assert_ne!(registers(device), first);
                device.reset();
                assert_eq!(registers(device), first);
                assert_eq!(device.page().interrupt_status.load(SeqCst), 0);
                // What was written is forgotten, too: features, and the queue.
                ring.offered = 0;
                ring.publish(0);
                device.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
                assert_eq!(device.status() & status::FEATURES_OK, 0, "VERSION_1 is taken");
                device.negotiate(COMMON);
                device.write(register::STATUS, READY);
                device.notify();
                device.reset();
                assert_eq!(ring.used_index(), 0);
            }
        }
    }

    "DEVICE-012" fn interrupts_say_why_and_are_acknowledged_one_by_one() {
        let device = Device::entropy();
        let shown = || {
            let shown = device.read(register::INTERRUPT_STATUS);
            assert_eq!(shown, device.page().interrupt_status.load(SeqCst));
            shown
        };
        let mut ring = Ring::new(device, 8, feature::VERSION_1);
        assert_eq!(shown(), 0);
        for _ in 0..100 {
            ring.request(&[Descriptor::writable(pages(1), 16)]);
            device.channel().wait();
            assert_eq!(shown(), interrupt::USED_BUFFER);
            device.write(register::INTERRUPT_ACK, interrupt::CONFIG_CHANGE);
            assert_eq!(shown(), interrupt::USED_BUFFER, "the other one");
            device.write(register::INTERRUPT_ACK, interrupt::USED_BUFFER);
            assert_eq!(shown(), 0);
        }
        ring.request(&[Descriptor::writable(pages(1), 16)]);
        device.channel().wait();
        ring.publish(ring.offered.wrapping_add(9));
        device.notify();
        device.channel().wait();
        assert_eq!(shown(), interrupt::USED_BUFFER | interrupt::CONFIG_CHANGE);
        assert!(device.is_broken());
        device.write(register::INTERRUPT_ACK, interrupt::USED_BUFFER);
        assert_eq!(shown(), interrupt::CONFIG_CHANGE);
        device.write(register::INTERRUPT_ACK, u32::MAX);
        assert_eq!(shown(), 0);
    }

    "DEVICE-015" fn a_devices_channel_cannot_be_closed() {
        for device in devices() {
            let number = device.channel().number();
            assert_eq!(raw(Call::EVENT_CLOSE, [number.into()]), Err(Status::NOT_FOUND));
            device.channel().send().expect("it is open still");
            assert!(device.channel().take());
        }
        // A channel that is taken is none of theirs.
        let taken = raw(Call::EVENT_ALLOCATE, [0]).expect("one is free");
        assert!(devices().all(|device| u64::from(device.channel().number()) != taken));
    }
}

//! Devices whose driver is hostile: rings that are anything and anywhere, rewritten by other vCPUs while they are read, registers
//! of any values, resets and ends of queues in flight, and floods of doorbells.

#![expect(unsafe_code, reason = "rings that are not what the ABI asks for")]

use crate::{Numbers, hurtful};
use fastrand::Rng;
use guest_sdk::boot::{self, info};
use guest_sdk::frames;
use guest_sdk::hv_abi::address::DIRECT_MAP;
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::hv_abi::device::{DeviceEntry, feature, kind, register, status};
use guest_sdk::hv_abi::{Call, PAGE_SIZE};
use guest_sdk::time::{Duration, Instant};
use guest_sdk::{hypercall, println, smp};

/// Pages of the arena, as an order: what rings, buffers and tables are made of.
const ORDER: u32 = 6;
const LENGTH: u64 = PAGE_SIZE << ORDER;

/// Queues' sizes here.
const SIZE: u64 = 16;

/// One vCPU's attack. All vCPUs have one arena, so each rewrites what the others' devices read.
struct Hostile {
    random: Rng,
    arena: u64,
    /// Rings and buffers may be anywhere, the guest's own page tables and code included.
    anywhere: bool,
}

/// COUNT steps on each vCPU.
pub fn attack([seed, count, _]: Numbers) {
    let frame = core::mem::ManuallyDrop::new(frames::allocate(ORDER).expect("a guest has so much memory"));
    let arena = frame.phys().0;
    let run = move |seed: u64| {
        let mut hostile = Hostile { random: Rng::with_seed(seed), arena, anywhere: seed.is_multiple_of(8) };
        for _ in 0..count {
            hostile.step();
        }
    };
    for vcpu in 1..smp::count() {
        let _ = smp::start(vcpu, move || run(seed.wrapping_mul(64) + u64::from(vcpu) * 3));
    }
    run(seed.wrapping_mul(64));
}

/// So much of one thing, for as long as it is let.
pub fn flood([how, ..]: Numbers) {
    for vcpu in 1..smp::count() {
        let _ = smp::start(vcpu, move || flood_with(how + u64::from(vcpu)));
    }
    flood_with(how);
}

fn flood_with(how: u64) {
    let devices = boot::devices();
    let mut random = Rng::with_seed(how);
    loop {
        let entry = &devices[random.usize(..devices.len())];
        let device = entry.device.into();
        match how % 4 {
            0 => call(Call::DEVICE_NOTIFY, device, random.u32(..entry.queues).into(), 0),
            1 => call(Call::DEVICE_WRITE, device, register::CONFIG, random.u64(..1 << 32)),
            2 => call(Call::DEVICE_WRITE, device, register::INTERRUPT_ACK, 3),
            _ => {
                set_up(&mut random, entry, |_| 1 << 20);
                call(Call::DEVICE_WRITE, device, register::STATUS, 0);
            }
        }
    }
}

/// Leaves every device in some state from which it has nothing to do, and sleeps.
pub fn settle([how, ..]: Numbers) {
    let frame =
        core::mem::ManuallyDrop::new(frames::allocate_zeroed(ORDER).expect("a guest has so much memory"));
    let arena = frame.phys().0;
    let mut random = Rng::with_seed(how);
    let devices = boot::devices();
    let mut place = (arena..).step_by(PAGE_SIZE as usize / 4);
    for entry in devices {
        let device = entry.device.into();
        let mut available = 0;
        set_up(&mut random, entry, |at| {
            let place = place.next().expect("it is endless");
            available = if at == register::QUEUE_DRIVER_LOW { place } else { available };
            place
        });
        let index = core::ptr::with_exposed_provenance_mut::<u16>((DIRECT_MAP + available + 2) as usize);
        match how {
            // Broken: by an index, or by a chain without end, which descriptors that are all zero are for most devices.
            0 => store(index, 1000),
            1 => store(index, 1),
            // A queue that is out of use, with something in it.
            2 | 3 => {
                let queue = if how == 2 { 0 } else { u64::from(entry.queues) - 1 };
                call(Call::DEVICE_WRITE, device, register::QUEUE_SEL, queue);
                call(Call::DEVICE_WRITE, device, register::QUEUE_READY, 0);
                store(index, 1);
            }
            4 => call(Call::DEVICE_WRITE, device, register::STATUS, 0),
            _ => {}
        }
        (0..entry.queues.into()).for_each(|queue| call(Call::DEVICE_NOTIFY, device, queue, 0));
    }
    println!("settled");
    loop {
        hypercall::block(NEVER);
    }
}

/// Whatever the host says.
fn call(call: Call, first: u64, second: u64, third: u64) {
    // SAFETY: not met for what devices are told: they write to whatever that is. What comes of it is this guest's own affair.
    let _ = unsafe { hypercall::any(call, [first, second, third, 0, 0]) };
}

fn store<T>(at: *mut T, value: T) {
    // SAFETY: `at` is aligned and in the direct map, in an arena that no reference is ever made to.
    unsafe { at.write_volatile(value) }
}

/// Makes a device ready, with all its queues where `place` says, by the register of the lower half of each part's address.
fn set_up(random: &mut Rng, entry: &DeviceEntry, mut place: impl FnMut(u64) -> u64) {
    let write =
        |offset, value: u64| call(Call::DEVICE_WRITE, entry.device.into(), offset, value & 0xffff_ffff);
    let mut common = feature::VERSION_1 | feature::INDIRECT_DESC;
    if random.u8(..4) != 0 {
        common |= feature::EVENT_IDX;
    }
    if entry.kind == kind::VSOCK {
        common |= 1;
    }
    write(register::STATUS, 0);
    for which in 0..2 {
        write(register::DRIVER_FEATURES_SEL, which);
        write(register::DRIVER_FEATURES, common >> (32 * which));
    }
    let agreed = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    write(register::STATUS, agreed.into());
    for queue in 0..entry.queues {
        write(register::QUEUE_SEL, queue.into());
        write(register::QUEUE_SIZE, if entry.queues > 2 { 8 } else { SIZE });
        for part in [register::QUEUE_DESC_LOW, register::QUEUE_DRIVER_LOW, register::QUEUE_DEVICE_LOW] {
            let at = place(part);
            write(part, at);
            write(part + 4, at >> 32);
        }
        write(register::QUEUE_READY, 1);
    }
    write(register::STATUS, (agreed | status::DRIVER_OK).into());
}

impl Hostile {
    fn device(&mut self) -> &'static DeviceEntry {
        let devices = boot::devices();
        &devices[self.random.usize(..devices.len())]
    }

    fn step(&mut self) {
        let entry = self.device();
        let device = u64::from(entry.device);
        let queue = u64::from(self.random.u32(..entry.queues));
        match self.random.u8(..32) {
            0 | 1 => {
                let mut random = self.random.fork();
                set_up(&mut random, entry, |_| self.place());
            }
            2 => call(Call::DEVICE_WRITE, device, register::STATUS, 0),
            3 => {
                call(Call::DEVICE_WRITE, device, register::QUEUE_SEL, queue);
                call(Call::DEVICE_WRITE, device, register::QUEUE_READY, 0);
            }
            4 => {
                let (offset, value) = (self.random.u64(..0x60) * 4, hurtful(&mut self.random));
                let value = if self.random.bool() { value & 0xffff_ffff } else { value };
                call(Call::DEVICE_WRITE, device, offset, value);
            }
            5 => call(Call::DEVICE_READ, device, hurtful(&mut self.random), 0),
            6 => (0..self.random.u8(..200)).for_each(|_| call(Call::DEVICE_NOTIFY, device, queue, 0)),
            7 => {
                let call_number =
                    [Call::EVENT_BIND, Call::EVENT_CLOSE, Call::EVENT_SEND][self.random.usize(..3)];
                call(call_number, entry.channel.into(), self.random.u64(..4), 0);
            }
            8 => drop(hypercall::block((Instant::now() + Duration::from_micros(50)).as_nanos())),
            9..14 => self.descriptor(),
            14..20 => self.header(),
            20..26 => {
                self.publish();
                call(Call::DEVICE_NOTIFY, device, queue, 0);
            }
            _ => {
                let at = self.arena + self.random.u64(..LENGTH / 8) * 8;
                let value = hurtful(&mut self.random);
                store(core::ptr::with_exposed_provenance_mut((DIRECT_MAP + at) as usize), value);
            }
        }
    }

    /// A place in the arena, seldom elsewhere; a few come often, so that rings, tables and buffers overlap.
    fn place(&mut self) -> u64 {
        match self.random.u8(..64) {
            0 if self.anywhere => info().kernel_root.0,
            1 if self.anywhere => hurtful(&mut self.random),
            2 => boot::devices()[0].page.0,
            3 => info().memory_size - self.random.u64(..64) * 4,
            4 => info().memory_size + self.random.u64(..64) * 16,
            5..24 => self.arena + self.random.u64(..LENGTH / 16) * 16,
            _ => self.arena + self.random.u64(..8) * 512,
        }
    }

    /// A length, most often one that makes sense.
    fn length(&mut self) -> u64 {
        match self.random.u8(..16) {
            0 => hurtful(&mut self.random) & 0xffff_ffff,
            1 => 0xffff_ffff,
            2..6 => 16 * self.random.u64(..20),
            6..9 => 512 * self.random.u64(..8),
            _ => [0, 1, 12, 16, 40, 44, 64, 1526][self.random.usize(..8)],
        }
    }

    /// A descriptor, wherever a table may be.
    fn descriptor(&mut self) {
        let table = self.arena + self.random.u64(..8) * 512;
        let at = table + 16 * self.random.u64(..SIZE);
        let flags = self.random.u64(..8);
        let next =
            if self.random.u8(..16) == 0 { self.random.u64(..1 << 16) } else { self.random.u64(..SIZE) };
        let (address, length) = (self.place(), self.length());
        let at = core::ptr::with_exposed_provenance_mut::<u64>((DIRECT_MAP + at) as usize);
        store(at, address);
        store(at.wrapping_add(1), length | flags << 32 | next << 48);
    }

    /// What a request of some device begins with.
    fn header(&mut self) {
        let at = self.arena + self.random.u64(..8) * 512 + self.random.u64(..4) * 16;
        let at = core::ptr::with_exposed_provenance_mut::<u64>((DIRECT_MAP + at) as usize);
        let words = match self.random.u8(..3) {
            // A disk's: kind and sector.
            0 => [self.random.u64(..16), self.random.u64(..40), 0, 0, 0],
            // A folder's: length, operation, node.
            1 => {
                [self.length() | self.random.u64(..52) << 32, self.random.u64(..), self.random.u64(..4), 0, 0]
            }
            // A socket's: contexts, ports, length, kind, operation and flags.
            _ => {
                let ports = self.random.u64(..4) | self.random.u64(..4) << 32;
                let what = self.length() | 1 << 32 | self.random.u64(..9) << 48;
                [3, 2, ports, what, self.random.u64(..4) | self.random.u64(..1 << 17) << 32]
            }
        };
        for (place, word) in words.into_iter().enumerate() {
            store(at.wrapping_add(place), word);
        }
    }

    /// Makes an available ring's index go on, or jump.
    fn publish(&mut self) {
        let ring = self.arena + self.random.u64(..8) * 512;
        let at = core::ptr::with_exposed_provenance_mut::<u16>((DIRECT_MAP + ring) as usize);
        // SAFETY: as `store`.
        let index = unsafe { at.wrapping_add(1).read_volatile() };
        let step = if self.random.u8(..16) == 0 { self.random.u16(..) } else { self.random.u16(..4) };
        let slot = usize::from(self.random.u16(..SIZE as u16));
        let head =
            if self.random.u8(..32) == 0 { self.random.u16(..) } else { self.random.u16(..SIZE as u16) };
        store(at.wrapping_add(2 + slot), head);
        store(at.wrapping_add(1), index.wrapping_add(step));
    }
}

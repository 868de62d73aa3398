//! A driver of devices that is made by hand (`docs/abi.md`, section 15), so that a test can break each of its rules.
//!
//! The runner gives the tests of chapter DEVICE an entropy source and a disk of [`SECTORS`] sectors, in which each byte is its
//! sector's number.
//!
//! Start at [`Ring::new`], which makes a device ready, then at [`Ring::request`].

#![expect(unsafe_code, reason = "rings are memory that a device reads and writes")]

use crate::raw;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst};
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::device::{DeviceEntry, DevicePage, feature, kind, register, status};
use guest_sdk::hv_abi::{Call, GuestPhys, PAGE_SIZE};
use guest_sdk::memory::in_direct_map;
use guest_sdk::time::{Duration, Instant};
use guest_sdk::{boot, frames, hypercall};

/// What every device offers.
pub const COMMON: u64 = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;

/// Sectors of the disk.
pub const SECTORS: u64 = 64;
pub const SECTOR: u64 = 512;

/// A driver that is ready.
pub const READY: u32 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;

/// Memory that is an atomic number.
///
/// # Safety
///
/// The type must be valid whatever its bytes are, and changed by atomic accesses only.
pub unsafe trait Number {}
// SAFETY: they are.
unsafe impl Number for AtomicU16 {}
// SAFETY: they are.
unsafe impl Number for AtomicU32 {}
// SAFETY: they are.
unsafe impl Number for AtomicU64 {}

/// The number at P `at`, which must be in pages of [`pages`].
pub fn number<T: Number>(at: u64) -> &'static T {
    assert!(at.is_multiple_of(size_of::<T>() as u64) && at < boot::info().memory_size, "{at:#x}");
    // SAFETY: a reference to an atomic needs memory that is there, aligned, and changed by atomics only.
    // 1. There and aligned: it was just checked, and the direct map has all of guest memory.
    // 2. Changed by atomics: the tests name pages of `pages`, which are nobody else's and never freed, or a program's code,
    //    which they reach by this function only; so do the device and the program.
    unsafe { &*in_direct_map(GuestPhys(at)).cast::<T>() }
}

/// P of so many new pages, one behind the other, zero; they are never freed.
pub fn pages(count: u64) -> u64 {
    let order = count.next_power_of_two().ilog2();
    let frame = ManuallyDrop::new(frames::allocate_zeroed(order).expect("a test has memory enough"));
    frame.phys().0
}

/// Waits for something that a device does.
pub fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        hypercall::block((Instant::now() + Duration::from_micros(100)).as_nanos());
    }
}

/// One of the VM's devices.
#[derive(Clone, Copy)]
pub struct Device(pub &'static DeviceEntry);

impl Device {
    pub fn entropy() -> Self {
        Self::of(kind::ENTROPY)
    }

    pub fn disk() -> Self {
        Self::of(kind::BLOCK)
    }

    fn of(kind: u32) -> Self {
        Self(boot::devices().iter().find(|entry| entry.kind == kind).expect("the runner gives the tests one"))
    }

    pub fn number(self) -> u64 {
        self.0.device.into()
    }

    pub fn page(self) -> &'static DevicePage {
        boot::device_page(self.0)
    }

    /// Its channel, masked: it becomes pending, and interrupts nobody.
    pub fn channel(self) -> Channel {
        Channel::from_number(self.0.channel)
    }

    pub fn read(self, offset: u64) -> u32 {
        let value = raw(Call::DEVICE_READ, [self.number(), offset]).expect("a register that can be read");
        u32::try_from(value).expect("a register has 32 bits")
    }

    pub fn write(self, offset: u64, value: u32) {
        let done = raw(Call::DEVICE_WRITE, [self.number(), offset, value.into()]);
        assert_eq!(done, Ok(0), "{value:#x} to register {offset:#x}");
    }

    /// Writes both halves of an address, or both words of features.
    pub fn write_long(self, low: u64, value: u64) {
        self.write(low, value as u32);
        self.write(low + 4, (value >> 32) as u32);
    }

    pub fn notify(self) {
        assert_eq!(raw(Call::DEVICE_NOTIFY, [self.number(), 0]), Ok(0));
    }

    pub fn status(self) -> u32 {
        self.read(register::STATUS)
    }

    pub fn is_broken(self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    pub fn reset(self) {
        self.write(register::STATUS, 0);
    }

    pub fn offered(self) -> u64 {
        let half = |which| {
            self.write(register::DEVICE_FEATURES_SEL, which);
            u64::from(self.read(register::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// Resets it and asks for these features; gives the status then.
    pub fn negotiate(self, features: u64) -> u32 {
        self.reset();
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        self.take(features);
        self.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        self.status()
    }

    /// Writes the features that the driver takes.
    pub fn take(self, features: u64) {
        for which in 0..2 {
            self.write(register::DRIVER_FEATURES_SEL, which);
            self.write(register::DRIVER_FEATURES, (features >> (32 * which)) as u32);
        }
    }
}

/// A descriptor, as a table has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Descriptor {
    pub address: u64,
    pub length: u32,
    pub flags: u16,
    pub next: u16,
}

/// Flags of descriptors.
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

impl Descriptor {
    /// A buffer that the device reads.
    pub fn readable(address: u64, length: u32) -> Self {
        Self { address, length, ..Self::default() }
    }

    /// A buffer that the device writes to.
    pub fn writable(address: u64, length: u32) -> Self {
        Self { address, length, flags: WRITE, next: 0 }
    }

    pub fn then(self, next: u16) -> Self {
        Self { flags: self.flags | NEXT, next, ..self }
    }

    /// Puts it into the table at P `table`.
    pub fn store(self, table: u64, index: u16) {
        let at = table + 16 * u64::from(index);
        number::<AtomicU64>(at).store(self.address, SeqCst);
        number::<AtomicU32>(at + 8).store(self.length, SeqCst);
        number::<AtomicU16>(at + 12).store(self.flags, SeqCst);
        number::<AtomicU16>(at + 14).store(self.next, SeqCst);
    }
}

/// Puts descriptors into the table at P `table`, each with the next behind it.
pub fn store_chain(table: u64, first: u16, chain: &[Descriptor]) {
    let last = chain.len() - 1;
    for (index, descriptor) in (first..).zip(chain) {
        let is_last = usize::from(index - first) == last;
        if is_last { *descriptor } else { descriptor.then(index + 1) }.store(table, index);
    }
}

/// A device's queue 0, and the driver's side of it.
pub struct Ring {
    pub device: Device,
    pub size: u16,
    /// P of its parts.
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    /// Chains that were made available.
    pub offered: u16,
}

impl Ring {
    /// Makes a device ready, with these features and a queue of this size.
    pub fn new(device: Device, size: u16, features: u64) -> Self {
        let ring = Self::without_device(device, size);
        ring.set_up(features);
        ring
    }

    /// Memory for a queue of this size, of which the device does not know.
    pub fn without_device(device: Device, size: u16) -> Self {
        let start = pages(3);
        let (available, used) = (start + PAGE_SIZE, start + 2 * PAGE_SIZE);
        Self { device, size, descriptors: start, available, used, offered: 0 }
    }

    /// Makes the device ready, with this queue.
    pub fn set_up(&self, features: u64) {
        let agreed = self.device.negotiate(features);
        assert!(agreed & status::FEATURES_OK != 0, "{features:#x} are not agreed on");
        self.tell_places();
        self.device.write(register::STATUS, READY);
    }

    /// Tells the device where the queue is.
    pub fn tell_places(&self) {
        let device = self.device;
        device.write(register::QUEUE_SEL, 0);
        device.write(register::QUEUE_SIZE, self.size.into());
        device.write_long(register::QUEUE_DESC_LOW, self.descriptors);
        device.write_long(register::QUEUE_DRIVER_LOW, self.available);
        device.write_long(register::QUEUE_DEVICE_LOW, self.used);
        device.write(register::QUEUE_READY, 1);
    }

    /// Makes the chain at `head` available. The device is not told.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.offered % self.size);
        number::<AtomicU16>(self.available + 4 + 2 * slot).store(head, SeqCst);
        self.offered = self.offered.wrapping_add(1);
        self.publish(self.offered);
    }

    /// Stores the available ring's index.
    pub fn publish(&self, index: u16) {
        number::<AtomicU16>(self.available + 2).store(index, SeqCst);
    }

    /// Makes one chain available, from the table's first descriptor on, and tells the device.
    pub fn request(&mut self, chain: &[Descriptor]) {
        store_chain(self.descriptors, 0, chain);
        self.offer(0);
        self.device.notify();
    }

    /// As [`request`](Self::request), and waits until the device has used it; gives how many bytes it says that it wrote.
    pub fn serve(&mut self, chain: &[Descriptor]) -> u32 {
        self.request(chain);
        self.wait();
        let (head, written) = self.used(self.offered.wrapping_sub(1));
        assert_eq!(head, 0, "it used another chain");
        written
    }

    /// Waits until the device has used all that was made available.
    pub fn wait(&self) {
        until(|| self.used_index() == self.offered);
    }

    pub fn used_index(&self) -> u16 {
        number::<AtomicU16>(self.used + 2).load(SeqCst)
    }

    /// A used entry: the head, and how many bytes were written.
    pub fn used(&self, index: u16) -> (u32, u32) {
        let at = self.used + 4 + 8 * u64::from(index % self.size);
        (number::<AtomicU32>(at).load(SeqCst), number::<AtomicU32>(at + 4).load(SeqCst))
    }

    /// Asks to be told when the used ring's index passes this.
    pub fn set_used_event(&self, index: u16) {
        number::<AtomicU16>(self.available + 4 + 2 * u64::from(self.size)).store(index, SeqCst);
    }

    /// When the device wants to be told.
    pub fn available_event(&self) -> u16 {
        number::<AtomicU16>(self.used + 4 + 8 * u64::from(self.size)).load(SeqCst)
    }
}

/// A request to the disk: its header, buffers, and its status byte, which is 0xff until the disk writes it.
pub struct DiskRequest {
    /// P of header and status.
    memory: u64,
}

/// Kinds of requests.
pub const READ_SECTORS: u32 = 0;
pub const WRITE_SECTORS: u32 = 1;

impl DiskRequest {
    pub fn new(kind: u32, sector: u64) -> Self {
        let memory = pages(1);
        number::<AtomicU32>(memory).store(kind, SeqCst);
        number::<AtomicU64>(memory + 8).store(sector, SeqCst);
        number::<AtomicU16>(memory + 16).store(0xffff, SeqCst);
        Self { memory }
    }

    pub fn header(&self) -> Descriptor {
        Descriptor::readable(self.memory, 16)
    }

    pub fn status_byte(&self) -> Descriptor {
        Descriptor::writable(self.memory + 16, 1)
    }

    /// The whole chain, with these buffers.
    pub fn chain(&self, buffers: &[Descriptor]) -> Vec<Descriptor> {
        [&[self.header()], buffers, &[self.status_byte()]].concat()
    }

    pub fn status(&self) -> u8 {
        number::<AtomicU16>(self.memory + 16).load(SeqCst) as u8
    }
}

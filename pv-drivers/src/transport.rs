//! The hypercall transport: how a driver finds its device, agrees on features with it, and sets up its queues.
//!
//! Start at [`Transport::find`].

#![expect(unsafe_code, reason = "registers that tell a device where its rings are")]

use crate::Error;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};
use guest_sdk::boot;
use guest_sdk::events::Channel;
use guest_sdk::hypercall;
use hv_abi::device::{DeviceEntry, DevicePage, feature, interrupt, register};
use virtio_drivers::PhysAddr;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Devices that have a driver, one bit each.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// Where a queue's rings are.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rings {
    pub driver_area: u64,
    pub device_area: u64,
}

/// A device, for its one driver. Dropping it resets the device.
#[derive(Debug)]
pub struct Transport {
    entry: &'static DeviceEntry,
    page: &'static DevicePage,
    rings: Vec<Rings>,
}

impl Transport {
    /// The first device of `kind`, one of [`hv_abi::device::kind`], that has no driver yet.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`].
    pub fn find(kind: u32) -> Result<Self, Error> {
        let mut of_kind = boot::devices().iter().filter(|entry| entry.kind == kind);
        of_kind.find_map(Self::take).ok_or(Error::NoDevice)
    }

    fn take(entry: &'static DeviceEntry) -> Option<Self> {
        let bit = 1_u32.checked_shl(entry.device)?;
        if TAKEN.fetch_or(bit, Ordering::Acquire) & bit != 0 {
            return None;
        }
        let rings = alloc::vec![Rings::default(); entry.queues as usize];
        Some(Self { entry, page: boot::device_page(entry), rings })
    }

    /// The event channel by which the device tells of used buffers, and of changes.
    pub fn channel(&self) -> Channel {
        Channel::from_number(self.entry.channel)
    }

    /// Its number in calls.
    pub fn device(&self) -> u32 {
        self.entry.device
    }

    pub(crate) fn rings(&self, queue: u16) -> Rings {
        self.rings[usize::from(queue)]
    }

    /// Resets the device, and agrees on features: those of `wanted` that it has, and those that every device has.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if it does not agree.
    pub fn negotiate(&mut self, wanted: u64) -> Result<u64, Error> {
        use virtio_drivers::transport::Transport as _;
        let common = feature::VERSION_1 | feature::EVENT_IDX;
        self.set_status(DeviceStatus::empty());
        self.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER);
        let agreed = self.read_device_features() & (wanted | common);
        self.write_driver_features(agreed);
        self.set_status(DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER | DeviceStatus::FEATURES_OK);
        let has_common = agreed & common == common;
        if has_common && self.get_status().contains(DeviceStatus::FEATURES_OK) {
            Ok(agreed)
        } else {
            Err(Error::Unsupported)
        }
    }

    /// Reads a part of the configuration space, as it was at one moment.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if it is shorter.
    pub fn config<T: FromBytes + IntoBytes>(&self, offset: usize) -> Result<T, Error> {
        use virtio_drivers::transport::Transport as _;
        self.read_consistent(|| self.read_config_space(offset)).map_err(|_| Error::Unsupported)
    }

    fn read(&self, offset: u64) -> u32 {
        hypercall::device_read(self.entry.device, offset).expect("a register that every device has")
    }

    /// # Safety
    ///
    /// As [`hypercall::device_write`].
    unsafe fn write(&mut self, offset: u64, value: u32) {
        // SAFETY: the caller answers for it.
        let written = unsafe { hypercall::device_write(self.entry.device, offset, value) };
        written.expect("a register that every device has");
    }

    /// Writes a register that tells no address.
    fn set(&mut self, offset: u64, value: u32) {
        // SAFETY: rings are told by `queue_set` alone, whose caller answers for them.
        unsafe { self.write(offset, value) };
    }
}

impl virtio_drivers::transport::Transport for Transport {
    /// # Panics
    ///
    /// Panics if `virtio-drivers` has no name for it.
    fn device_type(&self) -> DeviceType {
        DeviceType::try_from(self.entry.kind).expect("a kind of device that virtio-drivers knows")
    }

    fn read_device_features(&mut self) -> u64 {
        let mut half = |which| {
            self.set(register::DEVICE_FEATURES_SEL, which);
            u64::from(self.read(register::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    fn write_driver_features(&mut self, features: u64) {
        for which in 0..2 {
            self.set(register::DRIVER_FEATURES_SEL, which);
            self.set(register::DRIVER_FEATURES, (features >> (32 * which)) as u32);
        }
    }

    fn max_queue_size(&mut self, queue: u16) -> u32 {
        self.set(register::QUEUE_SEL, queue.into());
        self.read(register::QUEUE_SIZE_MAX)
    }

    fn notify(&mut self, queue: u16) {
        // It fails for a queue that the device does not have, which could not be set up.
        let _ = hypercall::device_notify(self.entry.device, queue.into());
    }

    fn get_status(&self) -> DeviceStatus {
        DeviceStatus::from_bits_truncate(self.read(register::STATUS))
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.set(register::STATUS, status.bits());
    }

    /// There is no such register since version 1.
    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(
        &mut self,
        queue: u16,
        size: u32,
        descriptors: PhysAddr,
        driver_area: PhysAddr,
        device_area: PhysAddr,
    ) {
        self.rings[usize::from(queue)] = Rings { driver_area, device_area };
        self.set(register::QUEUE_SEL, queue.into());
        self.set(register::QUEUE_SIZE, size);
        for (low, address) in [
            (register::QUEUE_DESC_LOW, descriptors),
            (register::QUEUE_DRIVER_LOW, driver_area),
            (register::QUEUE_DEVICE_LOW, device_area),
        ] {
            self.set(low, address as u32);
            self.set(low + 4, (address >> 32) as u32);
        }
        self.set(register::QUEUE_READY, 1);
    }

    fn queue_unset(&mut self, queue: u16) {
        self.set(register::QUEUE_SEL, queue.into());
        self.set(register::QUEUE_READY, 0);
    }

    fn queue_used(&mut self, queue: u16) -> bool {
        self.set(register::QUEUE_SEL, queue.into());
        self.read(register::QUEUE_READY) != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        let status = self.page.interrupt_status.load(Ordering::Acquire);
        if status != 0 {
            self.set(register::INTERRUPT_ACK, status & (interrupt::USED_BUFFER | interrupt::CONFIG_CHANGE));
        }
        InterruptStatus::from_bits_truncate(status)
    }

    /// It is odd while the host changes the configuration space: what is read then is of no use, so that is waited for.
    fn read_config_generation(&self) -> u32 {
        loop {
            let generation = self.page.config_generation.load(Ordering::Acquire);
            if generation.is_multiple_of(2) {
                return generation;
            }
            hypercall::yield_now();
        }
    }

    fn read_config_space<T: FromBytes + IntoBytes>(&self, offset: usize) -> virtio_drivers::Result<T> {
        let size = self.page.config_size.load(Ordering::Relaxed) as usize;
        let end = offset + size_of::<T>();
        if end > size || end > self.page.config.len() * 4 {
            return Err(virtio_drivers::Error::ConfigSpaceTooSmall);
        }
        let mut value = T::new_zeroed();
        for (at, byte) in (offset..).zip(value.as_mut_bytes()) {
            *byte = self.page.config[at / 4].load(Ordering::Acquire).to_le_bytes()[at % 4];
        }
        Ok(value)
    }

    /// Whole words only.
    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        offset: usize,
        value: T,
    ) -> virtio_drivers::Result<()> {
        let (words, rest) = value.as_bytes().as_chunks::<4>();
        if !rest.is_empty() || !offset.is_multiple_of(4) {
            return Err(virtio_drivers::Error::InvalidParam);
        }
        for (at, word) in (offset..).step_by(4).zip(words) {
            let register = register::CONFIG + at as u64;
            // SAFETY: no device takes an address from its configuration space.
            let written =
                unsafe { hypercall::device_write(self.entry.device, register, u32::from_le_bytes(*word)) };
            written.map_err(|_| virtio_drivers::Error::ConfigSpaceTooSmall)?;
        }
        Ok(())
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.set(register::STATUS, 0);
        TAKEN.fetch_and(!(1 << self.entry.device), Ordering::Release);
    }
}

//! Devices: virtio, with split rings, over hypercalls.
//!
//! [`BootInfo::devices`](crate::boot::BootInfo::devices) is a table of [`DeviceEntry`]. A driver sets a device up by
//! [`DEVICE_READ`](crate::Call::DEVICE_READ) and [`DEVICE_WRITE`](crate::Call::DEVICE_WRITE), whose registers are those of
//! virtio-mmio (Virtual I/O Device 1.3, section 4.2.2), reads its configuration space in its [`DevicePage`], rings its
//! doorbell by [`DEVICE_NOTIFY`](crate::Call::DEVICE_NOTIFY), and hears of it over an event channel.

use crate::GuestPhys;
use core::sync::atomic::AtomicU32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One device, as the table names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceEntry {
    /// The number to give in calls.
    pub device: u32,
    /// Its virtio device id: one of [`kind`].
    pub kind: u32,
    /// Event channel of its interrupts, open from the start and bound to vCPU 0.
    pub channel: u32,
    /// Number of queues.
    pub queues: u32,
    /// Its [`DevicePage`], in a memory region of kind `DEVICE`.
    pub page: GuestPhys,
    /// Zero.
    pub reserved: u64,
}
const _: () = assert!(size_of::<DeviceEntry>() == 32 && core::mem::offset_of!(DeviceEntry, page) == 16);

/// What the host shows of a device. The host writes it and does not read it.
#[derive(Debug)]
#[repr(C)]
pub struct DevicePage {
    /// Bits of [`interrupt`].
    pub interrupt_status: AtomicU32,
    /// Changes whenever `config` does, and is odd meanwhile; read before and after.
    pub config_generation: AtomicU32,
    /// Bytes of `config` in use.
    pub config_size: AtomicU32,
    /// Zero.
    pub reserved: [u32; 13],
    /// The configuration space.
    pub config: [AtomicU32; 1008],
}
const _: () = assert!(size_of::<DevicePage>() == 4096 && core::mem::offset_of!(DevicePage, config) == 64);

/// The most devices that a VM has.
pub const DEVICES_MAX: u32 = 32;

/// Virtio device ids.
pub mod kind {
    /// Network card.
    pub const NETWORK: u32 = 1;
    /// Block device.
    pub const BLOCK: u32 = 2;
    /// Console.
    pub const CONSOLE: u32 = 3;
    /// Entropy source.
    pub const ENTROPY: u32 = 4;
    /// Memory balloon.
    pub const BALLOON: u32 = 5;
    /// Socket device.
    pub const VSOCK: u32 = 19;
    /// File system.
    pub const FILE_SYSTEM: u32 = 26;
}

/// Offsets of registers.
pub mod register {
    /// Reads [`MAGIC`](super::MAGIC).
    pub const MAGIC_VALUE: u64 = 0x000;
    /// Reads 2.
    pub const VERSION: u64 = 0x004;
    /// Reads the device's [`kind`](super::kind).
    pub const DEVICE_ID: u64 = 0x008;
    /// Reads [`VENDOR`](super::VENDOR).
    pub const VENDOR_ID: u64 = 0x00c;
    /// Reads 32 bits of the features that the device offers.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// Which 32.
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// Writes 32 bits of the features that the driver takes.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Which 32.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// Which queue the registers up to `QUEUE_DEVICE_HIGH`, and `QUEUE_RESET`, are of.
    pub const QUEUE_SEL: u64 = 0x030;
    /// Reads the most descriptors of the queue; 0: there is no such queue.
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    /// Writes how many it has.
    pub const QUEUE_SIZE: u64 = 0x038;
    /// 1: the queue is in use.
    pub const QUEUE_READY: u64 = 0x044;
    /// Bits of [`interrupt`](super::interrupt) that wait for `INTERRUPT_ACK`.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// Clears those bits.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// Bits of [`status`](super::status); writing 0 resets the device.
    pub const STATUS: u64 = 0x070;
    /// P of the descriptor table.
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// Its upper half.
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// P of the available ring.
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// Its upper half.
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// P of the used ring.
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// Its upper half.
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// Which shared memory region the registers up to `SHM_BASE_HIGH` are of.
    pub const SHM_SEL: u64 = 0x0ac;
    /// Reads the region's length; all ones: there is none.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// Its upper half.
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    /// Reads P of the region; all ones: there is none.
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    /// Its upper half.
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// Resets the queue, if `RING_RESET` was negotiated, which no host offers.
    pub const QUEUE_RESET: u64 = 0x0c0;
    /// Reads the generation of the configuration space.
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// Where the configuration space begins.
    pub const CONFIG: u64 = 0x100;
}

/// What `MAGIC_VALUE` reads: `virt` as a little-endian number.
pub const MAGIC: u32 = u32::from_le_bytes(*b"virt");

/// What `VENDOR_ID` reads: `hv` and two zeros as a little-endian number.
pub const VENDOR: u32 = u32::from_le_bytes(*b"hv\0\0");

/// Bits of the status register (Virtual I/O Device 1.3, section 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u32 = 1;
    /// It has a driver.
    pub const DRIVER: u32 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u32 = 4;
    /// Features are agreed on.
    pub const FEATURES_OK: u32 = 8;
    /// The driver broke the rules, or the device cannot go on, until it is reset.
    pub const NEEDS_RESET: u32 = 64;
    /// The driver has given up.
    pub const FAILED: u32 = 128;
}

/// Bits of the interrupt status.
pub mod interrupt {
    /// The device has used buffers.
    pub const USED_BUFFER: u32 = 1;
    /// The configuration space, or the status, has changed.
    pub const CONFIG_CHANGE: u32 = 2;
}

/// Feature bits of every device.
pub mod feature {
    /// A descriptor may name a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Either side says by an index when it wants to be told.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Virtio 1.0 and later; every driver takes it.
    pub const VERSION_1: u64 = 1 << 32;
}

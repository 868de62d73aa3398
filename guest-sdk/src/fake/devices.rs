//! Devices of the fake VM: a test plays each.

use super::state::{Vm, misuse, vm};
use hv_abi::device::{DeviceEntry, DevicePage};
use hv_abi::vcpu::FIRST_DYNAMIC_CHANNEL;
use hv_abi::{Call, GuestPhys, Status};
use std::boxed::Box;
use std::vec::Vec;

/// A device as the guest reaches it: registers, a doorbell, and time to work. What it does with the guest's rings and buffers it
/// does by their addresses, which are the process's own. Each function says whether the device's channel fires then.
pub trait Device {
    /// Its virtio device id.
    fn kind(&self) -> u32;

    /// Its number of queues.
    fn queues(&self) -> u32 {
        1
    }

    /// What a register reads.
    fn read(&mut self, offset: u64) -> u32;

    /// A register is written.
    fn write(&mut self, offset: u64, value: u32) -> bool;

    /// The doorbell of a queue rings.
    fn notify(&mut self, queue: u32) -> bool;

    /// The guest has given the CPU back, and waits. A device that never works but here must have been asked for an event.
    fn idle(&mut self) -> bool;
}

/// A fake VM's devices.
pub(super) type Devices = Vec<Box<dyn Device>>;

/// Gives the VM these devices, in this order. For boot information read from now on; they stay until the next call, whatever
/// VMs are started.
pub fn set_devices(devices: Vec<Box<dyn Device>>) {
    *vm().devices.borrow_mut() = devices;
    vm().forget_boot();
}

/// The channel of a device.
fn channel(device: usize) -> u32 {
    FIRST_DYNAMIC_CHANNEL + device as u32
}

/// The table of devices, whose pages are leaked, as boot information is.
pub(super) fn table() -> Vec<DeviceEntry> {
    let entry = |(number, device): (usize, &Box<dyn Device>)| {
        // SAFETY: a page of integers and atomics is good when it is zero.
        let page: &mut DevicePage = Box::leak(unsafe { Box::<DevicePage>::new_zeroed().assume_init() });
        DeviceEntry {
            device: number as u32,
            kind: device.kind(),
            channel: channel(number),
            queues: device.queues(),
            page: GuestPhys(core::ptr::from_mut(page).expose_provenance() as u64),
            reserved: 0,
        }
    };
    vm().devices.borrow().iter().enumerate().map(entry).collect()
}

impl Vm {
    /// Whether a channel is a device's.
    pub(super) fn is_of_device(&self, number: u32) -> bool {
        (0..self.devices.borrow().len()).any(|device| channel(device) == number)
    }

    /// A call to a device.
    pub(super) fn call_device(&self, call: Call, [number, a, b]: [u64; 3]) -> Result<u64, Status> {
        let mut devices = self.devices.borrow_mut();
        let place = usize::try_from(number).ok().filter(|place| *place < devices.len());
        let Some(place) = place else { misuse!("{call:?} of device {number}: there are {}", devices.len()) };
        let device = &mut devices[place];
        let (value, fires) = match call {
            Call::DEVICE_READ => (device.read(a).into(), false),
            Call::DEVICE_WRITE => (0, device.write(a, b as u32)),
            _ if a >= device.queues().into() => misuse!("the doorbell of queue {a} of {}", device.queues()),
            _ => (0, device.notify(a as u32)),
        };
        if fires {
            self.fire(channel(place));
        }
        Ok(value)
    }

    /// Lets devices work while the guest waits. Whether one has fired its channel.
    pub(super) fn let_devices_work(&self) -> bool {
        let mut fired = false;
        for (place, device) in self.devices.borrow_mut().iter_mut().enumerate() {
            if device.idle() {
                self.fire(channel(place));
                fired = true;
            }
        }
        fired
    }
}

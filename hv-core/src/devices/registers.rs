//! A device's registers: those of virtio-mmio (Virtual I/O Device 1.3, section 4.2.2), by hypercall.
//!
//! Here is what a driver negotiates; nothing of it has an effect before the driver is ready, and then it is checked as a whole.
//!
//! Start at [`Registers::write`].

use super::ring::Layout;
use hv_abi::Status;
use hv_abi::device::{feature, register, status};

/// Features that every device has.
const COMMON: u64 = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;

/// What a write asks of the device.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    None,
    /// The driver is ready; the status register is to be this.
    Activate(u32),
    /// The device is to forget all.
    Reset,
    /// A queue is not in use any more.
    StopQueue(u16),
    /// Interrupts were seen.
    Acknowledge(u32),
    /// The status register is to be this.
    Status(u32),
    /// A word of the configuration space, at this offset.
    Config(usize, u32),
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct QueueRegisters {
    most: u16,
    layout: Layout,
    ready: bool,
}

/// What a driver has written.
#[derive(Debug)]
pub(super) struct Registers {
    offered: u64,
    taken: u64,
    device_select: u32,
    driver_select: u32,
    queue_select: u32,
    queues: Vec<QueueRegisters>,
    /// The driver has said that it is ready, and not reset the device since.
    active: bool,
}

impl Registers {
    /// For a device with these features of its own, and queues of at most so many descriptors.
    pub(super) fn new(features: u64, queues: &[u16]) -> Self {
        let queue = |most: &u16| QueueRegisters {
            most: *most,
            layout: Layout { size: *most, ..Layout::default() },
            ready: false,
        };
        Self {
            offered: features | COMMON,
            taken: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            queues: queues.iter().map(queue).collect(),
            active: false,
        }
    }

    /// The features that were agreed on.
    pub(super) fn features(&self) -> u64 {
        self.taken
    }

    /// The queues that are in use, in their order.
    pub(super) fn layouts(&self) -> impl Iterator<Item = Option<Layout>> {
        self.queues.iter().map(|queue| queue.ready.then_some(queue.layout))
    }

    pub(super) fn queues(&self) -> usize {
        self.queues.len()
    }

    /// Forgets what the driver has written.
    pub(super) fn reset(&mut self) {
        let most: Vec<u16> = self.queues.iter().map(|queue| queue.most).collect();
        *self = Self::new(self.offered & !COMMON, &most);
    }

    fn queue(&self) -> QueueRegisters {
        self.queues.get(self.queue_select as usize).copied().unwrap_or_default()
    }

    /// Reads a register that is kept here; `None`: it is kept elsewhere, or there is none.
    pub(super) fn read(&self, offset: u64) -> Option<u32> {
        let half = |value: u64, select| match select {
            0 => value as u32,
            1 => (value >> 32) as u32,
            _ => 0,
        };
        Some(match offset {
            register::DEVICE_FEATURES => half(self.offered, self.device_select),
            register::QUEUE_SIZE_MAX => self.queue().most.into(),
            register::QUEUE_READY => self.queue().ready.into(),
            // There are no shared memory regions.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            register::QUEUE_RESET => 0,
            _ => return None,
        })
    }

    /// Writes a register. `status` is what the status register is now.
    pub(super) fn write(&mut self, offset: u64, value: u32, status: u32) -> Result<Effect, Status> {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_select = value,
            register::DRIVER_FEATURES_SEL => self.driver_select = value,
            register::DRIVER_FEATURES => self.take_features(value, status),
            register::QUEUE_SEL => self.queue_select = value,
            register::QUEUE_SIZE..=register::QUEUE_READY
            | register::QUEUE_DESC_LOW..=register::QUEUE_DEVICE_HIGH => {
                return self.write_queue(offset, value);
            }
            register::SHM_SEL | register::QUEUE_RESET => {}
            register::INTERRUPT_ACK => return Ok(Effect::Acknowledge(value)),
            register::STATUS => return Ok(self.write_status(value, status)),
            register::CONFIG.. => {
                return Ok(Effect::Config((offset - register::CONFIG) as usize, value));
            }
            _ => return Err(Status::OUT_OF_RANGE),
        }
        Ok(Effect::None)
    }

    /// Features are agreed on before `FEATURES_OK`, and not changed after it.
    fn take_features(&mut self, value: u32, status: u32) {
        if status & status::FEATURES_OK != 0 {
            return;
        }
        match self.driver_select {
            0 => self.taken = self.taken & !0xffff_ffff | u64::from(value),
            1 => self.taken = self.taken & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
    }

    fn write_queue(&mut self, offset: u64, value: u32) -> Result<Effect, Status> {
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        let QueueRegisters { most, mut layout, ready } = self.queue();
        match offset {
            register::QUEUE_READY => return Ok(self.write_ready(value & 1 != 0)),
            register::QUEUE_SIZE => {
                let size = u16::try_from(value).ok().filter(|size| *size <= most && size.is_power_of_two());
                layout.size = size.ok_or(Status::BAD_ARGUMENT)?;
            }
            register::QUEUE_DESC_LOW => layout.descriptors = low(layout.descriptors),
            register::QUEUE_DESC_HIGH => layout.descriptors = high(layout.descriptors),
            register::QUEUE_DRIVER_LOW => layout.available = low(layout.available),
            register::QUEUE_DRIVER_HIGH => layout.available = high(layout.available),
            register::QUEUE_DEVICE_LOW => layout.used = low(layout.used),
            register::QUEUE_DEVICE_HIGH => layout.used = high(layout.used),
            _ => return Err(Status::OUT_OF_RANGE),
        }
        // A queue in use stays as it is.
        if let Some(queue) = self.queues.get_mut(self.queue_select as usize).filter(|_| !ready) {
            queue.layout = layout;
        }
        Ok(Effect::None)
    }

    fn write_ready(&mut self, ready: bool) -> Effect {
        let (index, active) = (self.queue_select, self.active);
        let Some(queue) = self.queues.get_mut(index as usize) else { return Effect::None };
        let was_ready = queue.ready;
        queue.ready = ready && (was_ready || !active);
        if active && was_ready && !ready { Effect::StopQueue(index as u16) } else { Effect::None }
    }

    fn write_status(&mut self, value: u32, before: u32) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        // The device alone sets and clears this one.
        let mut value = value & 0xff & !status::NEEDS_RESET | before & status::NEEDS_RESET;
        let asked = value & status::FEATURES_OK != 0 && before & status::FEATURES_OK == 0;
        if asked && (self.taken & !self.offered != 0 || self.taken & feature::VERSION_1 == 0) {
            value &= !status::FEATURES_OK;
        }
        let ready = status::DRIVER_OK | status::FEATURES_OK;
        if value & ready == ready && !self.active && before & status::NEEDS_RESET == 0 {
            self.active = true;
            return Effect::Activate(value);
        }
        Effect::Status(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET};

    fn registers() -> Registers {
        Registers::new(1 << 5, &[64, 8])
    }

    fn take(registers: &mut Registers, features: u64) {
        for half in 0..2 {
            registers.write(register::DRIVER_FEATURES_SEL, half, DRIVER).unwrap();
            registers.write(register::DRIVER_FEATURES, (features >> (32 * half)) as u32, DRIVER).unwrap();
        }
    }

    #[test]
    fn features_that_were_not_offered_or_lack_version_1_are_not_agreed_on() {
        for (features, agreed) in [
            (feature::VERSION_1, true),
            (COMMON | 1 << 5, true),
            (0, false),
            (1 << 5, false),
            (COMMON | 1 << 6, false),
            (COMMON | 1 << 63, false),
        ] {
            let mut registers = registers();
            take(&mut registers, features);
            let asked = ACKNOWLEDGE | DRIVER | FEATURES_OK;
            let expected = if agreed { asked } else { ACKNOWLEDGE | DRIVER };
            let effect = registers.write(register::STATUS, asked, ACKNOWLEDGE | DRIVER);
            assert_eq!(effect, Ok(Effect::Status(expected)), "{features:#x}");
        }
    }

    #[test]
    fn a_driver_is_ready_once_and_cannot_change_its_queues_afterwards() {
        let mut registers = registers();
        take(&mut registers, COMMON);
        registers.write(register::QUEUE_SIZE, 16, DRIVER).unwrap();
        registers.write(register::QUEUE_DESC_HIGH, 1, DRIVER).unwrap();
        registers.write(register::QUEUE_READY, 1, DRIVER).unwrap();
        let ready = DRIVER | FEATURES_OK | DRIVER_OK;
        assert_eq!(
            registers.write(register::STATUS, ready, DRIVER | FEATURES_OK),
            Ok(Effect::Activate(ready))
        );
        assert_eq!(registers.write(register::STATUS, ready, ready), Ok(Effect::Status(ready)));
        registers.write(register::QUEUE_SIZE, 32, ready).unwrap();
        registers.write(register::QUEUE_DESC_HIGH, 2, ready).unwrap();
        let layouts: Vec<_> =
            registers.layouts().map(|layout| layout.map(|l| (l.size, l.descriptors))).collect();
        assert_eq!(layouts, [Some((16, 1 << 32)), None]);
        registers.write(register::QUEUE_SEL, 1, ready).unwrap();
        registers.write(register::QUEUE_READY, 1, ready).unwrap();
        assert_eq!(registers.read(register::QUEUE_READY), Some(0), "too late");
        registers.write(register::QUEUE_SEL, 0, ready).unwrap();
        assert_eq!(registers.write(register::QUEUE_READY, 0, ready), Ok(Effect::StopQueue(0)));
        assert_eq!(registers.write(register::STATUS, 0, ready), Ok(Effect::Reset));
    }

    #[test]
    fn sizes_that_are_no_power_of_two_or_too_large_are_refused() {
        for size in [0, 3, 128, 65536 + 8, u32::MAX] {
            assert_eq!(registers().write(register::QUEUE_SIZE, size, 0), Err(Status::BAD_ARGUMENT), "{size}");
        }
    }

    #[test]
    fn what_is_wrong_is_refused_whichever_queue_is_selected_and_in_use() {
        for (queue, ready) in [(0, 0), (0, 1), (2, 0)] {
            let mut registers = registers();
            registers.write(register::QUEUE_SEL, queue, 0).unwrap();
            registers.write(register::QUEUE_READY, ready, 0).unwrap();
            for hole in [0x03c, 0x040, 0x088, 0x08c, 0x098, 0x09c] {
                assert_eq!(registers.write(hole, 1, 0), Err(Status::OUT_OF_RANGE), "{hole:#x}");
            }
            assert_eq!(registers.write(register::QUEUE_SIZE, 3, 0), Err(Status::BAD_ARGUMENT));
        }
    }

    #[test]
    fn a_driver_can_neither_set_nor_clear_that_a_reset_is_needed() {
        let write = |value, before| registers().write(register::STATUS, value, before).unwrap();
        assert_eq!(write(DRIVER | NEEDS_RESET, 0), Effect::Status(DRIVER));
        assert_eq!(write(DRIVER, DRIVER | NEEDS_RESET), Effect::Status(DRIVER | NEEDS_RESET));
        let ready = DRIVER | FEATURES_OK | DRIVER_OK;
        assert_eq!(write(ready, FEATURES_OK | NEEDS_RESET), Effect::Status(ready | NEEDS_RESET));
    }

    #[test]
    fn queues_that_do_not_exist_have_no_room_and_take_nothing() {
        let mut registers = registers();
        registers.write(register::QUEUE_SEL, 2, 0).unwrap();
        assert_eq!(registers.read(register::QUEUE_SIZE_MAX), Some(0));
        assert_eq!(registers.write(register::QUEUE_READY, 1, 0), Ok(Effect::None));
        assert!(registers.layouts().all(|layout| layout.is_none()));
    }
}

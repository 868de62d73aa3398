//! How a device tells its guest: its page in guest memory, and its event channel.
//!
//! The page is written and never read: what counts is kept here.
//!
//! Start at [`Line::interrupt`].

use crate::events::Events;
use crate::memory::GuestMemory;
use hv_abi::GuestPhys;
use hv_abi::device::{DevicePage, interrupt, status};
use serde::{Deserialize, Serialize};
use std::mem::offset_of;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a device did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceStats {
    /// Its virtio device id.
    pub kind: u32,
    /// Chains of buffers that it gave back.
    pub requests: u64,
    /// Bytes that it read from buffers of the guest's, with the headers of requests.
    pub bytes_from_guest: u64,
    /// Bytes that it wrote into them.
    pub bytes_to_guest: u64,
    /// How often the guest rang its doorbell.
    pub doorbells: u64,
    /// How often it told the guest.
    pub interrupts: u64,
    /// How often its worker slept.
    pub sleeps: u64,
    /// Frames that a network card could not deliver.
    pub dropped: u64,
}

/// A device's way to its guest.
pub(crate) struct Line {
    memory: Arc<GuestMemory>,
    events: Arc<Events>,
    channel: u32,
    page: GuestPhys,
    /// Held while the page shows it, too: the device and the driver's acknowledgement come from two threads.
    interrupt_status: Mutex<u32>,
    /// Virtio's status register. The driver writes it, and the device sets `NEEDS_RESET` in it.
    pub(super) status: AtomicU32,
    config: Mutex<Config>,
    pub(super) requests: AtomicU64,
    pub(super) from_guest: AtomicU64,
    pub(super) to_guest: AtomicU64,
    pub(super) doorbells: AtomicU64,
    pub(super) interrupts: AtomicU64,
    pub(super) sleeps: AtomicU64,
    pub(super) dropped: AtomicU64,
}

/// Configuration space.
struct Config {
    bytes: Vec<u8>,
    generation: u32,
}

impl Line {
    /// For a device with that page, channel and configuration space.
    pub(super) fn new(
        memory: Arc<GuestMemory>,
        events: Arc<Events>,
        channel: u32,
        page: GuestPhys,
        config: Vec<u8>,
    ) -> Self {
        let line = Self {
            memory,
            events,
            channel,
            page,
            interrupt_status: Mutex::new(0),
            status: AtomicU32::new(0),
            config: Mutex::new(Config { bytes: Vec::new(), generation: 0 }),
            requests: AtomicU64::new(0),
            from_guest: AtomicU64::new(0),
            to_guest: AtomicU64::new(0),
            doorbells: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        };
        line.show_config(&mut line.config(), config);
        line
    }

    fn config(&self) -> MutexGuard<'_, Config> {
        self.config.lock().expect("no thread panics with the lock held")
    }

    fn store(&self, field: usize, value: u32) {
        let at = GuestPhys(self.page.0 + field as u64);
        self.memory.store_word(at, value).expect("the device's page is in guest memory");
    }

    fn show_config(&self, config: &mut Config, mut bytes: Vec<u8>) {
        config.generation = config.generation.wrapping_add(1);
        self.store(offset_of!(DevicePage, config_generation), config.generation);
        self.store(offset_of!(DevicePage, config_size), bytes.len() as u32);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        for (i, word) in bytes.as_chunks().0.iter().enumerate() {
            self.store(offset_of!(DevicePage, config) + i * 4, u32::from_le_bytes(*word));
        }
        // Even again: who read some of it meanwhile has seen an odd number, or two that differ.
        config.generation = config.generation.wrapping_add(1);
        self.store(offset_of!(DevicePage, config_generation), config.generation);
        config.bytes = bytes;
    }

    /// The guest's memory.
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The driver has changed the configuration space to this.
    pub(super) fn note_config(&self, bytes: Vec<u8>) {
        self.show_config(&mut self.config(), bytes);
    }

    /// Changes the configuration space, and tells the guest.
    pub(super) fn set_config(&self, bytes: Vec<u8>) {
        self.note_config(bytes);
        self.interrupt(interrupt::CONFIG_CHANGE);
    }

    /// A word of the configuration space.
    pub(super) fn config_word(&self, offset: usize) -> Option<u32> {
        let config = self.config();
        let word = config.bytes.get(offset..offset.checked_add(4)?)?;
        Some(u32::from_le_bytes(word.try_into().expect("four bytes")))
    }

    pub(super) fn config_generation(&self) -> u32 {
        self.config().generation
    }

    /// Tells the guest: one of [`interrupt`].
    pub(super) fn interrupt(&self, why: u32) {
        self.change_interrupt_status(|status| status | why);
        self.interrupts.fetch_add(1, Relaxed);
        self.events.send(self.channel.into()).expect("a device's channel is open for as long as its VM is");
    }

    /// The guest has seen these.
    pub(super) fn acknowledge(&self, seen: u32) {
        self.change_interrupt_status(|status| status & !seen);
    }

    fn change_interrupt_status(&self, change: impl FnOnce(u32) -> u32) {
        let mut status = self.interrupt_status.lock().expect("no thread panics with the lock held");
        let new = change(*status);
        if new != std::mem::replace(&mut *status, new) {
            self.store(offset_of!(DevicePage, interrupt_status), new);
        }
    }

    pub(super) fn interrupt_status(&self) -> u32 {
        *self.interrupt_status.lock().expect("no thread panics with the lock held")
    }

    /// The device cannot go on until it is reset.
    pub(super) fn needs_reset(&self) {
        self.status.fetch_or(status::NEEDS_RESET, SeqCst);
        self.interrupt(interrupt::CONFIG_CHANGE);
    }

    /// What it did so far.
    pub(super) fn stats(&self, kind: u32) -> DeviceStats {
        DeviceStats {
            kind,
            requests: self.requests.load(Relaxed),
            bytes_from_guest: self.from_guest.load(Relaxed),
            bytes_to_guest: self.to_guest.load(Relaxed),
            doorbells: self.doorbells.load(Relaxed),
            interrupts: self.interrupts.load(Relaxed),
            sleeps: self.sleeps.load(Relaxed),
            dropped: self.dropped.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Notify, VcpuPages};
    use hv_abi::PAGE_SIZE;
    use hv_abi::vcpu::FIRST_DYNAMIC_CHANNEL;
    use std::sync::Barrier;

    struct Nobody;

    impl Notify for Nobody {
        fn notify(&self, _: u32) {}

        fn pending(&self, _: u32) {}
    }

    /// A line whose page is the first of a small memory.
    fn line(config: Vec<u8>) -> (Line, GuestMemory) {
        let memory = GuestMemory::new(PAGE_SIZE).unwrap();
        let events = Events::new(Arc::new(VcpuPages::new(1).unwrap()), Arc::new(Nobody));
        events.open_for_device(FIRST_DYNAMIC_CHANNEL);
        let of_line = Arc::new(memory.clone());
        (Line::new(of_line, Arc::new(events), FIRST_DYNAMIC_CHANNEL, GuestPhys(0), config), memory)
    }

    fn shown(memory: &GuestMemory, field: usize) -> u32 {
        memory.read(GuestPhys(field as u64)).unwrap()
    }

    #[test]
    fn the_page_shows_the_interrupt_status_whoever_changed_it_last() {
        const ROUNDS: usize = 20_000;
        let (line, memory) = line(Vec::new());
        let (barrier, mut wrong) = (Barrier::new(2), 0);
        std::thread::scope(|scope| {
            let device = scope.spawn(|| {
                for _ in 0..ROUNDS {
                    barrier.wait();
                    line.interrupt(interrupt::USED_BUFFER);
                    barrier.wait();
                }
            });
            for _ in 0..ROUNDS {
                line.acknowledge(u32::MAX);
                line.interrupt(interrupt::CONFIG_CHANGE);
                barrier.wait();
                line.acknowledge(interrupt::CONFIG_CHANGE);
                barrier.wait();
                let in_page = shown(&memory, offset_of!(DevicePage, interrupt_status));
                wrong += u32::from([in_page, line.interrupt_status()] != [interrupt::USED_BUFFER; 2]);
            }
            device.join().unwrap();
        });
        assert_eq!(wrong, 0, "times that the page showed another status than the last");
    }

    #[test]
    fn a_driver_that_reads_by_generations_sees_one_configuration() {
        let both = |value: u32| [value.to_le_bytes(), value.to_le_bytes()].concat();
        let (line, memory) = line(both(0));
        let field = |at| shown(&memory, at);
        let (generation, config) =
            (offset_of!(DevicePage, config_generation), offset_of!(DevicePage, config));
        std::thread::scope(|scope| {
            let changes = scope.spawn(|| (1..20_000).for_each(|value| line.set_config(both(value))));
            let mut seen = 0;
            while !changes.is_finished() || seen == 0 {
                let before = field(generation);
                let words = [field(config), field(config + 4)];
                if before.is_multiple_of(2) && field(generation) == before {
                    assert_eq!(words[0], words[1], "two configurations in one");
                    seen += 1;
                }
            }
        });
        assert_eq!([field(generation), line.config_generation()], [2 * 20_000; 2]);
    }
}

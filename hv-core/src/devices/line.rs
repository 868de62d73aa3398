//! How a device tells its guest: its page in guest memory, and its event channel.
//!
//! The page is written and never read: what counts is kept here.
//!
//! Start at [`Line::interrupt`].

use crate::events::Events;
use crate::memory::GuestMemory;
use hv_abi::GuestPhys;
use hv_abi::device::{DevicePage, interrupt, status};
use serde::Serialize;
use std::mem::offset_of;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};

/// What a device did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DeviceStats {
    /// Its virtio device id.
    pub kind: u32,
    /// Chains of buffers that it gave back.
    pub requests: u64,
    /// How often the guest rang its doorbell.
    pub doorbells: u64,
    /// How often it told the guest.
    pub interrupts: u64,
    /// How often its worker slept.
    pub sleeps: u64,
}

/// A device's way to its guest.
pub(crate) struct Line {
    memory: Arc<GuestMemory>,
    events: Arc<Events>,
    channel: u32,
    page: GuestPhys,
    interrupt_status: AtomicU32,
    /// Virtio's status register. The driver writes it, and the device sets `NEEDS_RESET` in it.
    pub(super) status: AtomicU32,
    config: Mutex<Config>,
    pub(super) requests: AtomicU64,
    pub(super) doorbells: AtomicU64,
    pub(super) interrupts: AtomicU64,
    pub(super) sleeps: AtomicU64,
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
            interrupt_status: AtomicU32::new(0),
            status: AtomicU32::new(0),
            config: Mutex::new(Config { bytes: Vec::new(), generation: 0 }),
            requests: AtomicU64::new(0),
            doorbells: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
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
        for (i, word) in bytes.chunks_exact(4).enumerate() {
            let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
            self.store(offset_of!(DevicePage, config) + i * 4, word);
        }
        // Who read some of it, and then the old number, reads again.
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
        let before = self.interrupt_status.fetch_or(why, SeqCst);
        if before & why != why {
            self.store(offset_of!(DevicePage, interrupt_status), before | why);
        }
        self.interrupts.fetch_add(1, Relaxed);
        self.events.send(self.channel.into()).expect("a device's channel is open for as long as its VM is");
    }

    /// The guest has seen these.
    pub(super) fn acknowledge(&self, seen: u32) {
        let left = self.interrupt_status.fetch_and(!seen, SeqCst) & !seen;
        self.store(offset_of!(DevicePage, interrupt_status), left);
    }

    pub(super) fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(SeqCst)
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
            doorbells: self.doorbells.load(Relaxed),
            interrupts: self.interrupts.load(Relaxed),
            sleeps: self.sleeps.load(Relaxed),
        }
    }
}

//! A device with one queue that a test plays, by the rules of virtio or against them.
//!
//! It is as strict as a device can be. It looks at its ring only when the doorbell rings, once it has asked for that, and tells the
//! driver of used buffers only if that has asked: what is forgotten is a deadlock, which the fake host reports. Buffers that the
//! driver changes while the device has them are found when they are used.
//!
//! Start at [`Fake::plug`]; what it then does with its chains is the `work` that it was given.

#![expect(unsafe_code, reason = "a device reaches rings and buffers by their addresses")]

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use guest_sdk::fake;
use hv_abi::device::{feature, register, status};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Which devices have a driver is one for the process, so tests take turns.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    fake::reset();
    alone
}

/// A chain that the device has: its head, and its buffers with what was in them when it took it.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    pub(crate) readable: Vec<(u64, Vec<u8>)>,
    pub(crate) writable: Vec<(u64, Vec<u8>)>,
}

/// The device's side.
#[derive(Default)]
pub(crate) struct Ring {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    taken: u16,
    given: u16,
    /// What the doorbell has told of.
    pub(crate) chains: VecDeque<Chain>,
    /// The channel is to fire, whether or not the driver has asked for it.
    pub(crate) fires: bool,
}

fn load<T: Copy>(at: u64) -> T {
    // SAFETY: the driver has given the address, of memory that is the device's until it is reset, and readable.
    unsafe { with_exposed_provenance::<T>(at as usize).read_volatile() }
}

fn store<T>(at: u64, value: T) {
    // SAFETY: as in `load`, and it is the device's to write.
    unsafe { with_exposed_provenance_mut::<T>(at as usize).write_volatile(value) }
}

fn bytes(at: u64, length: u32) -> Vec<u8> {
    (at..at + u64::from(length)).map(load::<u8>).collect()
}

impl Ring {
    /// Takes what is available, and asks for a doorbell for what comes next.
    fn look(&mut self) {
        while load::<u16>(self.available + 2) != self.taken {
            let slot = u64::from(self.taken % self.size);
            let head = load::<u16>(self.available + 4 + 2 * slot);
            self.taken = self.taken.wrapping_add(1);
            let mut chain = Chain { head, readable: Vec::new(), writable: Vec::new() };
            let mut next = Some(head);
            while let Some(index) = next {
                let at = self.descriptors + 16 * u64::from(index);
                let (address, length, flags) = (load::<u64>(at), load::<u32>(at + 8), load::<u16>(at + 12));
                let part = if flags & 2 == 0 { &mut chain.readable } else { &mut chain.writable };
                part.push((address, bytes(address, length)));
                next = (flags & 1 != 0).then(|| load(at + 14));
            }
            self.chains.push_back(chain);
        }
        store(self.used + 4 + 8 * u64::from(self.size), self.taken);
    }

    /// Uses a chain as it should be: all of its room is filled with `byte`.
    pub(crate) fn serve(&mut self, chain: &Chain, byte: u8) {
        for (at, before) in chain.readable.iter().chain(&chain.writable) {
            assert!(
                bytes(*at, before.len() as u32) == *before,
                "the driver has touched a buffer of the device's"
            );
        }
        let mut written = 0;
        for (at, room) in &chain.writable {
            (*at..*at + room.len() as u64).for_each(|at| store(at, byte));
            written += room.len() as u32;
        }
        self.give(chain.head.into(), written);
    }

    /// Says that something was used, which may be a lie.
    pub(crate) fn give(&mut self, head: u32, written: u32) {
        let at = self.used + 4 + 8 * u64::from(self.given % self.size);
        store(at, head);
        store(at + 4, written);
        self.jump(1);
    }

    /// Moves the used ring's index.
    pub(crate) fn jump(&mut self, by: u16) {
        let event = load::<u16>(self.available + 4 + 2 * u64::from(self.size));
        self.fires |= self.given.wrapping_add(by).wrapping_sub(event).wrapping_sub(1) < by;
        self.given = self.given.wrapping_add(by);
        store(self.used + 2, self.given);
    }
}

/// What a device does with its ring.
type Work = Box<dyn FnMut(&mut Ring)>;

/// The device.
pub(crate) struct Fake {
    pub(crate) kind: u32,
    pub(crate) features: u64,
    /// Bits of the status register that it never takes.
    pub(crate) refuses: u32,
    pub(crate) queue_size: u32,
    /// Works when the doorbell rings, and not when the guest waits.
    pub(crate) at_once: bool,
    pub(crate) work: Work,
}

impl Fake {
    /// One that does all that is asked of it, while the guest waits.
    pub(crate) fn new(kind: u32, work: impl FnMut(&mut Ring) + 'static) -> Self {
        let features = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
        Self { kind, features, refuses: 0, queue_size: 64, at_once: false, work: Box::new(work) }
    }

    /// Gives it to the VM. What it has seen is shown by the value that this gives.
    pub(crate) fn plug(self) -> Rc<RefCell<Seen>> {
        let seen = Rc::default();
        let plugged = Plugged { fake: self, seen: Rc::clone(&seen), ..Plugged::empty() };
        fake::set_devices(vec![Box::new(plugged)]);
        seen
    }
}

/// What a device has seen of its driver.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) resets: u32,
    pub(crate) doorbells: u32,
    pub(crate) status: u32,
}

/// A device with its registers.
struct Plugged {
    fake: Fake,
    seen: Rc<RefCell<Seen>>,
    select: u32,
    status: u32,
    ready: bool,
    ring: Ring,
}

impl Plugged {
    fn empty() -> Self {
        let fake = Fake::new(0, |_| {});
        Self { fake, seen: Rc::default(), select: 0, status: 0, ready: false, ring: Ring::default() }
    }

    fn work(&mut self) -> bool {
        (self.fake.work)(&mut self.ring);
        core::mem::take(&mut self.ring.fires)
    }

    fn is_ready(&self) -> bool {
        self.ready && self.status & status::DRIVER_OK != 0
    }
}

impl fake::Device for Plugged {
    fn kind(&self) -> u32 {
        self.fake.kind
    }

    fn read(&mut self, offset: u64) -> u32 {
        match offset {
            register::DEVICE_FEATURES => (self.fake.features >> (32 * self.select)) as u32,
            register::QUEUE_SIZE_MAX => self.fake.queue_size,
            register::QUEUE_READY => self.ready.into(),
            register::STATUS => self.status,
            _ => panic!("the driver reads register {offset:#x}"),
        }
    }

    fn write(&mut self, offset: u64, value: u32) -> bool {
        let low = |old: u64| old & !0xffff_ffff | u64::from(value);
        let high = |old: u64| old & 0xffff_ffff | u64::from(value) << 32;
        let ring = &mut self.ring;
        match offset {
            register::STATUS if value == 0 => {
                self.seen.borrow_mut().resets += 1;
                (self.status, self.ready, self.ring) = (0, false, Ring::default());
            }
            register::STATUS => self.status = value & !self.fake.refuses,
            register::DEVICE_FEATURES_SEL => self.select = value,
            register::QUEUE_SIZE => ring.size = value as u16,
            register::QUEUE_READY => self.ready = value == 1,
            register::QUEUE_DESC_LOW => ring.descriptors = low(ring.descriptors),
            register::QUEUE_DESC_HIGH => ring.descriptors = high(ring.descriptors),
            register::QUEUE_DRIVER_LOW => ring.available = low(ring.available),
            register::QUEUE_DRIVER_HIGH => ring.available = high(ring.available),
            register::QUEUE_DEVICE_LOW => ring.used = low(ring.used),
            register::QUEUE_DEVICE_HIGH => ring.used = high(ring.used),
            _ => {}
        }
        self.seen.borrow_mut().status = self.status;
        false
    }

    fn notify(&mut self, _: u32) -> bool {
        assert!(self.is_ready(), "the driver rings a device that is not ready");
        self.seen.borrow_mut().doorbells += 1;
        self.ring.look();
        self.fake.at_once && self.work()
    }

    fn idle(&mut self) -> bool {
        self.is_ready() && !self.fake.at_once && !self.ring.chains.is_empty() && self.work()
    }
}

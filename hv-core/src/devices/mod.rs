//! Devices: virtio over hypercalls, as `docs/abi.md`, section 15, says.
//!
//! A device is a [`Device`]: what its requests mean. What all have in common is here: registers (`registers`), rings and chains
//! of buffers (`ring`, `chain`), a thread (`worker`) that is made when a driver is ready, and a way to the guest (`line`). What a
//! device needs of the host is opened by whoever makes the VM, and handed over in a [`DeviceConfig`].
//!
//! Start at [`Device`], then at `entropy`, the smallest.

mod balloon;
mod block;
mod chain;
mod console;
mod entropy;
mod fs;
mod line;
mod listen;
mod net;
mod registers;
pub(crate) mod ring;
#[cfg(test)]
mod ring_model;
mod vsock;
mod worker;

pub use block::{Block, BlockError, BlockOptions};
pub use console::{Console, PORTS_MAX, Port, Window};
pub use fs::{Access, FolderError, SharedFolder};
pub use line::DeviceStats;
pub use listen::{ListenError, listen};
pub use net::{Net, NetLink};
pub use vsock::{Vsock, VsockError, connect};

use crate::engine::AddressSpaces;
use crate::events::Events;
use crate::memory::GuestMemory;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use hv_abi::device::{DEVICES_MAX, DeviceEntry, MAGIC, VENDOR, feature, kind, register};
use hv_abi::vcpu::FIRST_DYNAMIC_CHANNEL;
use hv_abi::{GuestPhys, PAGE_SIZE, Status};
use line::Line;
use registers::{Effect, Registers};
use ring::Ring;
use rustix::event::PollFlags;
use rustix::fd::BorrowedFd;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use worker::{Bell, Order, Worker};

/// A driver broke the rules of virtio: which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken(pub &'static str);

/// What of a descriptor of the host's a device waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
    Both,
}

impl Interest {
    /// As `poll` has it.
    fn flags(self) -> PollFlags {
        match self {
            Self::Read => PollFlags::IN,
            Self::Write => PollFlags::OUT,
            Self::Both => PollFlags::IN | PollFlags::OUT,
        }
    }
}

/// What requests to a device mean. All but the first four are called on the device's own thread.
pub(crate) trait Device: Send {
    /// Its virtio device id.
    fn kind(&self) -> u32;

    /// The feature bits of its own that it offers.
    fn features(&self) -> u64 {
        0
    }

    /// The most descriptors of each of its queues.
    fn queues(&self) -> &'static [u16];

    /// Its configuration space at first.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// A driver is ready, and has taken these features.
    fn activate(&mut self, _features: u64) {}

    /// There is no driver any more. Chains are dropped, and no guest memory is touched from here on.
    fn reset(&mut self) {}

    /// A queue is not used any more, and the device has chains of it: as [`reset`](Self::reset), if it makes no difference to it.
    fn stop_queue(&mut self, _queue: usize) {
        self.reset();
    }

    /// No guest memory is touched when this returns, until the next [`process`](Self::process).
    fn quiesce(&mut self, _rings: &mut [Option<Ring>]) {}

    /// The driver has written to the configuration space.
    fn write_config(&mut self, _offset: usize, _value: u32, _line: &Line) {}

    /// What to wait for on the host, at the moment. The doorbell is always waited for.
    fn sources(&self) -> Vec<(BorrowedFd<'_>, Interest)> {
        Vec::new()
    }

    /// Whether a new chain in this queue is of use at the moment: only then is a doorbell wanted for it.
    fn waits_for(&self, _queue: usize) -> bool {
        true
    }

    /// Does what there is to do, without waiting; a bounded part of it if it is much. Whether there was something. A queue that
    /// the driver did not set up is `None`. Without `look`, what comes from the host need not be looked at.
    fn process(&mut self, rings: &mut [Option<Ring>], line: &Line, look: bool) -> Result<bool, Broken>;
}

/// A device that a VM is to have.
#[expect(clippy::large_enum_variant, reason = "a VM has a few, and each is looked at once")]
pub enum DeviceConfig {
    /// An entropy source, from the host's generator.
    Entropy,
    /// A disk.
    Block(Block),
    /// A memory balloon, for guests that have no use for the hypervisor's own.
    Balloon,
    /// A terminal, and other ports.
    Console(Console),
    /// Sockets between the guest and the host.
    Vsock(Vsock),
    /// A folder of the host's.
    FileSystem(SharedFolder),
    /// A network card.
    Net(Net),
}

impl DeviceConfig {
    /// One of a VM's, which shares so many folders.
    fn build(self, folders: usize) -> Box<dyn Device> {
        match self {
            Self::Entropy => Box::new(entropy::Entropy),
            Self::Block(block) => Box::new(block::Disk::new(block)),
            Self::Balloon => Box::new(balloon::Balloon::default()),
            Self::Console(console) => Box::new(console::Terminals::new(console)),
            Self::Vsock(vsock) => Box::new(vsock::Sockets::new(vsock)),
            Self::FileSystem(folder) => Box::new(fs::FileSystem::new(folder, folders)),
            Self::Net(net) => Box::new(net::Card::new(net)),
        }
    }
}

/// A device and its registers.
struct Slot {
    kind: u32,
    registers: Mutex<Registers>,
    line: Arc<Line>,
    bell: Bell,
    orders: Sender<Order>,
    worker: Mutex<State>,
}

/// Its thread.
enum State {
    /// No driver was ever ready.
    Waiting(Box<dyn Device>, Receiver<Order>),
    Running(JoinHandle<()>),
    Ended,
}

/// The devices of a VM.
pub(crate) struct Devices {
    slots: Vec<Slot>,
    memory: Arc<GuestMemory>,
    spaces: Arc<dyn AddressSpaces>,
}

/// Devices that are not in a VM yet: what the guest is told of them.
pub(crate) struct Plan(Vec<Box<dyn Device>>);

impl Plan {
    /// Of these.
    pub(crate) fn new(devices: Vec<DeviceConfig>) -> Self {
        assert!(devices.len() <= DEVICES_MAX as usize, "it was checked");
        let folders = devices.iter().filter(|device| matches!(device, DeviceConfig::FileSystem(_))).count();
        Self(devices.into_iter().map(|device| device.build(folders)).collect())
    }

    /// Bytes of guest memory for the table and the devices' pages.
    pub(crate) fn size(&self) -> u64 {
        if self.0.is_empty() { 0 } else { (self.0.len() as u64 + 1) * PAGE_SIZE }
    }

    /// The table, which is at P `start`, before the pages.
    pub(crate) fn table(&self, start: u64) -> Vec<DeviceEntry> {
        let devices = (0_u32..).zip(&self.0);
        let entries = devices.map(|(number, device)| DeviceEntry {
            device: number,
            kind: device.kind(),
            channel: FIRST_DYNAMIC_CHANNEL + number,
            queues: device.queues().len() as u32,
            page: GuestPhys(start + (u64::from(number) + 1) * PAGE_SIZE),
            reserved: 0,
        });
        entries.collect()
    }
}

impl Devices {
    /// Puts the devices of `plan` into a VM, whose guest finds them in `table`.
    pub(crate) fn new(
        plan: Plan,
        table: &[DeviceEntry],
        memory: &GuestMemory,
        events: &Arc<Events>,
        spaces: Arc<dyn AddressSpaces>,
    ) -> std::io::Result<Self> {
        let memory = Arc::new(memory.clone());
        let slot = |(device, entry): (Box<dyn Device>, &DeviceEntry)| {
            events.open_for_device(entry.channel);
            let line = Line::new(memory.clone(), events.clone(), entry.channel, entry.page, device.config());
            let (orders, orders_out) = unbounded();
            Ok(Slot {
                kind: entry.kind,
                registers: Mutex::new(Registers::new(device.features(), device.queues())),
                line: Arc::new(line),
                bell: Bell::new()?,
                orders,
                worker: Mutex::new(State::Waiting(device, orders_out)),
            })
        };
        let slots = plan.0.into_iter().zip(table).map(slot).collect::<std::io::Result<_>>()?;
        Ok(Self { slots, memory, spaces })
    }

    fn slot(&self, device: u64) -> Result<&Slot, Status> {
        usize::try_from(device).ok().and_then(|index| self.slots.get(index)).ok_or(Status::NOT_FOUND)
    }

    /// Reads a register.
    pub(crate) fn read(&self, device: u64, offset: u64) -> Result<u32, Status> {
        let slot = self.slot(device)?;
        if !offset.is_multiple_of(4) {
            return Err(Status::BAD_ARGUMENT);
        }
        Ok(match offset {
            register::MAGIC_VALUE => MAGIC,
            register::VERSION => 2,
            register::DEVICE_ID => slot.kind,
            register::VENDOR_ID => VENDOR,
            register::INTERRUPT_STATUS => slot.line.interrupt_status(),
            register::STATUS => slot.line.status.load(SeqCst),
            register::CONFIG_GENERATION => slot.line.config_generation(),
            register::CONFIG.. => {
                slot.line.config_word((offset - register::CONFIG) as usize).ok_or(Status::OUT_OF_RANGE)?
            }
            _ => slot.registers().read(offset).ok_or(Status::OUT_OF_RANGE)?,
        })
    }

    /// Writes a register. A reset waits until the device no longer touches guest memory.
    pub(crate) fn write(&self, device: u64, offset: u64, value: u64) -> Result<(), Status> {
        let slot = self.slot(device)?;
        let value = u32::try_from(value).map_err(|_| Status::BAD_ARGUMENT)?;
        if !offset.is_multiple_of(4) {
            return Err(Status::BAD_ARGUMENT);
        }
        // Held to the end: two vCPUs that write have one order.
        let mut registers = slot.registers();
        let before = slot.line.status.load(SeqCst);
        match registers.write(offset, value, before)? {
            Effect::None => {}
            Effect::Status(status) => _ = slot.line.status.fetch_or(status, SeqCst),
            Effect::Acknowledge(seen) => slot.line.acknowledge(seen),
            Effect::Config(offset, value) => {
                slot.line.config_word(offset).ok_or(Status::OUT_OF_RANGE)?;
                slot.write_config(offset, value);
            }
            Effect::StopQueue(queue) => slot.order_and_wait(|done| Order::StopQueue(queue, done)),
            Effect::Reset => {
                registers.reset();
                slot.order_and_wait(Order::Reset);
                slot.line.status.store(0, SeqCst);
                slot.line.acknowledge(u32::MAX);
            }
            Effect::Activate(status) => {
                slot.line.status.fetch_or(status, SeqCst);
                if self.activate(slot, &registers).is_err() {
                    slot.line.needs_reset();
                }
            }
        }
        Ok(())
    }

    fn activate(&self, slot: &Slot, registers: &Registers) -> Result<(), Broken> {
        let event_idx = registers.features() & feature::EVENT_IDX != 0;
        let ring = |layout| Ring::new(self.memory.clone(), self.spaces.clone(), &layout, event_idx);
        let rings =
            registers.layouts().map(|layout| layout.map(ring).transpose()).collect::<Result<Vec<_>, _>>();
        let rings = rings.inspect_err(|Broken(why)| {
            tracing::warn!(kind = slot.kind, why, "a driver set up a device wrongly")
        })?;
        slot.ensure_worker()?;
        slot.order(Order::Activate(registers.features(), rings));
        Ok(())
    }

    /// The guest has something for a queue.
    pub(crate) fn notify(&self, device: u64, queue: u64) -> Result<(), Status> {
        let slot = self.slot(device)?;
        if queue >= slot.registers().queues() as u64 {
            return Err(Status::OUT_OF_RANGE);
        }
        slot.line.doorbells.fetch_add(1, Relaxed);
        slot.bell.ring();
        Ok(())
    }

    /// No device touches guest memory any more when this returns, until [`resume`](Self::resume).
    pub(crate) fn pause(&self) {
        let pauses: Vec<_> = self.slots.iter().filter_map(|slot| slot.ask(Order::Pause)).collect();
        pauses.iter().for_each(|done| _ = done.recv());
    }

    /// Devices go on.
    pub(crate) fn resume(&self) {
        self.slots.iter().for_each(|slot| _ = slot.order(Order::Resume));
    }

    /// Ends all workers, and waits until they have.
    pub(crate) fn end(&self) {
        self.slots.iter().for_each(|slot| _ = slot.order(Order::End));
        for slot in &self.slots {
            if let State::Running(thread) = std::mem::replace(&mut *slot.worker(), State::Ended) {
                thread.join().expect("a worker does not panic");
            }
        }
    }

    /// What is asked of the VM's balloon has changed. Whether it has one.
    pub(crate) fn retarget_balloon(&self) -> bool {
        let mut balloons = self.slots.iter().filter(|slot| slot.kind == kind::BALLOON).peekable();
        let is_there = balloons.peek().is_some();
        balloons.for_each(|slot| slot.bell.ring());
        is_there
    }

    /// What each device did so far.
    pub(crate) fn stats(&self) -> Vec<DeviceStats> {
        self.slots.iter().map(|slot| slot.line.stats(slot.kind)).collect()
    }
}

impl Slot {
    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().expect("no thread panics with the lock held")
    }

    fn worker(&self) -> MutexGuard<'_, State> {
        self.worker.lock().expect("no thread panics with the lock held")
    }

    /// Makes the device's thread, if it has none yet.
    fn ensure_worker(&self) -> Result<(), Broken> {
        let mut state = self.worker();
        *state = match std::mem::replace(&mut *state, State::Ended) {
            State::Waiting(device, orders) => {
                let worker = Worker { device, line: self.line.clone(), bell: self.bell.clone(), orders };
                let thread = std::thread::Builder::new().name("hv-device".into());
                let thread = thread.spawn(move || worker.run()).inspect_err(|error| {
                    tracing::warn!(%error, "a device's thread could not be made");
                });
                State::Running(thread.map_err(|_| Broken("the host has no thread for it"))?)
            }
            state => state,
        };
        Ok(())
    }

    /// Gives an order, unless there is no worker to obey: nothing is kept for one that is not there, so a guest cannot make
    /// orders pile up.
    fn order(&self, order: Order) -> Option<()> {
        if !matches!(*self.worker(), State::Running(_)) {
            return None;
        }
        let _ = self.orders.send(order); // it is about to end: nobody need obey
        self.bell.ring();
        Some(())
    }

    /// Gives an order that is answered; `None` if there is no worker to answer.
    fn ask(&self, order: impl FnOnce(Sender<()>) -> Order) -> Option<Receiver<()>> {
        let (done, answer) = bounded(1);
        self.order(order(done)).map(|()| answer)
    }

    /// The driver writes to the configuration space, before it is ready or after.
    fn write_config(&self, offset: usize, value: u32) {
        if let State::Waiting(device, _) = &mut *self.worker() {
            return device.write_config(offset, value, &self.line);
        }
        self.order_and_wait(|done| Order::Config(offset, value, done));
    }

    fn order_and_wait(&self, order: impl FnOnce(Sender<()>) -> Order) {
        if let Some(done) = self.ask(order) {
            let _ = done.recv(); // the worker has ended: so has what it did
        }
    }
}

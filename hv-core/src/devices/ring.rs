//! The device's side of a split virtqueue (Virtual I/O Device 1.3, section 2.7).
//!
//! What a driver puts into a ring is a claim. A chain is copied out of guest memory once, and checked whole, before a device
//! sees any of it; a driver that breaks the rules is told by [`Broken`], and its device goes no further until it is reset. The
//! buffers themselves may change at any time: they are only ever copied, or given to the host's kernel to fill or to write out.
//!
//! Start at [`Ring::pop`].

use super::Broken;
use super::chain::{Chain, Segment, Segments};
use crate::engine::AddressSpaces;
use crate::memory::GuestMemory;
use hv_abi::GuestPhys;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::Address;

/// A ring as its driver has set it up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layout {
    /// Descriptors.
    pub size: u16,
    /// P of the descriptor table.
    pub descriptors: u64,
    /// P of the available ring.
    pub available: u64,
    /// P of the used ring.
    pub used: u64,
}

/// One virtqueue.
pub(crate) struct Ring {
    queue: Queue,
    memory: Arc<GuestMemory>,
    spaces: Arc<dyn AddressSpaces>,
    /// Chains that were popped and not yet pushed, and all that were ever pushed.
    in_flight: u32,
    completed: u64,
}

impl Ring {
    /// A ring that its driver has set up.
    ///
    /// # Errors
    ///
    /// A part of it is not in guest memory, or misaligned.
    pub(crate) fn new(
        memory: Arc<GuestMemory>,
        spaces: Arc<dyn AddressSpaces>,
        layout: &Layout,
        event_idx: bool,
    ) -> Result<Self, Broken> {
        let bad = |_| Broken("a part of a ring is misaligned, or its size is no power of two");
        let mut queue = Queue::new(layout.size).map_err(bad)?;
        queue.try_set_desc_table_address(vm_memory::GuestAddress(layout.descriptors)).map_err(bad)?;
        queue.try_set_avail_ring_address(vm_memory::GuestAddress(layout.available)).map_err(bad)?;
        queue.try_set_used_ring_address(vm_memory::GuestAddress(layout.used)).map_err(bad)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if layout.available == 0 || !queue.is_valid(memory.map()) {
            return Err(Broken("a part of a ring is not in guest memory"));
        }
        Ok(Self { queue, memory, spaces, in_flight: 0, completed: 0 })
    }

    /// Whether the driver has made a chain available that was not popped.
    pub(crate) fn has_available(&self) -> bool {
        let index = self.queue.avail_idx(self.memory.map(), Ordering::Acquire);
        index.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// The next chain that the driver has made available.
    ///
    /// # Errors
    ///
    /// The ring's index is more than its size ahead, or the chain is malformed.
    pub(crate) fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        let size = self.queue.size();
        let ahead = |_| Broken("the available ring's index is further ahead than the ring is long");
        let mut iter = self.queue.iter(self.memory.map()).map_err(ahead)?;
        let Some(descriptors) = iter.next() else { return Ok(None) };
        let head = descriptors.head_index();
        if head >= size {
            return Err(Broken("the available ring names a descriptor that the table does not have"));
        }
        let (mut readable, mut writable) = (Segments::new(), Segments::new());
        let mut goes_on = true;
        for descriptor in descriptors {
            goes_on = descriptor.has_next();
            let segment =
                Segment { start: GuestPhys(descriptor.addr().raw_value()), length: descriptor.len() };
            if !self.memory.contains(segment.start, segment.length.into()) {
                return Err(Broken("a descriptor's buffer is not in guest memory"));
            }
            if readable.len() + writable.len() >= usize::from(size) {
                return Err(Broken("a chain has more descriptors than the ring"));
            }
            if descriptor.is_write_only() {
                writable.push(segment);
            } else if writable.is_empty() {
                readable.push(segment);
            } else {
                return Err(Broken("a readable descriptor follows a writable one"));
            }
        }
        if goes_on {
            return Err(Broken("a chain ends nowhere, loops, or is longer than 4 GiB"));
        }
        self.in_flight += 1;
        Ok(Some(Chain::new(self.memory.clone(), head, readable, writable)))
    }

    /// Takes the last pop back: the chain will be popped again.
    pub(crate) fn put_back(&mut self, chain: Chain) {
        drop(chain);
        self.in_flight -= 1;
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, with what has been written to it.
    pub(crate) fn push(&mut self, chain: Chain) {
        if self.memory.watched().has_written() {
            self.spaces.frames_written(); // no program goes on with what was there before
        }
        let used = self.queue.add_used(self.memory.map(), chain.head(), chain.written());
        used.expect("the ring is in guest memory, and the head is less than its size");
        self.in_flight -= 1;
        self.completed += 1;
    }

    /// Chains that the device has popped and not pushed.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Chains pushed since this was last asked.
    pub(super) fn take_completed(&mut self) -> u64 {
        std::mem::take(&mut self.completed)
    }

    /// Whether the driver wants to be told of what was pushed since this was last asked.
    pub(super) fn wants_interrupt(&mut self) -> bool {
        self.queue.needs_notification(self.memory.map()).expect("the ring is in guest memory")
    }

    /// Asks for a doorbell for the next chain. Whether there is one already, for which none may come.
    pub(super) fn ask_for_doorbell(&mut self) -> bool {
        self.queue.enable_notification(self.memory.map()).expect("the ring is in guest memory")
    }

    /// Says that no doorbell is wanted, as far as that is not said by an index.
    pub(super) fn want_no_doorbell(&mut self) {
        self.queue.disable_notification(self.memory.map()).expect("the ring is in guest memory");
    }
}

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
use std::collections::VecDeque;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

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

/// Chains that are taken from the ring at once, and given back at once: each time, a cache line goes from one processor to
/// another and back.
const AT_ONCE: usize = 8;

/// One virtqueue.
pub(crate) struct Ring {
    queue: Queue,
    memory: Arc<GuestMemory>,
    spaces: Arc<dyn AddressSpaces>,
    event_idx: bool,
    /// [`AT_ONCE`].
    at_once: usize,
    /// Chains that were taken from the ring and not popped, and what is wrong with the one behind them.
    taken: VecDeque<Chain>,
    broken: Option<Broken>,
    /// The used ring's index; the driver knows it up to `published`, and was told up to `told`.
    used: Wrapping<u16>,
    published: Wrapping<u16>,
    told: Wrapping<u16>,
    /// Chains that were popped and not yet pushed; and those that were pushed since this was last asked.
    in_flight: u32,
    completed: Completed,
}

/// What was done with chains that were pushed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Completed {
    pub chains: u64,
    /// Bytes of the driver's that were read, and bytes that were written for it.
    pub taken: u64,
    pub written: u64,
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
        queue.try_set_desc_table_address(GuestAddress(layout.descriptors)).map_err(bad)?;
        queue.try_set_avail_ring_address(GuestAddress(layout.available)).map_err(bad)?;
        queue.try_set_used_ring_address(GuestAddress(layout.used)).map_err(bad)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if layout.available == 0 || !queue.is_valid(&*memory) {
            return Err(Broken("a part of a ring is not in guest memory"));
        }
        let zero = Wrapping(0);
        let (taken, broken) = (VecDeque::with_capacity(AT_ONCE), None);
        Ok(Self {
            queue,
            memory,
            spaces,
            event_idx,
            at_once: AT_ONCE,
            taken,
            broken,
            used: zero,
            published: zero,
            told: zero,
            in_flight: 0,
            completed: Completed::default(),
        })
    }

    /// Takes and publishes chains one by one, so that what is done is seen at once.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn one_at_a_time(&mut self) {
        self.at_once = 1;
    }

    /// Whether the driver has made a chain available that was not popped.
    pub(crate) fn has_available(&self) -> bool {
        let index = self.queue.avail_idx(&*self.memory, Ordering::Acquire);
        !self.taken.is_empty() || index.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// The next chain that the driver has made available.
    ///
    /// # Errors
    ///
    /// The ring's index is more than its size ahead, or the chain is malformed.
    pub(crate) fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        if self.taken.is_empty() {
            if let Some(broken) = self.broken {
                return Err(broken);
            }
            self.take()?;
        }
        let Some(chain) = self.taken.pop_front() else {
            return self.broken.map_or(Ok(None), Err);
        };
        self.in_flight += 1;
        Ok(Some(chain))
    }

    /// Takes the next chains from the ring.
    fn take(&mut self) -> Result<(), Broken> {
        let size = self.queue.size();
        let ahead = |_| Broken("the available ring's index is further ahead than the ring is long");
        for descriptors in self.queue.iter(&*self.memory).map_err(ahead)?.take(self.at_once) {
            match chain(&self.memory, size, descriptors) {
                Ok(chain) => self.taken.push_back(chain),
                Err(broken) => {
                    self.broken = Some(broken);
                    break;
                }
            }
        }
        Ok(())
    }

    /// Takes the last pop back: the chain will be popped again.
    pub(crate) fn put_back(&mut self, chain: Chain) {
        self.taken.push_front(chain);
        self.in_flight -= 1;
    }

    /// Gives a chain back to the driver, with what has been written to it. It may see that later, but no later than when the
    /// device has done what there is to do.
    pub(crate) fn push(&mut self, chain: Chain) {
        let element = u64::from(chain.head()) | u64::from(chain.written()) << 32;
        let at = used_ring::HEADER + u64::from(self.used.0 % self.queue.size()) * used_ring::ELEMENT;
        let written = self.memory.write_obj(element, GuestAddress(self.queue.used_ring() + at));
        written.expect("the ring is in guest memory");
        self.used += 1;
        self.in_flight -= 1;
        self.completed.chains += 1;
        self.completed.taken += chain.taken() as u64;
        self.completed.written += u64::from(chain.written());
        if (self.used - self.published).0 as usize >= self.at_once {
            self.publish();
        }
    }

    /// Shows the driver what was pushed.
    pub(crate) fn publish(&mut self) {
        if self.used == self.published {
            return;
        }
        if self.memory.watched().has_written() {
            self.spaces.frames_written(); // no program goes on with what was there before
        }
        let at = GuestAddress(self.queue.used_ring() + used_ring::INDEX);
        self.memory.store(self.used.0, at, Ordering::Release).expect("the ring is in guest memory");
        self.published = self.used;
    }

    /// Chains that the device has popped and not pushed.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Chains pushed since this was last asked.
    pub(super) fn take_completed(&mut self) -> Completed {
        std::mem::take(&mut self.completed)
    }

    /// Whether the driver wants to be told of what was published since this was last asked (Virtual I/O Device 1.3, section
    /// 2.7.7.2).
    pub(crate) fn wants_interrupt(&mut self) -> bool {
        let (new, old) = (self.published, std::mem::replace(&mut self.told, self.published));
        // The index is stored before the driver's wish is looked at; it does so the other way round.
        fence(Ordering::SeqCst);
        let available = self.queue.avail_ring();
        let load = |at| {
            let value: u16 = self
                .memory
                .load(GuestAddress(available + at), Ordering::Relaxed)
                .expect("the ring is in guest memory");
            Wrapping(value)
        };
        if !self.event_idx {
            const NO_INTERRUPT: u16 = 1;
            return load(0).0 & NO_INTERRUPT == 0;
        }
        let event = load(4 + 2 * u64::from(self.queue.size()));
        new - event - Wrapping(1) < new - old
    }

    /// Asks for a doorbell for the next chain. Whether there is one already, for which none may come.
    pub(crate) fn ask_for_doorbell(&mut self) -> bool {
        let more = self.queue.enable_notification(&*self.memory).expect("the ring is in guest memory");
        more || !self.taken.is_empty() || self.broken.is_some()
    }

    /// Says that no doorbell is wanted, as far as that is not said by an index.
    pub(crate) fn want_no_doorbell(&mut self) {
        self.queue.disable_notification(&*self.memory).expect("the ring is in guest memory");
    }
}

/// Offsets in the used ring (Virtual I/O Device 1.3, section 2.7.8).
mod used_ring {
    pub(super) const INDEX: u64 = 2;
    pub(super) const HEADER: u64 = 4;
    pub(super) const ELEMENT: u64 = 8;
}

/// A chain, copied out of guest memory and checked.
fn chain(
    memory: &Arc<GuestMemory>,
    size: u16,
    descriptors: DescriptorChain<&GuestMemory>,
) -> Result<Chain, Broken> {
    let head = descriptors.head_index();
    if head >= size {
        return Err(Broken("the available ring names a descriptor that the table does not have"));
    }
    let (mut readable, mut writable) = (Segments::new(), Segments::new());
    let mut goes_on = true;
    for descriptor in descriptors {
        goes_on = descriptor.has_next();
        let segment = Segment { start: GuestPhys(descriptor.addr().raw_value()), length: descriptor.len() };
        if !memory.contains(segment.start, segment.length.into()) {
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
    Ok(Chain::new(memory.clone(), head, readable, writable))
}

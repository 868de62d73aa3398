//! Tracing: each crossing of a VM with its begin and end, for somebody who watches.
//!
//! The monitor's thread of a vCPU records what comes to it, in a ring of its own ([`ring`]), which whoever watches
//! empties from another thread. While nobody watches it reads one flag in each crossing, and that is all. What the engine serves
//! without the monitor is not seen here; a guest with the feature `TRACE` tells of it, and of marks of its own, by rings in its
//! memory ([`guest`]). A ring that is full takes no more, and what was lost is counted.
//!
//! Start at [`Session`], what somebody who watches has; [`VcpuTrace`] is what a vCPU's thread has.

mod event;
mod guest;
mod ring;

pub use event::{Event, Kind};

use crate::clock::{tsc, tsc_hz};
use crate::engine::Exit;
use crate::events::VcpuPages;
use crate::memory::GuestMemory;
use crate::vm::Shared;
use event::{Tag, tag};
use guest::GuestRing;
use hv_abi::Features;
use ring::Ring;
use serde::{Deserialize, Serialize};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex, OnceLock};

/// Crossings that are kept for each vCPU until they are taken, and for all of them: 16 MiB.
const EVENTS: usize = 1 << 15;
const EVENTS_OF_ALL: usize = 1 << 19;

/// Events in one [`Batch`], at the most.
pub const BATCH: usize = 4096;

/// What a VM has for being watched.
#[derive(Default)]
pub(crate) struct Tracer {
    vcpus: Vec<VcpuTrace>,
    /// Somebody watches.
    taken: AtomicBool,
}

/// What one vCPU has for it.
#[derive(Default)]
pub(crate) struct VcpuTrace {
    on: AtomicBool,
    /// Made when somebody first watches.
    ring: OnceLock<Ring>,
    guest: Mutex<Option<GuestRing>>,
}

/// A crossing that has begun.
#[derive(Clone, Copy)]
pub(crate) struct Begun {
    tag: Tag,
    argument: u64,
    begin: u64,
}

impl Tracer {
    pub(crate) fn new(vcpus: u32) -> Self {
        Self { vcpus: (0..vcpus).map(|_| VcpuTrace::default()).collect(), taken: AtomicBool::new(false) }
    }

    pub(crate) fn vcpu(&self, vcpu: u32) -> &VcpuTrace {
        &self.vcpus[vcpu as usize]
    }
}

impl VcpuTrace {
    /// Whether somebody watches.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// A vCPU has come to the monitor, and somebody watches.
    #[cold]
    pub(crate) fn begin(&self, exit: &Exit) -> Begun {
        let (tag, argument) = tag(exit);
        Begun { tag, argument, begin: crate::clock::tsc_now() }
    }

    /// What it came for is done, if somebody watched when it came.
    #[inline]
    pub(crate) fn end(&self, begun: Option<Begun>) {
        if let Some(begun) = begun {
            self.record(begun);
        }
    }

    #[cold]
    fn record(&self, begun: Begun) {
        if let Some(ring) = self.ring.get() {
            ring.push([begun.tag.0, begun.begin, crate::clock::tsc_now(), begun.argument]);
        }
    }

    /// The guest says where its own records are: at P `ring`, so many. What it had said before is forgotten.
    pub(crate) fn set_guest_ring(&self, ring: Option<GuestRing>) {
        *self.guest.lock().expect("no thread panics with the lock held") = ring;
    }
}

pub(crate) use guest::check as check_guest_ring;

/// What is to know before the first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// vCPUs of the VM.
    pub vcpus: u32,
    /// What the times of events are counted in. They begin with the trace.
    pub ticks_per_second: u64,
    /// Whether the guest tells of itself: without it, there is nothing but what comes to the monitor.
    pub guest_tells: bool,
}

/// Some events of one vCPU, in the order in which they ended; those of the guest by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The vCPU.
    pub vcpu: u32,
    /// What happened.
    pub events: Vec<Event>,
    /// Events before these that were lost, for there was no room.
    pub dropped: u64,
}

/// Somebody watches a VM, until this is dropped. It keeps the VM's memory, for what the guest has yet told at the VM's end.
pub struct Session {
    tracer: Arc<Tracer>,
    pages: Arc<VcpuPages>,
    memory: GuestMemory,
    vm: std::sync::Weak<Shared>,
    begin: u64,
    head: Head,
}

impl Session {
    /// Begins to watch. `None`: somebody does already.
    pub(crate) fn begin(vm: &Arc<Shared>) -> Option<Self> {
        let tracer = vm.tracer.clone();
        if tracer.taken.swap(true, SeqCst) {
            return None;
        }
        let head = Head {
            vcpus: vm.pages.vcpus(),
            ticks_per_second: tsc_hz(),
            guest_tells: vm.features.contains(Features::TRACE),
        };
        let (pages, memory, begin) = (vm.pages.clone(), vm.memory.clone(), tsc());
        let events = EVENTS.min(EVENTS_OF_ALL / tracer.vcpus.len().next_power_of_two());
        for vcpu in &tracer.vcpus {
            vcpu.ring.get_or_init(|| Ring::new(events)).forget();
            let mut guest = vcpu.guest.lock().expect("no thread panics with the lock held");
            if let Some(guest) = guest.as_mut() {
                guest.forget(&memory);
            }
        }
        let session = Self { tracer, pages, memory, vm: Arc::downgrade(vm), begin, head };
        session.set(true);
        Some(session)
    }

    fn set(&self, on: bool) {
        for (number, vcpu) in (0..).zip(&self.tracer.vcpus) {
            vcpu.on.store(on, SeqCst);
            self.pages.page(number).trace.store(on.into(), SeqCst);
        }
    }

    /// What is to know before the first event.
    pub fn head(&self) -> Head {
        self.head
    }

    /// Nothing more is recorded. What there is can be taken yet.
    pub fn stop(&self) {
        self.set(false);
    }

    /// What has been recorded since: at most two batches for each vCPU, none of them empty. Once it gives none there is nothing.
    pub fn take(&mut self) -> Vec<Batch> {
        let mut batches = Vec::new();
        for vcpu in 0..self.head.vcpus {
            batches.extend([self.take_crossings(vcpu), self.take_guests(vcpu)]);
        }
        batches.retain(|batch| !batch.events.is_empty() || batch.dropped != 0);
        batches
    }

    fn take_crossings(&self, vcpu: u32) -> Batch {
        let ring = self.tracer.vcpu(vcpu).ring.get().expect("a session makes it");
        let (words, dropped) = ring.take(BATCH);
        let event = |[tag, begin, end, argument]: [u64; 4]| {
            let (begin, end) = (self.since_begin(begin), self.since_begin(end));
            Event { begin, end, ..Tag(tag).event(argument) }
        };
        Batch { vcpu, events: words.into_iter().map(event).collect(), dropped }
    }

    fn take_guests(&self, vcpu: u32) -> Batch {
        let mut guest = self.tracer.vcpu(vcpu).guest.lock().expect("no thread panics with the lock held");
        // Nobody writes to the memory of a VM that is paused.
        let paused = self.vm.upgrade().is_some_and(|vm| vm.paused.load(SeqCst));
        let Some(guest) = guest.as_mut().filter(|_| !paused) else {
            return Batch { vcpu, ..Batch::default() };
        };
        let (records, dropped) = guest.take(&self.memory, BATCH);
        let now = self.since_begin(tsc());
        let told = records.into_iter().filter_map(|record| {
            let mut event = event::told(&record)?;
            event.end = self.since_begin(record.end).min(now);
            event.begin = self.since_begin(record.begin).min(event.end);
            Some(event)
        });
        Batch { vcpu, events: told.collect(), dropped }
    }

    fn since_begin(&self, tsc: u64) -> u64 {
        tsc.saturating_sub(self.begin)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop();
        self.tracer.taken.store(false, SeqCst);
    }
}

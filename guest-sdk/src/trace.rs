//! What this guest tells somebody who watches it (`hv trace`): marks and spans of its own, by [`trace!`](crate::trace!) and
//! [`trace_span!`](crate::trace_span!), and crossings that the host does not see.
//!
//! While nobody watches, each is a load and a branch. While somebody does, a record of 64 bytes goes to a ring of this vCPU's
//! in guest memory, and no hypercall is made; the host takes it from there. What finds no room is counted, and lost. On a host
//! that does not know of traces nothing is ever recorded.
//!
//! Start at [`enabled`]; the ring is [`hv_abi::trace`]'s.

#![expect(unsafe_code, reason = "the records of a ring are written by whoever takes their place")]

use crate::smp::PerVcpu;
use crate::{hypercall, raw};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32};
use hv_abi::Features;
use hv_abi::trace::{TRACE_NAME_MAX, TraceRecord, TraceRing, kind};

/// Records that a vCPU's ring has room for.
const RECORDS: usize = 1024;

/// A ring, as the host knows it.
#[repr(C)]
struct Ring {
    state: TraceRing,
    records: [UnsafeCell<TraceRecord>; RECORDS],
}

// SAFETY: shared are `state`, which is atomics and what nobody writes, and `records`, each of which only that one writes whom
// `claim` gave its number, until it has stored `sequence`; the host takes it afterwards, and nobody else reads it.
unsafe impl Sync for Ring {}

static FIRST: Ring = Ring::new();

/// The ring of each vCPU that has one.
static RINGS: PerVcpu<AtomicPtr<Ring>> = PerVcpu::new([const { AtomicPtr::new(core::ptr::null_mut()) }; _]);

/// What a mark or a span is called: at most 32 bytes, and without a zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(32))]
pub struct Name([u8; TRACE_NAME_MAX]);

impl Name {
    /// For `const` names, where one that is too long does not compile.
    ///
    /// # Panics
    ///
    /// Panics if `name` has more than 32 bytes.
    pub const fn new(name: &str) -> Self {
        assert!(name.len() <= TRACE_NAME_MAX, "the name of a mark or span has at most 32 bytes");
        let mut bytes = [0; TRACE_NAME_MAX];
        bytes.split_at_mut(name.len()).0.copy_from_slice(name.as_bytes());
        Self(bytes)
    }
}

impl Ring {
    const fn new() -> Self {
        let state = TraceRing {
            head: AtomicU32::new(0),
            tail: AtomicU32::new(0),
            dropped: core::sync::atomic::AtomicU64::new(0),
            reserved: [0; 6],
        };
        const EMPTY: TraceRecord =
            TraceRecord { sequence: 0, kind: 0, begin: 0, end: 0, value: 0, name: [0; TRACE_NAME_MAX] };
        Self { state, records: [const { UnsafeCell::new(EMPTY) }; RECORDS] }
    }

    /// The number of a record that is this caller's to write; `None` if there is no room.
    fn claim(&self) -> Option<u32> {
        let mut head = self.state.head.load(Relaxed);
        loop {
            // Acquire: the host has read what was in that place.
            if head.wrapping_sub(self.state.tail.load(Acquire)) >= RECORDS as u32 {
                self.state.dropped.fetch_add(1, Relaxed);
                return None;
            }
            match self.state.head.compare_exchange_weak(head, head.wrapping_add(1), Relaxed, Relaxed) {
                Ok(_) => return Some(head),
                Err(other) => head = other,
            }
        }
    }

    fn record(&self, record: TraceRecord) {
        let Some(number) = self.claim() else { return };
        let place = self.records[number as usize % RECORDS].get();
        // SAFETY: the place is inside the ring, valid and aligned. Nobody else writes to it: `claim` gave its number to this
        // caller alone, and gives it again only after the host has taken what is stored here, which it does once it sees the
        // number that is stored last. `sequence` is a 4-byte field of its own, aligned as an `AtomicU32` has to be.
        unsafe {
            let sequence = place.byte_add(offset_of!(TraceRecord, sequence)).cast::<u32>();
            // What was there stays no number of this place's until all is stored.
            place.write(TraceRecord { sequence: number, ..record });
            AtomicU32::from_ptr(sequence).store(number.wrapping_add(1), Release);
        }
    }
}

fn is_known() -> bool {
    crate::boot::info().features.contains(Features::TRACE)
}

/// Gives vCPU 0 its ring, at the start of the guest.
pub(crate) fn init_first() {
    if is_known() {
        use_ring(core::ptr::from_ref(&FIRST).cast_mut());
    }
}

/// Lets this vCPU use a ring that is nobody else's, and stays.
fn use_ring(ring: *mut Ring) {
    // SAFETY: the caller's ring is there for good; only shared references to it are ever made.
    let Some(at) = crate::memory::phys_of(core::slice::from_ref(unsafe { &*ring })) else { return };
    // SAFETY: the host writes `tail`, which is atomic, of a ring that is there for good and has so many records.
    if unsafe { hypercall::trace_ring(at, RECORDS as u64) }.is_ok() {
        RINGS.store(ring, Release);
    }
}

/// Gives this vCPU a ring, if it has none from an earlier start.
#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
pub(crate) fn init_other() {
    if !RINGS.load(Relaxed).is_null() || !is_known() {
        return;
    }
    // SAFETY: a `Ring` of zeros is an empty ring: atomics, numbers and bytes.
    let ring = unsafe { alloc::boxed::Box::<Ring>::new_zeroed().assume_init() };
    use_ring(alloc::boxed::Box::into_raw(ring));
}

/// Whether somebody watches.
#[inline]
pub fn enabled() -> bool {
    raw::is_traced()
}

#[cold]
fn record(kind: u32, begin: u64, end: u64, value: u64, name: &Name) {
    let ring = RINGS.load(Acquire);
    if !ring.is_null() {
        // SAFETY: what is in `RINGS` is a ring that is there for good, of which there are shared references only.
        unsafe { &*ring }.record(TraceRecord { sequence: 0, kind, begin, end, value, name: name.0 });
    }
}

/// Records a mark: what [`trace!`](crate::trace!) does while somebody watches.
pub fn mark(name: &Name, value: u64) {
    let now = raw::ticks();
    record(kind::MARK, now, now, value, name);
}

/// Something that takes time, from where this was made to where it is dropped.
#[derive(Debug)]
#[must_use = "a span ends where it is dropped: let _span = ..."]
pub struct Span {
    kind: u32,
    /// 0: nobody watched.
    begin: u64,
    value: u64,
    name: &'static Name,
}

impl Span {
    /// Begins one: what [`trace_span!`](crate::trace_span!) does.
    #[inline]
    pub fn begin(name: &'static Name, value: u64) -> Self {
        Self::of(kind::SPAN, name, value)
    }

    /// A crossing that the host may not see.
    #[inline]
    pub(crate) fn crossing(name: &'static Name, value: u64) -> Self {
        Self::of(kind::CROSSING, name, value)
    }

    #[inline]
    fn of(kind: u32, name: &'static Name, value: u64) -> Self {
        let begin = if enabled() { raw::ticks() } else { 0 };
        Self { kind, begin, value, name }
    }

    /// Sets what is told with it, if that is known only at the end.
    #[inline]
    pub fn set_value(&mut self, value: u64) {
        self.value = value;
    }
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if self.begin != 0 {
            record(self.kind, self.begin, raw::ticks(), self.value, self.name);
        }
    }
}

/// Marks this moment in a trace of this VM, if there is one, with a name and, if that is of use, a number (`u64`).
///
/// ```
/// # fn found(number: u64) {
/// guest_sdk::trace!("packet");
/// guest_sdk::trace!("found", number);
/// # }
/// ```
///
/// While nobody watches, it is a load and a branch, and the number is not worked out.
#[macro_export]
macro_rules! trace {
    ($name:expr) => {
        $crate::trace!($name, 0)
    };
    ($name:expr, $value:expr) => {
        if $crate::trace::enabled() {
            const NAME: &$crate::trace::Name = &$crate::trace::Name::new($name);
            $crate::trace::mark(NAME, $value);
        }
    };
}

/// Tells how long something took: from here to where the value of this is dropped.
///
/// ```
/// # fn write(block: u64) {
/// let _span = guest_sdk::trace_span!("write a block", block);
/// # }
/// ```
#[macro_export]
macro_rules! trace_span {
    ($name:expr) => {
        $crate::trace_span!($name, 0)
    };
    ($name:expr, $value:expr) => {{
        const NAME: &$crate::trace::Name = &$crate::trace::Name::new($name);
        $crate::trace::Span::begin(NAME, $value)
    }};
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::vec::Vec;

    fn record(value: u64) -> TraceRecord {
        TraceRecord { value, ..TraceRecord::default() }
    }

    /// What the host would take.
    fn taken(ring: &Ring) -> Vec<(u32, u64)> {
        let (tail, head) = (ring.state.tail.load(Relaxed), ring.state.head.load(Relaxed));
        let records = (0..head.wrapping_sub(tail)).map(|n| {
            let number = tail.wrapping_add(n);
            // SAFETY: nobody writes to the ring at this moment.
            let record = unsafe { *ring.records[number as usize % RECORDS].get() };
            assert_eq!(record.sequence, number.wrapping_add(1));
            (number, record.value)
        });
        let records = records.collect();
        ring.state.tail.store(head, Relaxed);
        records
    }

    #[test]
    fn records_are_numbered_and_those_without_room_are_counted() {
        let ring = Box::new(Ring::new());
        ring.record(record(7));
        ring.record(record(8));
        assert_eq!(taken(&ring), [(0, 7), (1, 8)]);
        (0..RECORDS as u64 + 3).for_each(|value| ring.record(record(value)));
        assert_eq!(ring.state.dropped.load(Relaxed), 3);
        assert_eq!(taken(&ring).len(), RECORDS);
        ring.record(record(9));
        assert_eq!(taken(&ring), [(RECORDS as u32 + 2, 9)]);
    }

    #[test]
    fn numbers_wrap_around() {
        let ring = Box::new(Ring::new());
        ring.state.head.store(u32::MAX, Relaxed);
        ring.state.tail.store(u32::MAX, Relaxed);
        ring.record(record(1));
        ring.record(record(2));
        assert_eq!(taken(&ring), [(u32::MAX, 1), (0, 2)]);
    }

    #[test]
    fn nothing_is_worked_out_while_nobody_watches() {
        let mut worked = 0;
        let mut work = || {
            worked += 1;
            worked
        };
        trace!("not seen", work());
        assert!(!enabled());
        crate::fake::set_traced(true);
        trace!("seen", work());
        assert_eq!(worked, 1);
    }

    #[test]
    fn a_name_is_padded_with_zeros() {
        assert_eq!(&Name::new("disk").0[..6], b"disk\0\0");
        assert_eq!(Name::new(&"x".repeat(32)).0, [b'x'; 32]);
    }
}

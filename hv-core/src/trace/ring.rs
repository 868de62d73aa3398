//! Events of one vCPU: written by its thread alone, taken by one other. Neither ever waits for the other.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// An event, as it is kept.
pub(super) type Words = [u64; 4];

#[repr(align(64))]
#[derive(Default)]
struct Line<T>(T);

/// A ring of events. One that is full takes no more, and counts what it did not take: what came first tells how it began.
pub(super) struct Ring {
    places: Box<[[AtomicU64; 4]]>,
    /// What the writer has written, and dropped, so far.
    written: Line<[AtomicU64; 2]>,
    /// What the reader has taken, and heard of being dropped, so far.
    taken: Line<[AtomicU64; 2]>,
}

impl Ring {
    /// With room for so many events, a power of two.
    pub(super) fn new(events: usize) -> Self {
        assert!(events.is_power_of_two());
        let places = (0..events).map(|_| <[AtomicU64; 4]>::default()).collect();
        Self { places, written: Line::default(), taken: Line::default() }
    }

    fn place(&self, number: u64) -> &[AtomicU64; 4] {
        &self.places[number as usize & (self.places.len() - 1)]
    }

    /// Adds one, if there is room. To be called by one thread only.
    pub(super) fn push(&self, event: Words) {
        let Line([written, dropped]) = &self.written;
        let number = written.load(Relaxed);
        // Acquire: the reader has read what was in this place.
        if number - self.taken.0[0].load(Acquire) == self.places.len() as u64 {
            dropped.store(dropped.load(Relaxed) + 1, Relaxed);
            return;
        }
        self.place(number).iter().zip(event).for_each(|(word, value)| word.store(value, Relaxed));
        written.store(number + 1, Release);
    }

    /// Takes the oldest, at most so many; and how many were dropped since. To be called by one thread at a time only.
    pub(super) fn take(&self, most: usize) -> (Vec<Words>, u64) {
        let Line([taken, heard]) = &self.taken;
        let first = taken.load(Relaxed);
        let end = self.written.0[0].load(Acquire).min(first + most as u64);
        let events = (first..end).map(|number| self.place(number).each_ref().map(|word| word.load(Relaxed)));
        let events = events.collect();
        taken.store(end, Release);
        let dropped = self.written.0[1].load(Relaxed);
        (events, dropped - heard.swap(dropped, Relaxed))
    }

    /// Takes all, for nobody.
    pub(super) fn forget(&self) {
        self.taken.0[0].store(self.written.0[0].load(Acquire), Release);
        self.taken.0[1].store(self.written.0[1].load(Relaxed), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn events_come_out_as_they_went_in_and_those_without_room_are_counted() {
        let ring = Ring::new(4);
        assert_eq!(ring.take(10), (vec![], 0));
        (0..6).for_each(|n| ring.push([n; 4]));
        assert_eq!(ring.take(3), (vec![[0; 4], [1; 4], [2; 4]], 2));
        ring.push([6; 4]);
        assert_eq!(ring.take(10), (vec![[3; 4], [6; 4]], 0));
        (7..13).for_each(|n| ring.push([n; 4]));
        ring.forget();
        assert_eq!(ring.take(10), (vec![], 0));
        ring.push([13; 4]);
        assert_eq!(ring.take(10), (vec![[13; 4]], 0));
    }

    #[test]
    fn a_writer_and_a_reader_lose_nothing_that_is_not_counted() {
        const EVENTS: u64 = 200_000;
        let ring = Arc::new(Ring::new(64));
        let writer = ring.clone();
        let writer =
            std::thread::spawn(move || (0..EVENTS).for_each(|n| writer.push([n, n + 1, n + 2, n + 3])));
        let (mut next, mut seen) = (0, 0);
        while seen < EVENTS {
            let (events, dropped) = ring.take(16);
            seen += events.len() as u64 + dropped;
            for event in events {
                assert!(event[0] >= next, "{event:?} after {next}");
                assert_eq!(event, [event[0], event[0] + 1, event[0] + 2, event[0] + 3]);
                next = event[0] + 1;
            }
        }
        assert_eq!(seen, EVENTS);
        writer.join().expect("it does not panic");
    }
}

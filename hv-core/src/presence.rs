//! P -> M: which pages of guest memory are there, and which the guest has given up.
//!
//! Guest memory is one file, in which a page's place never changes. What changes is whether it is there: a page that the
//! guest reported is *absent*. Its bytes went back to the host, and whoever touches it finds zeros. The table says what the
//! guest has agreed to and nothing more: a guest that stores to an absent page has the host find memory for it again,
//! which the file's own size tells ([`MemoryStats::host`]).
//!
//! Start at [`Presence::report`].

use hv_abi::PAGE_SIZE;
use serde::Serialize;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

/// A VM's memory, from the host's point of view. All but the two counts are bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStats {
    /// Guest-physical memory.
    pub size: u64,
    /// What the host has spent on it.
    pub host: u64,
    /// What the guest has reported free and may claim again; without the balloon.
    pub reported: u64,
    /// What the guest holds in its balloon, as far as it has reported as much.
    pub ballooned: u64,
    /// What the balloon is asked to hold.
    pub balloon_target: u64,
    /// Pages that were reported so far, each time anew.
    pub pages_reported: u64,
    /// Pages that were claimed so far.
    pub pages_claimed: u64,
}

/// A claim would take what the balloon holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held;

/// Pages of a chunk: 64 KiB, as much as the host maps around a fault.
const CHUNK: u64 = 16;

/// Which pages of a chunk are absent, a bit for each.
type Chunk = u16;

/// The table.
#[derive(Debug)]
pub(crate) struct Presence(Mutex<Table>);

#[derive(Debug)]
struct Table {
    chunks: Vec<Chunk>,
    /// Pages that are absent.
    absent: u64,
    /// Pages of those that the balloon holds; never more.
    held: u64,
    /// Pages that the balloon is asked to hold.
    target: u64,
    reported: u64,
    claimed: u64,
}

impl Presence {
    /// For so many pages, all of which are there.
    pub(crate) fn new(pages: u64) -> Self {
        let chunks = vec![0; pages.div_ceil(CHUNK) as usize];
        Self(Mutex::new(Table { chunks, absent: 0, held: 0, target: 0, reported: 0, claimed: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().expect("no thread panics with the lock held")
    }

    /// Makes pages absent, given by their numbers. The ranges must be [disjoint](disjoint).
    pub(crate) fn report(&self, ranges: &[Range<u64>]) {
        let mut table = self.lock();
        for (index, pages) in ranges.iter().flat_map(chunks) {
            let chunk = &mut table.chunks[index];
            let new = pages & !*chunk;
            *chunk |= pages;
            table.absent += u64::from(new.count_ones());
        }
        table.reported += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
    }

    /// Makes pages present, all or none. The ranges must be [disjoint](disjoint).
    pub(crate) fn claim(&self, ranges: &[Range<u64>]) -> Result<(), Held> {
        let mut table = self.lock();
        let absent = |(index, pages): (usize, Chunk)| u64::from((table.chunks[index] & pages).count_ones());
        let wanted: u64 = ranges.iter().flat_map(chunks).map(absent).sum();
        if wanted > table.absent - table.held {
            return Err(Held);
        }
        ranges.iter().flat_map(chunks).for_each(|(index, pages)| table.chunks[index] &= !pages);
        table.absent -= wanted;
        table.claimed += wanted;
        Ok(())
    }

    /// The guest holds so many pages in its balloon. Gives how many it is asked to.
    pub(crate) fn hold(&self, pages: u64) -> u64 {
        let mut table = self.lock();
        table.held = pages.min(table.absent);
        table.target
    }

    /// How many pages the guest is asked to hold in its balloon.
    pub(crate) fn target(&self) -> u64 {
        self.lock().target
    }

    /// Pages were given back to the host, and the guest has them still.
    pub(crate) fn note_discarded(&self, pages: u64) {
        self.lock().reported += pages;
    }

    /// Asks the guest for so many pages. Whether that is another number than before.
    pub(crate) fn set_target(&self, pages: u64) -> bool {
        std::mem::replace(&mut self.lock().target, pages) != pages
    }

    /// Its figures, for memory of so many bytes on which the host has spent so many.
    pub(crate) fn stats(&self, size: u64, host: u64) -> MemoryStats {
        let table = self.lock();
        MemoryStats {
            size,
            host,
            reported: (table.absent - table.held) * PAGE_SIZE,
            ballooned: table.held * PAGE_SIZE,
            balloon_target: table.target * PAGE_SIZE,
            pages_reported: table.reported,
            pages_claimed: table.claimed,
        }
    }
}

/// The chunks that a range of pages touches, and which of their pages are in it.
fn chunks(range: &Range<u64>) -> impl Iterator<Item = (usize, Chunk)> {
    let range = range.clone();
    (range.start / CHUNK..range.end.div_ceil(CHUNK)).map(move |index| {
        let first = range.start.saturating_sub(index * CHUNK).min(CHUNK);
        let end = (range.end - index * CHUNK).min(CHUNK);
        (index as usize, (((1_u32 << end) - 1) & !((1 << first) - 1)) as Chunk)
    })
}

/// The same pages in ranges that are sorted, not empty, and do not touch each other: so what is done for each page is done
/// once, however often a guest names it.
pub(crate) fn disjoint(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, before| {
        let touches = next.start <= before.end;
        if touches {
            before.end = before.end.max(next.end);
        }
        touches
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Bytes reported and ballooned, in pages.
    fn figures(presence: &Presence) -> (u64, u64) {
        let stats = presence.stats(0, 0);
        (stats.reported / PAGE_SIZE, stats.ballooned / PAGE_SIZE)
    }

    #[test]
    fn any_reports_and_claims_leave_what_a_set_of_pages_would() {
        let mut random = fastrand::Rng::with_seed(5);
        let presence = Presence::new(100);
        let mut absent = BTreeSet::new();
        for _ in 0..10_000 {
            let range = |random: &mut fastrand::Rng| {
                let start = random.u64(..=100);
                start..(start + random.u64(..40)).min(100)
            };
            let ranges: Vec<_> = (0..random.usize(..4)).map(|_| range(&mut random)).collect();
            let pages = ranges.iter().cloned().flatten();
            if random.bool() {
                absent.extend(pages);
                presence.report(&disjoint(ranges));
            } else {
                pages.for_each(|page| _ = absent.remove(&page));
                assert_eq!(presence.claim(&disjoint(ranges)), Ok(()));
            }
            assert_eq!(figures(&presence), (absent.len() as u64, 0));
        }
    }

    #[test]
    fn what_the_balloon_holds_is_not_claimed() {
        let presence = Presence::new(64);
        let claim = |pages: Range<u64>| presence.claim(std::slice::from_ref(&pages));
        presence.report(std::slice::from_ref(&(0..20)));
        assert!(presence.set_target(12) && !presence.set_target(12));
        assert_eq!(presence.hold(1000), 12);
        assert_eq!(figures(&presence), (0, 20), "no more than is reported");
        assert_eq!(presence.hold(15), 12);
        assert_eq!(claim(0..6), Err(Held));
        assert_eq!(figures(&presence), (5, 15), "all or nothing");
        assert_eq!(claim(0..5), Ok(()));
        assert_eq!(claim(0..5), Ok(()), "they are there");
        assert_eq!(claim(4..6), Err(Held));
    }
}

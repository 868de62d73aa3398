//! Frames of guest memory of which somebody keeps a copy, and whether the monitor has written to them since.
//!
//! What the guest itself writes is seen otherwise, by whoever keeps the copy; this is for what the monitor writes in a call,
//! or for a device.
//!
//! Start at [`Watched::note_write`].

use hv_abi::PAGE_SIZE;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// Whether any frame is watched, so that most writes cost nothing.
    any: AtomicBool,
    /// Whether any of them has been written.
    any_written: AtomicBool,
    frames: Mutex<Frames>,
}

#[derive(Debug, Default)]
struct Frames {
    watched: BTreeSet<u64>,
    written: BTreeSet<u64>,
}

impl Watched {
    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().expect("no thread panics with the lock held")
    }

    /// Watches a frame from now on; `add` false: no longer.
    pub(crate) fn watch(&self, frame: u64, add: bool) {
        let mut frames = self.frames();
        if add {
            frames.watched.insert(frame);
        } else {
            frames.watched.remove(&frame);
            frames.written.remove(&frame);
        }
        self.any.store(!frames.watched.is_empty(), SeqCst);
    }

    /// Guest memory has been written, from `start` on.
    pub(crate) fn note_write(&self, start: u64, length: u64) {
        if !self.any.load(SeqCst) || length == 0 {
            return;
        }
        let mut frames = self.frames();
        let range = start - start % PAGE_SIZE..start + length;
        let written: Vec<u64> = frames.watched.range(range).copied().collect();
        if !written.is_empty() {
            frames.written.extend(written);
            self.any_written.store(true, SeqCst);
        }
    }

    /// Whether any watched frame has been written.
    pub(crate) fn has_written(&self) -> bool {
        self.any_written.load(SeqCst)
    }

    /// The watched frames that have been written since this was last asked.
    pub(crate) fn take_written(&self) -> BTreeSet<u64> {
        let mut frames = self.frames();
        self.any_written.store(false, SeqCst);
        std::mem::take(&mut frames.written)
    }
}

/// Notes each store that is made by `vm-memory`.
#[derive(Clone, Debug)]
pub struct Writes(pub(crate) Arc<Watched>);

/// The same, for memory from `start` on.
#[derive(Clone, Debug)]
pub struct WritesFrom<'a> {
    watched: &'a Watched,
    start: usize,
}

impl<'a> WithBitmapSlice<'a> for Writes {
    type S = WritesFrom<'a>;
}

impl Bitmap for Writes {
    fn mark_dirty(&self, offset: usize, length: usize) {
        self.0.note_write(offset as u64, length as u64);
    }

    /// Nobody asks: who keeps a copy takes what was written.
    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> WritesFrom<'_> {
        WritesFrom { watched: &self.0, start: offset }
    }
}

impl<'a> WithBitmapSlice<'_> for WritesFrom<'a> {
    type S = WritesFrom<'a>;
}

impl BitmapSlice for WritesFrom<'_> {}

impl Bitmap for WritesFrom<'_> {
    fn mark_dirty(&self, offset: usize, length: usize) {
        self.watched.note_write((self.start + offset) as u64, length as u64);
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { watched: self.watched, start: self.start + offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_to_watched_frames_are_told_once_and_others_never() {
        let watched = Watched::default();
        watched.note_write(0x2000, 8);
        watched.watch(0x2000, true);
        watched.watch(0x4000, true);
        assert!(watched.take_written().is_empty(), "it was written before");
        for (start, length) in [(0x1ff8, 8), (0x3000, 0x1000), (0x2000, 0)] {
            watched.note_write(start, length);
            assert!(watched.take_written().is_empty(), "{start:#x} + {length:#x}");
        }
        for (start, length) in [(0x2000, 1), (0x2fff, 1), (0x1fff, 2), (0, 0x2001)] {
            watched.note_write(start, length);
            assert_eq!(watched.take_written(), BTreeSet::from([0x2000]), "{start:#x} + {length:#x}");
            assert!(watched.take_written().is_empty());
        }
        watched.note_write(0, 0x10000);
        watched.watch(0x2000, false);
        assert_eq!(watched.take_written(), BTreeSet::from([0x4000]));
    }
}

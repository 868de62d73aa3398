//! Guest-physical memory, and the only way to its bytes.
//!
//! An address from a guest is a claim, not a fact. [`GuestMemory`] checks each one and only copies: no reference
//! into guest memory leaves this module, because the guest can change it between a check and a use.
//!
//! The memory is one memfd, so that sandboxes map it by descriptor; it starts all zero and costs nothing until
//! it is touched.

use crate::presence::{Held, MemoryStats, Presence, disjoint};
use crate::shared::memory_file;
use crate::watched::{Watched, Writes, WritesFrom};
use hv_abi::{GuestPhys, PAGE_SIZE};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{FallocateFlags, SeekFrom};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress, Permissions, VolatileMemory, VolatileSlice,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A guest-physical range that is not in guest memory, or is misaligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "guest-physical range {start:#x} + {length:#x} is not inside the {size:#x} bytes of guest memory, or is misaligned"
)]
pub struct BadAddress {
    /// Where the range begins.
    pub start: u64,
    /// Its bytes.
    pub length: u64,
    /// Bytes of guest memory.
    pub size: u64,
}

/// What `vm-memory` sees of it. Each store through it is noted ([`Watched`]).
pub(crate) type MemoryMap = GuestMemoryMmap<Writes>;

/// All guest-physical memory of one VM: one run of bytes from 0.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    file: Arc<std::fs::File>,
    map: MemoryMap,
    /// All of it.
    region: Arc<GuestRegionMmap<Writes>>,
    size: u64,
    watched: Arc<Watched>,
    presence: Arc<Presence>,
}

impl GuestMemory {
    /// New memory of `size` bytes, all zero. The size must be a multiple of the page size.
    ///
    /// # Errors
    ///
    /// Whatever the host says about a file or a mapping of that size.
    pub fn new(size: u64) -> std::io::Result<Self> {
        let file = Arc::new(std::fs::File::from(memory_file("hv-guest-memory", size, false)?));
        let length = usize::try_from(size).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
        let watched = Arc::<Watched>::default();
        let region = MmapRegionBuilder::new_with_bitmap(length, Writes(watched.clone()))
            .with_file_offset(FileOffset::from_arc(file.clone(), 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(std::io::Error::other)?;
        let region = GuestRegionMmap::new(region, GuestAddress(0)).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let region = Arc::new(region);
        let map = GuestMemoryMmap::from_arc_regions(vec![region.clone()]).map_err(std::io::Error::other)?;
        let presence = Arc::new(Presence::new(size.div_ceil(PAGE_SIZE)));
        Ok(Self { file, map, region, size, watched, presence })
    }

    /// Bytes of guest memory.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where it is mapped in the monitor.
    pub(crate) fn host_address(&self) -> u64 {
        self.region.as_ptr().addr() as u64
    }

    /// The file that holds it.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Memory to be given to the host's kernel.
    ///
    /// # Errors
    ///
    /// [`BadAddress`] if any of it is not guest memory.
    pub(crate) fn slice(
        &self,
        start: GuestPhys,
        length: usize,
    ) -> Result<VolatileSlice<'_, WritesFrom<'_>>, BadAddress> {
        let slice = self.region.get_slice(MemoryRegionAddress(start.0), length);
        slice.map_err(|_| self.bad(start, length))
    }

    /// Frames of which somebody keeps a copy.
    pub(crate) fn watched(&self) -> &Watched {
        &self.watched
    }

    /// Which of its pages the guest has given up, and what is asked of its balloon.
    pub(crate) fn presence(&self) -> &Presence {
        &self.presence
    }

    /// What of it is there, and what it costs the host at the moment.
    pub fn stats(&self) -> MemoryStats {
        const BLOCK: u64 = 512; // the unit of `st_blocks`
        // It fails for what is no open file only.
        let blocks = rustix::fs::fstat(&self.file).map_or(0, |status| status.st_blocks as u64);
        self.presence.stats(self.size, blocks * BLOCK)
    }

    /// Gives pages back to the host, given by their numbers, which must be in guest memory. They are zero from then on, in
    /// every mapping of the file.
    pub(crate) fn report(&self, pages: Vec<Range<u64>>) {
        let pages = disjoint(pages);
        self.presence.report(&pages);
        self.give_back(&pages);
    }

    /// As [`report`](Self::report), but the guest may use them again at once: they are zero, and cost nothing until then.
    pub(crate) fn discard(&self, pages: Vec<Range<u64>>) {
        let pages = disjoint(pages);
        self.presence.note_discarded(pages.iter().map(|range| range.end - range.start).sum());
        self.give_back(&pages);
    }

    fn give_back(&self, pages: &[Range<u64>]) {
        for range in pages {
            let (start, length) = (range.start * PAGE_SIZE, (range.end - range.start) * PAGE_SIZE);
            self.punch(start, length);
            self.watched.note_write(start, length);
        }
    }

    /// Takes them again, all or none.
    pub(crate) fn claim(&self, pages: Vec<Range<u64>>) -> Result<(), Held> {
        self.presence.claim(&disjoint(pages))
    }

    /// Makes a hole in the file. Where the host refuses that, its memory stays spent, and the promise of zeros is kept by hand.
    fn punch(&self, start: u64, length: u64) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = rustix::fs::fallocate(&self.file, hole, start, length) {
            tracing::warn!(%error, start, length, "the host does not take free pages back");
            let zeros = [0; PAGE_SIZE as usize];
            for at in (start..start + length).step_by(zeros.len()) {
                self.map.write_slice(&zeros, GuestAddress(at)).expect("the pages are in guest memory");
            }
        }
    }

    /// The parts of a range that the host holds, in whole pages; what is between them is zero. A host that does not say holds
    /// all of it.
    pub(crate) fn present(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start.max(at),
                Err(rustix::io::Errno::NXIO) => break, // there is no more
                Err(_) => at,
            };
            let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).unwrap_or(range.end).min(range.end);
            if start >= range.end || end <= start {
                break;
            }
            parts.push(start..end);
            at = end;
        }
        parts
    }

    /// Whether the whole range is guest memory; an empty one is, wherever it is.
    pub fn contains(&self, start: GuestPhys, length: u64) -> bool {
        length == 0 || start.0.checked_add(length).is_some_and(|end| end <= self.size)
    }

    fn check(&self, start: GuestPhys, length: u64, align: u64) -> Result<GuestAddress, BadAddress> {
        if self.contains(start, length) && start.0.is_multiple_of(align) {
            Ok(GuestAddress(start.0))
        } else {
            Err(BadAddress { start: start.0, length, size: self.size })
        }
    }

    /// Fills `bytes` from guest memory.
    ///
    /// # Errors
    ///
    /// [`BadAddress`] if any of it is not guest memory; then `bytes` is unchanged.
    pub fn read_bytes(&self, start: GuestPhys, bytes: &mut [u8]) -> Result<(), BadAddress> {
        let at = self.check(start, bytes.len() as u64, 1)?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.map.read_slice(bytes, at).map_err(|_| self.bad(start, bytes.len()))
    }

    /// Writes `bytes` to guest memory.
    ///
    /// # Errors
    ///
    /// [`BadAddress`] if any of it is not guest memory; then nothing is written.
    pub fn write_bytes(&self, start: GuestPhys, bytes: &[u8]) -> Result<(), BadAddress> {
        let at = self.check(start, bytes.len() as u64, 1)?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.map.write_slice(bytes, at).map_err(|_| self.bad(start, bytes.len()))
    }

    /// Copies a structure of the ABI out of guest memory.
    ///
    /// # Errors
    ///
    /// [`BadAddress`] if it is not all in guest memory, or misaligned.
    pub fn read<T: FromBytes + IntoBytes>(&self, start: GuestPhys) -> Result<T, BadAddress> {
        self.check(start, size_of::<T>() as u64, align_of::<T>() as u64)?;
        let mut value = T::new_zeroed();
        self.read_bytes(start, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Copies a structure of the ABI into guest memory.
    ///
    /// # Errors
    ///
    /// [`BadAddress`] if it is not all in guest memory, or misaligned.
    pub fn write<T: IntoBytes + Immutable>(&self, start: GuestPhys, value: &T) -> Result<(), BadAddress> {
        self.check(start, size_of::<T>() as u64, align_of::<T>() as u64)?;
        self.write_bytes(start, value.as_bytes())
    }

    /// Exchanges an aligned word, as one access; gives the old one.
    ///
    /// # Errors
    ///
    /// [`BadAddress`] if it is not in guest memory, or misaligned.
    pub fn exchange(&self, at: GuestPhys, new: u64) -> Result<u64, BadAddress> {
        let address = self.check(at, 8, 8)?;
        let bad = |_| self.bad(at, 8);
        let slice = self.map.get_slice(address, 8).map_err(bad)?;
        let word = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| self.bad(at, 8))?;
        let old = word.swap(new, Ordering::SeqCst);
        self.watched.note_write(at.0, 8);
        Ok(old)
    }

    /// Loads a 32-bit word, before all that this thread loads afterwards.
    ///
    /// # Errors
    ///
    /// [`BadAddress`] if it is not in guest memory, or misaligned.
    pub(crate) fn load_word(&self, at: GuestPhys) -> Result<u32, BadAddress> {
        let address = self.check(at, 4, 4)?;
        self.map.load(address, Ordering::Acquire).map_err(|_| self.bad(at, 4))
    }

    /// Stores a 32-bit word, after all that this thread has stored so far.
    ///
    /// # Errors
    ///
    /// [`BadAddress`] if it is not in guest memory, or misaligned.
    pub(crate) fn store_word(&self, at: GuestPhys, value: u32) -> Result<(), BadAddress> {
        let address = self.check(at, 4, 4)?;
        self.map.store(value, address, Ordering::SeqCst).map_err(|_| self.bad(at, 4))
    }

    fn bad(&self, start: GuestPhys, length: usize) -> BadAddress {
        BadAddress { start: start.0, length: length as u64, size: self.size }
    }
}

/// What there is of a range of guest memory: all of it or nothing, since it is one run.
pub(crate) struct Whole<'a>(Option<Slice<'a>>);

type Slice<'a> = vm_memory::guest_memory::Result<VolatileSlice<'a, WritesFrom<'a>>>;

impl<'a> Iterator for Whole<'a> {
    type Item = Slice<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.take()
    }
}

impl std::iter::FusedIterator for Whole<'_> {}

impl<'a> GuestMemorySliceIterator<'a, WritesFrom<'a>> for Whole<'a> {}

/// For `virtio-queue`: without a search for the region, for there is one.
impl vm_memory::GuestMemory for GuestMemory {
    type PhysicalMemory = MemoryMap;
    type Bitmap = Writes;

    fn check_range(&self, start: GuestAddress, length: usize, _: Permissions) -> bool {
        self.contains(GuestPhys(start.0), length as u64)
    }

    fn get_slices<'a>(
        &'a self,
        start: GuestAddress,
        length: usize,
        _: Permissions,
    ) -> vm_memory::guest_memory::Result<impl GuestMemorySliceIterator<'a, WritesFrom<'a>>> {
        let slice = || self.region.get_slice(MemoryRegionAddress(start.0), length);
        Ok(Whole((length > 0).then(slice)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        GuestMemory::new(2 * 4096).unwrap()
    }

    #[test]
    fn a_range_that_ends_exactly_at_the_top_is_inside() {
        let memory = memory();
        memory.write_bytes(GuestPhys(8192 - 3), b"end").unwrap();
        let mut bytes = [0; 3];
        memory.read_bytes(GuestPhys(8192 - 3), &mut bytes).unwrap();
        assert_eq!(&bytes, b"end");
        assert!(memory.contains(GuestPhys(8192), 0));
        assert_eq!(memory.read_bytes(GuestPhys(u64::MAX), &mut []), Ok(()));
        assert_eq!(memory.write_bytes(GuestPhys(9000), &[]), Ok(()));
    }

    #[test]
    fn ranges_outside_across_the_end_and_wrapping_are_refused_and_write_nothing() {
        let memory = memory();
        for start in [8192, 8190, u64::MAX, u64::MAX - 1, 1 << 63] {
            let error = memory.write_bytes(GuestPhys(start), b"abc").unwrap_err();
            assert_eq!(error, BadAddress { start, length: 3, size: 8192 });
        }
        let mut last = [0xa5; 2];
        memory.read_bytes(GuestPhys(8190), &mut last).unwrap();
        assert_eq!(last, [0, 0]);
    }

    #[test]
    fn reported_pages_go_back_to_the_host_and_are_zero() {
        let memory = GuestMemory::new(64 * 4096).unwrap();
        memory.write_bytes(GuestPhys(0), &[7; 64 * 4096]).unwrap();
        assert_eq!((memory.stats().size, memory.stats().host), (64 * 4096, 64 * 4096));
        memory.report(vec![8..40, 0..1, 30..48, 63..63]);
        let stats = memory.stats();
        assert_eq!((stats.host, stats.reported, stats.pages_reported), (23 * 4096, 41 * 4096, 41));
        for (page, byte) in [(0, 0), (1, 7), (7, 7), (8, 0), (47, 0), (48, 7), (63, 7)] {
            let mut bytes = [1; 4096];
            memory.read_bytes(GuestPhys(page * 4096), &mut bytes).unwrap();
            assert_eq!(bytes, [byte; 4096], "page {page}");
        }
    }

    #[test]
    fn what_the_host_holds_is_told_page_by_page() {
        let memory = GuestMemory::new(64 * 4096).unwrap();
        assert_eq!(memory.present(0..64 * 4096), []);
        for page in [0, 3, 4, 63] {
            memory.write_bytes(GuestPhys(page * 4096), &[1]).unwrap();
        }
        let pages = |from: u64, to: u64| from * 4096..to * 4096;
        assert_eq!(memory.present(pages(0, 64)), [pages(0, 1), pages(3, 5), pages(63, 64)]);
        assert_eq!(memory.present(pages(4, 63)), [pages(4, 5)]);
    }

    #[test]
    fn a_misaligned_structure_is_refused() {
        assert!(memory().read::<u64>(GuestPhys(4)).is_err());
        assert!(memory().write(GuestPhys(1), &1_u32).is_err());
        assert_eq!(memory().read::<u64>(GuestPhys(8)), Ok(0));
    }
}

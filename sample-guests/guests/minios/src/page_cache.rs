//! A disk as a run of bytes, some pages of it kept in memory: a FAT is read and written four bytes at a time.
//!
//! What is written stays in memory until [`PageCache::write_back`], or until its page has to go.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;

/// Bytes of a sector, the unit of a disk.
pub const SECTOR: usize = 512;
/// Bytes of a page: what is read and written at once.
const PAGE: usize = 16 << 10;
/// Pages that are kept.
const PAGES: usize = 64;

/// A disk. Places and lengths are whole sectors, within it.
pub trait Disk: Send {
    /// Sectors that it has.
    fn sectors(&self) -> u64;

    /// Reads from a sector on.
    ///
    /// # Errors
    ///
    /// The disk failed.
    fn read(&mut self, sector: u64, bytes: &mut [u8]) -> Result<(), DiskError>;

    /// Writes from a sector on.
    ///
    /// # Errors
    ///
    /// The disk failed.
    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), DiskError>;

    /// Returns when all that was written will survive the host's end.
    ///
    /// # Errors
    ///
    /// The disk failed.
    fn flush(&mut self) -> Result<(), DiskError>;
}

/// The disk failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskError;

struct Page {
    bytes: Box<[u8]>,
    dirty: bool,
    /// When it was last used, in uses.
    used: u64,
}

/// A disk, and pages of it.
pub struct PageCache<D> {
    disk: D,
    /// By their numbers.
    pages: BTreeMap<u64, Page>,
    uses: u64,
}

impl<D: Disk> PageCache<D> {
    /// With nothing in memory yet.
    pub fn new(disk: D) -> Self {
        Self { disk, pages: BTreeMap::new(), uses: 0 }
    }

    /// Bytes of the disk.
    pub fn length(&self) -> u64 {
        self.disk.sectors() * SECTOR as u64
    }

    /// Reads from a place on, as much as lies in one page; gives how much that was, 0 at the end.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn read(&mut self, place: u64, bytes: &mut [u8]) -> Result<usize, DiskError> {
        let (start, length) = self.part(place, bytes.len());
        if length > 0 {
            let page = self.page(place / PAGE as u64, true)?;
            bytes[..length].copy_from_slice(&page.bytes[start..start + length]);
        }
        Ok(length)
    }

    /// Writes from a place on, as much as lies in one page; gives how much that was, 0 at the end.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn write(&mut self, place: u64, bytes: &[u8]) -> Result<usize, DiskError> {
        let (start, length) = self.part(place, bytes.len());
        if length > 0 {
            let page = self.page(place / PAGE as u64, length < PAGE)?;
            page.bytes[start..start + length].copy_from_slice(&bytes[..length]);
            page.dirty = true;
        }
        Ok(length)
    }

    /// Brings what was written to the disk.
    ///
    /// # Errors
    ///
    /// The disk failed; what it did not take stays to be written.
    pub fn write_back(&mut self) -> Result<(), DiskError> {
        for (number, page) in self.pages.iter_mut().filter(|(_, page)| page.dirty) {
            self.disk.write(number * (PAGE / SECTOR) as u64, &page.bytes)?;
            page.dirty = false;
        }
        Ok(())
    }

    /// Brings what was written to the disk, and returns when it will survive the host's end.
    ///
    /// # Errors
    ///
    /// The disk failed.
    pub fn flush(&mut self) -> Result<(), DiskError> {
        self.write_back()?;
        self.disk.flush()
    }

    /// Of `length` bytes at a place, how many lie in its page and on the disk, and where they begin in the page.
    fn part(&self, place: u64, length: usize) -> (usize, usize) {
        let start = (place % PAGE as u64) as usize;
        let left = usize::try_from(self.length().saturating_sub(place)).unwrap_or(usize::MAX);
        (start, length.min(PAGE - start).min(left))
    }

    /// The page of that number, with what the disk has there if it is `filled`.
    fn page(&mut self, number: u64, filled: bool) -> Result<&mut Page, DiskError> {
        self.uses += 1;
        if !self.pages.contains_key(&number) {
            self.make_room()?;
            let start = number * PAGE as u64;
            // The last one may be shorter.
            let mut bytes = vec![0; (self.length() - start).min(PAGE as u64) as usize].into_boxed_slice();
            if filled {
                self.disk.read(start / SECTOR as u64, &mut bytes)?;
            }
            self.pages.insert(number, Page { bytes, dirty: false, used: 0 });
        }
        let page = self.pages.get_mut(&number).ok_or(DiskError)?;
        page.used = self.uses;
        Ok(page)
    }

    /// Lets the page go that was not used for the longest time, if there are as many as can be.
    fn make_room(&mut self) -> Result<(), DiskError> {
        let oldest =
            self.pages.iter().min_by_key(|(_, page)| page.used).map(|(number, page)| (*number, page.dirty));
        if let Some((number, dirty)) = oldest
            && self.pages.len() >= PAGES
        {
            if dirty {
                // All at once, in order: others are likely to be as old.
                self.write_back()?;
            }
            self.pages.remove(&number);
        }
        Ok(())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use alloc::sync::Arc;
    use alloc::vec::Vec;
    use guest_sdk::sync::Lock;

    /// A disk in memory, whose bytes can be looked at.
    #[derive(Clone)]
    pub struct MemoryDisk(pub Arc<Lock<Vec<u8>>>);

    impl MemoryDisk {
        /// One of zeros.
        pub fn new(bytes: usize) -> Self {
            Self(Arc::new(Lock::new(vec![0; bytes])))
        }
    }

    impl Disk for MemoryDisk {
        fn sectors(&self) -> u64 {
            (self.0.lock().len() / SECTOR) as u64
        }

        fn read(&mut self, sector: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
            assert!(bytes.len().is_multiple_of(SECTOR));
            bytes.copy_from_slice(&self.0.lock()[sector as usize * SECTOR..][..bytes.len()]);
            Ok(())
        }

        fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), DiskError> {
            assert!(bytes.len().is_multiple_of(SECTOR));
            self.0.lock()[sector as usize * SECTOR..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }

        fn flush(&mut self) -> Result<(), DiskError> {
            Ok(())
        }
    }

    #[test]
    fn bytes_are_as_they_were_written_whichever_pages_stay() {
        // More pages than are kept, the last one short.
        let length = (PAGES + 10) * PAGE + 3 * SECTOR;
        let disk = MemoryDisk::new(length);
        let mut cache = PageCache::new(disk.clone());
        let mut model = vec![0; length];
        let mut random = 12345_u64;
        let mut any = |most: usize| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) as usize % most
        };
        for round in 0..5000 {
            let place = any(length);
            let mut bytes = vec![round as u8; 1 + any(3 * PAGE / 2)];
            if any(2) == 0 {
                let done = cache.write(place as u64, &bytes).unwrap();
                model[place..place + done].copy_from_slice(&bytes[..done]);
            } else {
                let done = cache.read(place as u64, &mut bytes).unwrap();
                assert!(done > 0 && bytes[..done] == model[place..place + done]);
            }
        }
        assert_eq!(cache.read(length as u64, &mut [0]), Ok(0));
        assert_eq!(cache.write(u64::MAX, &[0]), Ok(0));
        assert!(*disk.0.lock() != model, "some of it is in memory alone");
        cache.flush().unwrap();
        assert!(*disk.0.lock() == model);
    }
}

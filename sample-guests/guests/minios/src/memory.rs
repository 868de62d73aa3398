//! A process's memory: what may be where, and filling it in when it is first touched.
//!
//! A process has *regions*, which say what belongs at an address: zeros, or a part of a file. A page of one is there only
//! once something has touched it. Whoever touches a page that is not there, the program or the kernel on its behalf, comes
//! to [`Memory::fault`], which fills it in, and while it is at it the pages around it.
//!
//! A fork shares all pages and lets nobody write to them. The first write then faults, and gets a copy ([`Memory::own`]);
//! the last one that has a page just gets it back.
//!
//! # Threads
//!
//! The threads of a process share its memory, and several vCPUs can run in it and fault at once: what is where is behind one
//! lock, which is taken before that of the address space. If others run there while something is taken away from the program,
//! a page or the right to write it, they are made to see that at once ([`bring_into_force`]).
//!
//! # Running out
//!
//! A process is refused pages beyond [`MOST_PAGES`], and any once no frame is free. What the kernel needs for itself, for its
//! tables and lists, comes from its heap, where running out would be its end. So whatever makes a process have more first
//! calls [`check_heap`], which fails unless the heap has [`HEADROOM`] at hand: more than one such step takes.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use guest_sdk::frames;
use guest_sdk::hv_abi::PAGE_SIZE;
use guest_sdk::space::{Access, AddressSpace, MapError, Mapping, Rights, USER};
use guest_sdk::sync::Lock;
use minios_abi::Error;

/// Pages that a process can have, shared ones included.
pub const MOST_PAGES: usize = 8192;

/// Bytes that the kernel's heap has at hand whenever a process is to have more of something.
const HEADROOM: usize = 512 << 10;

/// Pages that one fault fills in: as many, aligned to as many, of the same region.
const AROUND: u64 = 16;
/// As many, at the most, for a process that goes through its memory from end to end.
const MOST_AROUND: u64 = 64;

/// Regions that a process can have.
const MOST_REGIONS: usize = 512;

/// Where memory that a program asks for begins.
const HEAP: u64 = 0x10_0000_0000;

/// What belongs at some addresses.
#[derive(Clone, Debug)]
pub struct Region {
    /// Whole pages.
    pub range: Range<u64>,
    /// What the program may do there.
    pub rights: Rights,
    /// Bytes of a file, and the address of the first. What they do not fill is zero.
    pub content: (u64, &'static [u8]),
}

/// Why a fault is the process's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is nothing, or it may not be used so.
    Forbidden,
    /// There is no memory left for it.
    OutOfMemory,
}

impl From<MapError> for Fault {
    fn from(error: MapError) -> Self {
        match error {
            MapError::OutOfMemory => Self::OutOfMemory,
            MapError::BadAddress => Self::Forbidden,
        }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Forbidden => Self::BadAddress,
            Fault::OutOfMemory => Self::OutOfMemory,
        }
    }
}

/// A process's memory.
#[derive(Debug)]
pub struct Memory {
    /// What is there already.
    pub space: Lock<AddressSpace>,
    layout: Lock<Layout>,
}

/// What belongs where.
#[derive(Clone, Debug)]
struct Layout {
    regions: Vec<Region>,
    /// Where the next piece of memory goes that the program asks for.
    next: u64,
    /// Pages that are there.
    pages: usize,
    /// Where the pages end that were filled in last, and how many they were.
    filled: (u64, u64),
}

impl Memory {
    /// With nothing in it.
    ///
    /// # Errors
    ///
    /// Out of memory.
    pub fn new() -> Result<Self, Error> {
        Self::with(Layout { regions: Vec::new(), next: HEAP, pages: 0, filled: (0, 0) })
    }

    fn with(layout: Layout) -> Result<Self, Error> {
        check_heap()?;
        let space = AddressSpace::new().map_err(|_| Error::OutOfMemory)?;
        Ok(Self { space: Lock::new(space), layout: Lock::new(layout) })
    }

    /// Pages that are there.
    pub fn pages(&self) -> usize {
        self.layout.lock().pages
    }

    /// Adds a region. Costs nothing until it is touched.
    ///
    /// # Errors
    ///
    /// It is not of whole pages that a program can have, or another one is there; or there are too many.
    pub fn add(&self, region: Region) -> Result<(), Error> {
        self.layout.lock().add(region)
    }

    /// Adds zeroed memory of at least that length; gives its address.
    ///
    /// # Errors
    ///
    /// It is more than a process can have.
    pub fn allocate(&self, length: u64) -> Result<u64, Error> {
        self.layout.lock().allocate(length)
    }

    /// Takes away memory that [`allocate`](Self::allocate) has added at that address.
    ///
    /// # Errors
    ///
    /// It has not, or there is no memory for it.
    pub fn free(&self, start: u64) -> Result<(), Error> {
        let mut layout = self.layout.lock();
        let place = layout.allocated(start)?;
        let range = layout.regions[place].range.clone();
        check_heap()?;
        let mut space = self.space.lock();
        let pages =
            space.mappings().filter(|(at, _)| range.contains(at)).map(|(_, there)| there.pages).sum::<u64>();
        space.unmap(range).map_err(|_| Error::OutOfMemory)?;
        bring_into_force(&mut space);
        layout.pages -= pages as usize;
        layout.regions.swap_remove(place);
        Ok(())
    }

    /// Makes memory that [`allocate`](Self::allocate) has added at that address read-only, or writable.
    ///
    /// # Errors
    ///
    /// It has not, or there is no memory for it.
    pub fn protect(&self, start: u64, write: bool) -> Result<(), Error> {
        let mut layout = self.layout.lock();
        let place = layout.allocated(start)?;
        let range = layout.regions[place].range.clone();
        check_heap()?;
        let mut space = self.space.lock();
        let rights = Rights { write, execute: false };
        if write {
            // What is shared stays read-only: the first write to it makes a copy.
            let alone = space
                .mappings()
                .filter(|(at, there)| range.contains(at) && Arc::strong_count(&there.frame) == 1);
            let alone: Vec<_> = alone.map(|(at, there)| at..at + there.pages * PAGE_SIZE).collect();
            alone.into_iter().try_for_each(|pages| space.protect(pages, rights))
        } else {
            space.protect(range, rights)
        }
        .map_err(|_| Error::OutOfMemory)?;
        bring_into_force(&mut space);
        layout.regions[place].rights = rights;
        Ok(())
    }

    /// Sees to it that an access succeeds.
    ///
    /// # Errors
    ///
    /// It must not, or cannot.
    pub fn fault(&self, address: u64, access: Access) -> Result<(), Fault> {
        let mut layout = self.layout.lock();
        layout.fault(&mut self.space.lock(), address, access)
    }

    /// The same memory for a child: shared, until one of the two writes.
    ///
    /// # Errors
    ///
    /// Out of memory. This process goes on as it was.
    pub fn fork(&self) -> Result<Self, Error> {
        let layout = self.layout.lock();
        let child = Self::with(layout.clone())?;
        let (mut space, mut copy) = (self.space.lock(), child.space.lock());
        let out_of_memory = |_| Error::OutOfMemory;
        let all: Vec<u64> = space.mappings().map(|(at, _)| at).collect();
        for at in all {
            check_heap()?;
            let Some((_, mapping)) = space.mapping(at) else { continue };
            let mapping = mapping.clone();
            let rights = Rights { write: false, ..mapping.rights };
            space.protect(at..at + mapping.pages * PAGE_SIZE, rights).map_err(out_of_memory)?;
            copy.insert(at, Mapping { rights, ..mapping }).map_err(out_of_memory)?;
        }
        bring_into_force(&mut space);
        drop(copy);
        Ok(child)
    }

    /// Copies what the process has at an address.
    ///
    /// # Errors
    ///
    /// It has nothing there, or there is no memory to find out.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.filling_in(|space| space.copy_in(address, bytes))
    }

    /// Copies to what the process has at an address.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), or it may not write there.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        self.filling_in(|space| space.copy_out(address, bytes))
    }

    /// Sees to it that [`write`](Self::write) will succeed, if no other thread of the process is in its way.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn prepare_write(&self, address: u64, length: usize) -> Result<(), Error> {
        let end = address.checked_add(length as u64).ok_or(Error::BadAddress)?;
        for page in (address - address % PAGE_SIZE..end).step_by(PAGE_SIZE as usize) {
            self.fault(page, Access::Write)?;
        }
        Ok(())
    }

    /// Makes a copy until nothing is in its way that can be mended.
    fn filling_in(
        &self,
        mut copy: impl FnMut(&AddressSpace) -> Result<(), guest_sdk::space::Fault>,
    ) -> Result<(), Error> {
        loop {
            let copied = copy(&self.space.lock());
            let Err(fault) = copied else { return Ok(()) };
            self.fault(fault.address, fault.access)?;
        }
    }
}

impl Layout {
    fn add(&mut self, region: Region) -> Result<(), Error> {
        let Range { start, end } = region.range;
        let good = start < end && USER.start <= start && end <= USER.end;
        let whole = start.is_multiple_of(PAGE_SIZE) && end.is_multiple_of(PAGE_SIZE);
        if !good || !whole || self.regions.iter().any(|r| r.range.start < end && start < r.range.end) {
            return Err(Error::Invalid);
        }
        check_heap()?;
        if self.regions.len() >= MOST_REGIONS {
            return Err(Error::OutOfMemory);
        }
        self.regions.push(region);
        Ok(())
    }

    fn allocate(&mut self, length: u64) -> Result<u64, Error> {
        if length == 0 || length > MOST_PAGES as u64 * PAGE_SIZE {
            return Err(Error::OutOfMemory);
        }
        let (start, length) = (self.next, length.next_multiple_of(PAGE_SIZE));
        self.add(Region { range: start..start + length, rights: Rights::WRITE, content: (start, &[]) })?;
        // Behind it is a hole, so that an overflow faults.
        self.next += (length + PAGE_SIZE).next_multiple_of(AROUND * PAGE_SIZE);
        Ok(start)
    }

    /// Where among the regions that is which [`allocate`](Self::allocate) has added at that address.
    fn allocated(&self, start: u64) -> Result<usize, Error> {
        let is_it =
            |region: &Region| region.range.start == start && start >= HEAP && region.content.1.is_empty();
        self.regions.iter().position(is_it).ok_or(Error::Invalid)
    }

    fn fault(&mut self, space: &mut AddressSpace, address: u64, access: Access) -> Result<(), Fault> {
        let page = address - address % PAGE_SIZE;
        let region = self.regions.iter().find(|region| region.range.contains(&page));
        let allows = |rights: Rights| match access {
            Access::Read => true,
            Access::Write => rights.write,
            Access::Execute => rights.execute,
        };
        let region = region.filter(|region| allows(region.rights)).ok_or(Fault::Forbidden)?.clone();
        match space.translate(page) {
            Some(there) if allows(there.rights) => Ok(()),
            Some(_) => own(space, page, region.rights),
            None => self.fill_around(space, page, &region),
        }
    }

    /// Fills in a page, and those around it that are not there, as far as memory goes.
    fn fill_around(&mut self, space: &mut AddressSpace, page: u64, region: &Region) -> Result<(), Fault> {
        self.fill(space, page, region)?;
        let block = page - page % (AROUND * PAGE_SIZE);
        let (end, pages) = self.filled;
        let pages = if page == end { (2 * pages).min(MOST_AROUND) } else { AROUND };
        let around = block.max(region.range.start)..(block + pages * PAGE_SIZE).min(region.range.end);
        self.filled = (around.end, pages);
        for page in around.step_by(PAGE_SIZE as usize) {
            if space.translate(page).is_none() && self.fill(space, page, region).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn fill(&mut self, space: &mut AddressSpace, page: u64, region: &Region) -> Result<(), Fault> {
        check_heap()?;
        if self.pages >= MOST_PAGES {
            return Err(Fault::OutOfMemory);
        }
        let frame = frames::allocate_zeroed(0).map_err(|_| Fault::OutOfMemory)?;
        let (start, bytes) = region.content;
        let from = page.max(start);
        let to = (page + PAGE_SIZE).min(start + bytes.len() as u64);
        if from < to {
            frame.write_at((from - page) as usize, &bytes[(from - start) as usize..(to - start) as usize]);
        }
        space.map(page, frame, region.rights)?;
        self.pages += 1;
        Ok(())
    }
}

/// Makes a page of a region that may be written to the process's own, with the region's rights.
fn own(space: &mut AddressSpace, page: u64, rights: Rights) -> Result<(), Fault> {
    let Some((_, Mapping { frame: shared, .. })) = space.mapping(page) else { return Ok(()) };
    if Arc::strong_count(shared) == 1 {
        return Ok(space.protect(page..page + PAGE_SIZE, rights)?);
    }
    check_heap()?;
    let copy = frames::allocate(0).map_err(|_| Fault::OutOfMemory)?;
    copy.copy_from(shared);
    space.map(page, copy, rights)?;
    bring_into_force(space);
    Ok(())
}

/// Makes other vCPUs that run the program at the moment see what was taken away from it. Those that enter it later do anyway.
fn bring_into_force(space: &mut AddressSpace) {
    if space.is_in_use() {
        space.flush();
    }
}

/// Sees to it that the kernel's heap has room for what a process is about to be given.
///
/// # Errors
///
/// It has not, and there are no frames by which it could grow.
pub fn check_heap() -> Result<(), Fault> {
    let mut room = Vec::<u8>::new();
    room.try_reserve_exact(HEADROOM).map_err(|_| Fault::OutOfMemory)?;
    core::hint::black_box(room); // so that it is not left out as useless; the heap keeps what it grew by
    Ok(())
}

//! The host's own memory: what page tables of guests are compared with.

#![expect(unsafe_code, reason = "mappings, and a signal handler that mends one")]

use crate::bench::host::warmed;
use crate::bench::{Figure, Phase};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::FallocateFlags;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const PAGE: usize = 4096;

const READ: i32 = libc::PROT_READ;
const WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Memory in pages of 4 KiB; unmapped when dropped.
struct Mapping {
    at: usize,
    pages: usize,
}

impl Mapping {
    /// Fresh memory, or from the start of a file.
    fn new(pages: usize, file: Option<&OwnedFd>) -> Self {
        let flags = if file.is_some() { libc::MAP_SHARED } else { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS };
        let file = file.map_or(-1, |file| file.as_raw_fd());
        // SAFETY: a mapping where nothing is.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), pages * PAGE, WRITE, flags, file, 0) };
        assert_ne!(at, libc::MAP_FAILED, "the host refuses memory");
        // SAFETY: changes no content. It fails where there are no large pages to be prevented.
        let _ = unsafe { libc::madvise(at, pages * PAGE, libc::MADV_NOHUGEPAGE) };
        Self { at: at.expose_provenance(), pages }
    }

    fn address(&self, page: usize) -> usize {
        assert!(page < self.pages, "page {page} of {}", self.pages);
        self.at + page * PAGE
    }

    /// Writes to a byte of a page; if it is protected, [`mend`] has to be there.
    fn write(&self, page: usize) {
        // SAFETY: inside the mapping, and nobody has a reference to it.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(self.address(page)).write_volatile(1) };
    }

    fn read(&self, page: usize) {
        // SAFETY: as in `write`.
        let _ = unsafe { std::ptr::with_exposed_provenance::<u8>(self.address(page)).read_volatile() };
    }

    fn clear(&self, page: usize) {
        let at = std::ptr::with_exposed_provenance_mut::<u8>(self.address(page));
        // SAFETY: a page inside the mapping, which may be written, and to which there are no references.
        unsafe { at.write_bytes(0, PAGE) };
    }

    fn write_all(&self) {
        (0..self.pages).for_each(|page| self.write(page));
    }

    fn protect(&self, page: usize, pages: usize, rights: i32) {
        assert!(page + pages <= self.pages, "pages of the mapping");
        let at = std::ptr::with_exposed_provenance_mut(self.address(page));
        // SAFETY: inside the mapping, to which there are no references.
        assert_eq!(unsafe { libc::mprotect(at, pages * PAGE, rights) }, 0, "the host refuses rights");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and there are no references to it.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(self.at), self.pages * PAGE) };
    }
}

/// A file in memory, whose pages are there.
fn file(pages: usize) -> OwnedFd {
    let file = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    rustix::fs::ftruncate(&file, (pages * PAGE) as u64).expect("it can grow");
    Mapping::new(pages, Some(&file)).write_all();
    file
}

fn ns_each(start: Instant, count: usize) -> f64 {
    start.elapsed().as_nanos() as f64 / count as f64
}

/// Changing the rights of one page, that is there.
pub(super) fn protect(phase: Phase, samples: usize) -> Figure {
    let mapping = Mapping::new(512, None);
    mapping.write_all();
    let mut rights = READ;
    let once = || {
        (0..mapping.pages).for_each(|page| mapping.read(page));
        let start = Instant::now();
        (0..mapping.pages).for_each(|page| mapping.protect(page, 1, rights));
        rights = if rights == READ { WRITE } else { READ };
        ns_each(start, mapping.pages)
    };
    Figure::new("host: mprotect of a page", "ns", phase, warmed(samples, once))
}

/// Touching new memory in order, by page.
pub(super) fn fresh(phase: Phase, samples: usize) -> Figure {
    let once = || {
        let mapping = Mapping::new(1024, None);
        let start = Instant::now();
        mapping.write_all();
        ns_each(start, mapping.pages)
    };
    Figure::new("host: touch of fresh memory, a page", "ns", phase, warmed(samples, once))
}

/// The same of a file in memory, which is what guests' memory is.
pub(super) fn fresh_shared(phase: Phase, samples: usize) -> Figure {
    let once = || {
        let file = rustix::fs::memfd_create("bench", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
        rustix::fs::ftruncate(&file, (1024 * PAGE) as u64).expect("it can grow");
        let mapping = Mapping::new(1024, Some(&file));
        let start = Instant::now();
        mapping.write_all();
        ns_each(start, mapping.pages)
    };
    Figure::new("host: the same, of a memfd", "ns", phase, warmed(samples, once))
}

/// Clearing pages that are there and in use, in order.
pub(super) fn clear(phase: Phase, samples: usize) -> Figure {
    let mapping = Mapping::new(1024, None);
    mapping.write_all();
    let once = || {
        let start = Instant::now();
        (0..mapping.pages).for_each(|page| mapping.clear(page));
        ns_each(start, mapping.pages)
    };
    Figure::new("host: clearing of a page", "ns", phase, warmed(samples, once))
}

/// Giving the pages of a file in memory back, which one mapping has touched.
pub(super) fn hole(phase: Phase, samples: usize) -> Figure {
    const PAGES: usize = 16 << 10;
    let file = file(PAGES);
    let mapping = Mapping::new(PAGES, Some(&file));
    let once = || {
        mapping.write_all();
        let start = Instant::now();
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&file, hole, 0, (PAGES * PAGE) as u64).expect("a file in memory takes it");
        ns_each(start, PAGES)
    };
    Figure::new("host: hole of 64 MiB in a memfd, a page", "ns", phase, warmed(samples, once))
}

/// A fault on a page that is there and only has to be mapped.
pub(super) fn page_fault(phase: Phase, samples: usize) -> Figure {
    const STRIDE: usize = 16;
    let file = file(64 * STRIDE);
    let once = || {
        let mapping = Mapping::new(64 * STRIDE, Some(&file));
        let start = Instant::now();
        (0..64).for_each(|i| mapping.write(i * STRIDE));
        ns_each(start, 64)
    };
    Figure::new("host: lat_pagefault, a page of a memfd", "ns", phase, warmed(samples, once))
}

/// Where the mapping is whose pages [`mend`] gives back, and its length.
static MENDED: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

extern "C" fn mend(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes an `siginfo_t`, and a fault's has an address.
    let address = unsafe { (*info).si_addr() }.addr();
    let [start, length] = MENDED.each_ref().map(|word| word.load(Ordering::Relaxed));
    if !(start..start + length).contains(&address) {
        std::process::abort(); // a defect: returning would fault for ever
    }
    let page = std::ptr::with_exposed_provenance_mut(address - address % PAGE);
    // SAFETY: a page of the mapping; `mprotect` is one system call, which handlers may make.
    unsafe { libc::mprotect(page, PAGE, WRITE) };
}

/// Pages that are protected together, written to, and each given back by the handler of its fault.
pub(super) fn protection_fault(phase: Phase, samples: usize) -> Figure {
    let mapping = Mapping::new(64, None);
    mapping.write_all();
    MENDED[0].store(mapping.at, Ordering::Relaxed);
    MENDED[1].store(mapping.pages * PAGE, Ordering::Relaxed);
    // SAFETY: `sigaction` with zeroed structures and a handler that loads atomics and makes a system call, which handlers
    // may do; afterwards what was there is put back.
    let before = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = mend as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, &mut before), 0);
        before
    };
    let once = || {
        let start = Instant::now();
        mapping.protect(0, mapping.pages, READ);
        mapping.write_all();
        ns_each(start, mapping.pages)
    };
    let samples = warmed(samples, once);
    // SAFETY: as above.
    unsafe { libc::sigaction(libc::SIGSEGV, &before, std::ptr::null_mut()) };
    Figure::new("host: lat_protfault and mprotect, a page", "ns", phase, samples)
}

/// Mapping 64 KiB of a file in memory, touching them, and unmapping them.
pub(super) fn map(phase: Phase, samples: usize) -> Figure {
    const COUNT: usize = 50;
    let file = file(16);
    let once = || {
        let start = Instant::now();
        (0..COUNT).for_each(|_| Mapping::new(16, Some(&file)).write_all());
        ns_each(start, COUNT)
    };
    Figure::new("host: lat_mmap, 64 KiB of a memfd", "ns", phase, warmed(samples, once))
}

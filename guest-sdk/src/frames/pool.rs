//! The pool of free pages: the buddy allocator, and what goes on between it and the host.
//!
//! Pages that go to the host, or come back from it, are taken out of the allocator, told to the host, and given back as what
//! they are then ([`transfer`]). So the pool's lock is never held during a call, and nobody is given a page of which the host
//! has not been told. Upcalls are masked meanwhile, so that no handler finds the pages gone: another vCPU may, and waits.
//!
//! Start at [`take`] and [`transfer`].

use super::OutOfMemory;
use super::buddy::{Block, Buddy, Content, Page};
use crate::events::without_upcalls;
use crate::hypercall;
use crate::sync::Lock;
use hv_abi::boot::{MemoryRegion, region};
use hv_abi::pages::PageRun;
use hv_abi::{GuestPhys, PAGE_SIZE, Status};

/// The pool, from its first use on.
pub(crate) type Global = Lock<Option<Pool>>;

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
static POOL: Global = Global::new(None);
#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
static POOL: crate::fake::Frames = crate::fake::Frames;

/// All free pages.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) buddy: Buddy,
    /// Pages on their way to the host, or from it.
    in_transit: u64,
    /// When it was last looked for pages to report, and the least number of used ones that there were since.
    pub(super) quiet_since: u64,
    pub(super) least_used: u64,
    /// Pages that the host asks the balloon to hold, as it said last.
    pub(crate) target: u64,
    pub(super) cleared: u64,
    pub(super) saved: u64,
}

/// Pages that a small allocation claims ahead, so that not each one is a call. What is not used soon is reported again.
const CLAIMED: u64 = 512;

/// Runs that one call tells the host.
const BATCH: usize = 64;

pub(crate) fn with<T>(action: impl FnOnce(&mut Pool) -> T) -> T {
    #[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
    crate::fake::ensure();
    action(POOL.lock().get_or_insert_with(|| Pool::new(from_memory_map())))
}

impl Pool {
    fn new(buddy: Buddy) -> Self {
        Self { buddy, in_transit: 0, quiet_since: 0, least_used: 0, target: 0, cleared: 0, saved: 0 }
    }

    fn take(&mut self, order: u32, zeroed: bool) -> Option<Block> {
        let block = self.buddy.take(order)?;
        self.least_used = self.least_used.min(self.buddy.count(Content::Used));
        if zeroed {
            let bytes = if block.content == Content::Zero { &mut self.saved } else { &mut self.cleared };
            *bytes += PAGE_SIZE << order;
        }
        Some(block)
    }
}

/// Takes a block; `zeroed` if it is to be zero, which is counted here and seen to by the caller. Used pages come before zero
/// ones, also then: to clear a page takes less time than the host takes to find memory for one that nobody has touched yet.
/// What was reported is claimed last.
pub(super) fn take(order: u32, zeroed: bool) -> Result<Block, OutOfMemory> {
    loop {
        let (block, in_transit) = with(|pool| (pool.take(order, zeroed), pool.in_transit));
        if let Some(block) = block {
            return Ok(block);
        }
        let wanted = CLAIMED.max(1_u64.checked_shl(order).unwrap_or(u64::MAX));
        if transfer(Content::Reported, Content::Zero, wanted, hypercall::pages_claim) == 0 {
            if in_transit == 0 {
                return Err(OutOfMemory);
            }
            hypercall::yield_now(); // another vCPU has them
        }
    }
}

/// Makes free pages of one content another, about `most` of them, once the host has agreed to what it is told. Gives how many
/// pages; 0 if there are none, or the host did not agree.
pub(crate) fn transfer(
    from: Content,
    to: Content,
    most: u64,
    tell: impl FnOnce(&[PageRun]) -> Result<(), Status>,
) -> u64 {
    without_upcalls(|| {
        let mut blocks = [Block { page: 0, order: 0, content: from }; BATCH];
        let (count, pages) = with(|pool| {
            let (mut count, mut pages) = (0, 0);
            while let Some(slot) = blocks.get_mut(count)
                && let Some(block) = pool.buddy.take_most(from, most - pages)
            {
                *slot = block;
                (count, pages) = (count + 1, pages + (1 << block.order));
            }
            pool.in_transit += pages;
            (count, pages)
        });
        if count == 0 {
            return 0;
        }
        let run =
            |block: Block| PageRun { start: GuestPhys(block.page * PAGE_SIZE), count: 1 << block.order };
        let agreed = tell(&blocks.map(run)[..count]).is_ok();
        with(|pool| {
            pool.in_transit -= pages;
            let content = if agreed { to } else { from };
            blocks[..count].iter().for_each(|block| pool.buddy.give(Block { content, ..*block }));
        });
        if agreed { pages } else { 0 }
    })
}

/// Tells the host of pages of the pool's.
#[expect(unsafe_code, reason = "pages that nobody has")]
pub(crate) fn report(runs: &[PageRun]) -> Result<(), Status> {
    // SAFETY: `pages_report` asks that the pages be nobody's until they are claimed. `transfer` took them out of the
    // allocator, which has none that somebody else has, and gives them back as reported, so that they are claimed before
    // anybody gets them.
    unsafe { hypercall::pages_report(runs) }
}

fn pages_of(run: &MemoryRegion) -> core::ops::Range<u64> {
    run.start.0 / PAGE_SIZE..(run.start.0 + run.length) / PAGE_SIZE
}

/// An allocator with all memory that is usable, but for its own table.
#[expect(unsafe_code, reason = "the table, in memory of the direct map")]
fn from_memory_map() -> Buddy {
    let usable = || crate::memory::map().iter().filter(|run| run.kind == region::USABLE && run.start.0 != 0);
    let Some(home) = usable().max_by_key(|run| run.length) else { return Buddy::new(0, &mut []) };
    let first = usable().map(|run| pages_of(run).start).min().unwrap_or(0);
    let end = usable().map(|run| pages_of(run).end).max().unwrap_or(0);
    let table_bytes = (end - first) * size_of::<Page>() as u64;
    let table = pages_of(home).end.saturating_sub(table_bytes.div_ceil(PAGE_SIZE));
    if table <= pages_of(home).start {
        return Buddy::new(0, &mut []);
    }
    let at = crate::boot::at::<Page>(GuestPhys(table * PAGE_SIZE)).cast_mut();
    // SAFETY: `write_bytes` and `from_raw_parts_mut` need memory that is writable, aligned, initialised and nobody else's.
    // 1. Writable, aligned: a page's start in the direct map, and the table ends within the same region.
    // 2. Nobody else's: the host's map calls it usable, so neither image, stack nor boot information is in it; the heap
    //    takes memory from here only, and the pages of the table are never added below.
    // 3. Initialised: by the host, which set `ZERO`, or here; zeros are good for a `Page`.
    let table_of_pages = unsafe {
        if home.flags & region::ZERO == 0 {
            at.write_bytes(0, (end - first) as usize);
        }
        core::slice::from_raw_parts_mut(at, (end - first) as usize)
    };
    let mut buddy = Buddy::new(first, table_of_pages);
    for run in usable() {
        let pages = pages_of(run);
        let end = if core::ptr::eq(run, home) { table } else { pages.end };
        let content = if run.flags & region::ZERO != 0 { Content::Zero } else { Content::Used };
        buddy.add(pages.start..end, content);
    }
    buddy
}

//! A buddy allocator: which runs of pages are free, in blocks of powers of two, each aligned to its size.
//!
//! It knows page numbers only and touches none of the pages: what it remembers is a table of its own with twelve bytes
//! for a page. All zeros in it mean "not the start of a free block", so a table in memory that the host gives zeroed
//! is not written before its pages are used, however large the memory is.
//!
//! A block is known to be zero, or not. Two buddies become one only if they agree, since otherwise the first page that
//! comes back used would spoil what is known of all memory; [`Buddy::take`] joins the others when it finds nothing.
//!
//! Start at [`Buddy::take`] and [`Buddy::give`].

use core::ops::Range;

/// Orders of blocks: the largest has 2^27 pages, all that a VM can have.
pub(crate) const ORDERS: u32 = 28;

const FREE: u32 = 1 << 31;
const ZERO: u32 = 1 << 30;
const ORDER: u32 = ZERO - 1;

/// What is remembered of a page: if a free block starts there, its state and its neighbours in the list of its order.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Page {
    /// Index of the next one, plus 1; 0 if there is none.
    next: u32,
    /// As `next`, the other way.
    previous: u32,
    /// `FREE`, `ZERO` and the order; or 0.
    state: u32,
}

/// A run of 2^order pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Number of its first page.
    pub page: u64,
    pub order: u32,
    /// Whether all its bytes are known to be zero.
    pub zero: bool,
}

/// The allocator.
#[derive(Debug)]
pub(crate) struct Buddy {
    /// Number of the page that `pages[0]` is about.
    first: u64,
    pages: &'static mut [Page],
    /// The first free block of each order: index plus 1, or 0.
    heads: [u32; ORDERS as usize],
    /// Pages that are free.
    free: u64,
}

impl Buddy {
    /// One in which nothing is free, for the pages from `first` on. `pages` must be all default.
    pub(crate) fn new(first: u64, pages: &'static mut [Page]) -> Self {
        Self { first, pages, heads: [0; ORDERS as usize], free: 0 }
    }

    /// How many pages are free.
    pub(crate) fn free(&self) -> u64 {
        self.free
    }

    /// Makes pages free that were not.
    pub(crate) fn add(&mut self, mut run: Range<u64>, zero: bool) {
        while run.start < run.end {
            let fits = (run.end - run.start).ilog2();
            let order = fits.min(run.start.trailing_zeros()).min(ORDERS - 1);
            self.give(Block { page: run.start, order, zero });
            run.start += 1 << order;
        }
    }

    /// Takes a block; `None` if there is none.
    pub(crate) fn take(&mut self, order: u32) -> Option<Block> {
        self.take_fitting(order).or_else(|| {
            self.join();
            self.take_fitting(order)
        })
    }

    fn take_fitting(&mut self, order: u32) -> Option<Block> {
        let found = (order..ORDERS).find(|order| self.heads[*order as usize] != 0)?;
        let mut block = self.remove(self.heads[found as usize] - 1);
        while block.order > order {
            block.order -= 1;
            self.insert(Block { page: block.page + (1 << block.order), ..block });
        }
        Some(block)
    }

    /// Gives a block back. One that was never this allocator's is left alone.
    pub(crate) fn give(&mut self, mut block: Block) {
        if self.index(block.page).is_none() {
            return;
        }
        while let Some(buddy) = self.free_buddy(block).filter(|buddy| buddy.zero == block.zero) {
            block = self.unite(block, buddy);
        }
        self.insert(block);
    }

    /// Joins buddies that do not agree on being zero.
    fn join(&mut self) {
        for order in 0..ORDERS - 1 {
            let mut cursor = self.heads[order as usize];
            while cursor != 0 {
                let block = self.block(cursor - 1);
                cursor = self.pages[cursor as usize - 1].next;
                let Some(buddy) = self.free_buddy(block) else { continue };
                let buddy_index = (buddy.page - self.first) as u32;
                if cursor == buddy_index + 1 {
                    cursor = self.pages[buddy_index as usize].next;
                }
                self.remove((block.page - self.first) as u32);
                let whole = self.unite(block, buddy);
                self.insert(whole);
            }
        }
    }

    /// The other half of what `block` was split from, if it is free as a whole.
    fn free_buddy(&self, block: Block) -> Option<Block> {
        if block.order + 1 == ORDERS {
            return None;
        }
        let index = self.index(block.page ^ (1 << block.order))?;
        let state = self.pages[index as usize].state;
        (state & FREE != 0 && state & ORDER == block.order).then(|| self.block(index))
    }

    /// A block and its free buddy as one; the buddy is not free by itself any more.
    fn unite(&mut self, block: Block, buddy: Block) -> Block {
        self.remove((buddy.page - self.first) as u32);
        Block { page: block.page.min(buddy.page), order: block.order + 1, zero: block.zero && buddy.zero }
    }

    fn index(&self, page: u64) -> Option<u32> {
        let index = page.checked_sub(self.first)?;
        (index < self.pages.len() as u64).then_some(index as u32)
    }

    /// The free block that starts there.
    fn block(&self, index: u32) -> Block {
        let state = self.pages[index as usize].state;
        Block { page: self.first + u64::from(index), order: state & ORDER, zero: state & ZERO != 0 }
    }

    fn insert(&mut self, block: Block) {
        let index = (block.page - self.first) as u32;
        let head = &mut self.heads[block.order as usize];
        let next = core::mem::replace(head, index + 1);
        let state = FREE | if block.zero { ZERO } else { 0 } | block.order;
        self.pages[index as usize] = Page { next, previous: 0, state };
        if next != 0 {
            self.pages[next as usize - 1].previous = index + 1;
        }
        self.free += 1 << block.order;
    }

    fn remove(&mut self, index: u32) -> Block {
        let block = self.block(index);
        let Page { next, previous, .. } = core::mem::take(&mut self.pages[index as usize]);
        if next != 0 {
            self.pages[next as usize - 1].previous = previous;
        }
        match previous {
            0 => self.heads[block.order as usize] = next,
            _ => self.pages[previous as usize - 1].next = next,
        }
        self.free -= 1 << block.order;
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn buddy(first: u64, pages: u64, zero: bool) -> Buddy {
        let mut buddy = Buddy::new(first, vec![Page::default(); pages as usize].leak());
        buddy.add(first..first + pages, zero);
        buddy
    }

    #[test]
    fn blocks_are_aligned_to_their_size_whatever_the_memory_starts_at() {
        let mut buddy = buddy(3, 1100, true);
        for order in [9, 8, 0, 3, 1] {
            let block = buddy.take(order).unwrap();
            assert_eq!((block.page % (1 << order), block.order, block.zero), (0, order, true));
            assert!(block.page >= 3 && block.page + (1 << order) <= 1103);
        }
        assert_eq!(buddy.take(9), None);
        assert_eq!(buddy.free(), 1100 - 512 - 256 - 1 - 8 - 2);
    }

    #[test]
    fn a_used_page_does_not_spoil_what_is_known_of_its_neighbours() {
        let mut buddy = buddy(0, 64, true);
        let used = buddy.take(0).unwrap();
        buddy.give(Block { zero: false, ..used });
        assert_eq!(buddy.take(5), Some(Block { page: 32, order: 5, zero: true }));
        buddy.give(Block { page: 32, order: 5, zero: true });
        assert_eq!(buddy.take(6), Some(Block { page: 0, order: 6, zero: false }), "joined when it must be");
    }

    #[test]
    fn all_that_was_taken_in_any_order_comes_back_as_one_block() {
        let mut random = 1_u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut buddy = buddy(1024, 1024, false);
        let mut taken: Vec<Block> = Vec::new();
        let mut owner = vec![false; 1024];
        for _ in 0..20_000 {
            if next(2) == 0 {
                let Some(block) = buddy.take(next(7) as u32) else { continue };
                let pages = &mut owner[(block.page - 1024) as usize..][..1 << block.order];
                assert!(pages.iter().all(|taken| !taken), "{block:?} was given twice");
                pages.fill(true);
                taken.push(block);
            } else if !taken.is_empty() {
                let block = taken.swap_remove(next(taken.len() as u64) as usize);
                owner[(block.page - 1024) as usize..][..1 << block.order].fill(false);
                buddy.give(Block { zero: next(2) == 0, ..block });
            }
            assert_eq!(buddy.free(), owner.iter().filter(|taken| !**taken).count() as u64);
        }
        taken.into_iter().for_each(|block| buddy.give(block));
        assert_eq!(buddy.take(10).map(|block| block.page), Some(1024));
    }

    #[test]
    fn what_was_never_its_own_is_left_alone() {
        let mut buddy = buddy(100, 8, true);
        buddy.give(Block { page: 99, order: 0, zero: true });
        buddy.give(Block { page: 108, order: 2, zero: true });
        assert_eq!(buddy.free(), 8);
    }
}

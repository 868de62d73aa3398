//! A buddy allocator: which runs of pages are free, in blocks of powers of two, each aligned to its size.
//!
//! It knows page numbers only and touches none of the pages: what it remembers is a table of its own with twelve bytes
//! for a page. All zeros in it mean "not the start of a free block", so a table in memory that the host gives zeroed
//! is not written before its pages are used, however large the memory is.
//!
//! Of each block is known what is in it, its [`Content`]. Two buddies become one only if they agree, since otherwise the
//! first page that comes back used would spoil what is known of all memory; [`Buddy::take`] joins used and zero ones when it
//! finds nothing.
//!
//! Start at [`Buddy::take`] and [`Buddy::give`].

use core::ops::Range;

/// Orders of blocks: the largest has 2^27 pages, all that a VM can have.
pub(crate) const ORDERS: u32 = 28;

const FREE: u32 = 1 << 31;
/// Where a [`Content`] is in a state.
const CONTENT: u32 = 29;
const ORDER: u32 = (1 << CONTENT) - 1;

/// What is in a free block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Whatever was left there.
    Used,
    /// Zeros, and nobody has touched it since the host gave it: it costs nothing yet.
    Zero,
    /// Nothing: it was reported to the host, and is zero once it is claimed.
    Reported,
    /// Nothing: it was reported, and the balloon holds it.
    Held,
}

impl Content {
    const ALL: [Self; 4] = [Self::Used, Self::Zero, Self::Reported, Self::Held];
}

/// What is remembered of a page: if a free block starts there, its state and its neighbours in the list of its order.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Page {
    /// Index of the next one, plus 1; 0 if there is none.
    next: u32,
    /// As `next`, the other way.
    previous: u32,
    /// `FREE`, the content and the order; or 0.
    state: u32,
}

/// A run of 2^order pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Number of its first page.
    pub page: u64,
    pub order: u32,
    pub content: Content,
}

/// The allocator.
#[derive(Debug)]
pub(crate) struct Buddy {
    /// Number of the page that `pages[0]` is about.
    first: u64,
    pages: &'static mut [Page],
    /// The first free block of each content and order: index plus 1, or 0.
    heads: [[u32; ORDERS as usize]; Content::ALL.len()],
    /// Pages in blocks of each content.
    counts: [u64; Content::ALL.len()],
}

impl Buddy {
    /// One in which nothing is free, for the pages from `first` on. `pages` must be all default.
    pub(crate) fn new(first: u64, pages: &'static mut [Page]) -> Self {
        Self { first, pages, heads: [[0; _]; _], counts: [0; _] }
    }

    /// How many pages there are of a content.
    pub(crate) fn count(&self, content: Content) -> u64 {
        self.counts[content as usize]
    }

    /// How many pages are free: all but what the balloon holds.
    pub(crate) fn free(&self) -> u64 {
        [Content::Used, Content::Zero, Content::Reported].map(|content| self.count(content)).iter().sum()
    }

    /// Makes pages free that were not.
    pub(crate) fn add(&mut self, mut run: Range<u64>, content: Content) {
        while run.start < run.end {
            let fits = (run.end - run.start).ilog2();
            let order = fits.min(run.start.trailing_zeros()).min(ORDERS - 1);
            self.give(Block { page: run.start, order, content });
            run.start += 1 << order;
        }
    }

    /// Takes a block that is used, or else one that is zero; `None` if there is neither.
    pub(crate) fn take(&mut self, order: u32) -> Option<Block> {
        self.take_fitting(order).or_else(|| {
            self.join();
            self.take_fitting(order)
        })
    }

    fn take_fitting(&mut self, order: u32) -> Option<Block> {
        let zero = || self.fitting(order, Content::Zero);
        let block = self.fitting(order, Content::Used).or_else(zero)?;
        Some(self.split(block, order))
    }

    /// Takes the largest block of a content, or if that has more than `most` pages, as much of it as has not.
    pub(crate) fn take_most(&mut self, content: Content, most: u64) -> Option<Block> {
        let most = most.checked_ilog2()?.min(ORDERS - 1);
        let smaller = || (0..most).rev().find_map(|order| self.first(order, content));
        let block = self.fitting(most, content).or_else(smaller)?;
        Some(self.split(block, most.min(block.order)))
    }

    /// The smallest block of a content that has 2^order pages or more.
    fn fitting(&self, order: u32, content: Content) -> Option<Block> {
        (order..ORDERS).find_map(|order| self.first(order, content))
    }

    /// The first block of an order and a content.
    fn first(&self, order: u32, content: Content) -> Option<Block> {
        let head = self.heads[content as usize][order as usize];
        head.checked_sub(1).map(|index| self.block(index))
    }

    /// Takes the first 2^order pages of a free block.
    fn split(&mut self, block: Block, order: u32) -> Block {
        let mut block = self.remove((block.page - self.first) as u32);
        while block.order > order {
            block.order -= 1;
            self.insert(Block { page: block.page + (1 << block.order), ..block });
        }
        block
    }

    /// Gives a block back. One that was never this allocator's is left alone.
    pub(crate) fn give(&mut self, mut block: Block) {
        if self.index(block.page).is_none() {
            return;
        }
        while let Some(buddy) = self.free_buddy(block).filter(|buddy| buddy.content == block.content) {
            block = self.unite(block, buddy);
        }
        self.insert(block);
    }

    /// Joins buddies of which one is used and one is zero.
    fn join(&mut self) {
        for order in 0..ORDERS - 1 {
            let mut cursor = self.heads[Content::Zero as usize][order as usize];
            while cursor != 0 {
                let block = self.block(cursor - 1);
                cursor = self.pages[cursor as usize - 1].next; // the buddy is in another list
                let buddy = self.free_buddy(block).filter(|buddy| buddy.content == Content::Used);
                let Some(buddy) = buddy else { continue };
                self.remove((block.page - self.first) as u32);
                let whole = self.unite(block, buddy);
                self.give(whole);
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

    /// A block and its free buddy as one, with the buddy's content; the buddy is not free by itself any more.
    fn unite(&mut self, block: Block, buddy: Block) -> Block {
        self.remove((buddy.page - self.first) as u32);
        Block { page: block.page.min(buddy.page), order: block.order + 1, content: buddy.content }
    }

    fn index(&self, page: u64) -> Option<u32> {
        let index = page.checked_sub(self.first)?;
        (index < self.pages.len() as u64).then_some(index as u32)
    }

    /// The free block that starts there.
    fn block(&self, index: u32) -> Block {
        let state = self.pages[index as usize].state;
        let content = Content::ALL[(state >> CONTENT) as usize % Content::ALL.len()];
        Block { page: self.first + u64::from(index), order: state & ORDER, content }
    }

    fn insert(&mut self, block: Block) {
        let index = (block.page - self.first) as u32;
        let head = &mut self.heads[block.content as usize][block.order as usize];
        let next = core::mem::replace(head, index + 1);
        let state = FREE | (block.content as u32) << CONTENT | block.order;
        self.pages[index as usize] = Page { next, previous: 0, state };
        if next != 0 {
            self.pages[next as usize - 1].previous = index + 1;
        }
        self.counts[block.content as usize] += 1 << block.order;
    }

    fn remove(&mut self, index: u32) -> Block {
        let block = self.block(index);
        let Page { next, previous, .. } = core::mem::take(&mut self.pages[index as usize]);
        if next != 0 {
            self.pages[next as usize - 1].previous = previous;
        }
        match previous {
            0 => self.heads[block.content as usize][block.order as usize] = next,
            _ => self.pages[previous as usize - 1].next = next,
        }
        self.counts[block.content as usize] -= 1 << block.order;
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;
    use std::vec::Vec;

    fn buddy(first: u64, pages: u64, content: Content) -> Buddy {
        let mut buddy = Buddy::new(first, vec![Page::default(); pages as usize].leak());
        buddy.add(first..first + pages, content);
        buddy
    }

    #[test]
    fn blocks_are_aligned_to_their_size_whatever_the_memory_starts_at() {
        let mut buddy = buddy(3, 1100, Content::Zero);
        for order in [9, 8, 0, 3, 1] {
            let block = buddy.take(order).unwrap();
            assert_eq!((block.page % (1 << order), block.order, block.content), (0, order, Content::Zero));
            assert!(block.page >= 3 && block.page + (1 << order) <= 1103);
        }
        assert_eq!(buddy.take(9), None);
        assert_eq!(buddy.free(), 1100 - 512 - 256 - 1 - 8 - 2);
    }

    #[test]
    fn a_used_page_does_not_spoil_what_is_known_of_its_neighbours() {
        let mut buddy = buddy(0, 64, Content::Zero);
        let used = buddy.take(0).unwrap();
        buddy.give(Block { content: Content::Used, ..used });
        let upper_half = Block { page: 32, order: 5, content: Content::Zero };
        assert_eq!(buddy.take(5), Some(upper_half));
        buddy.give(upper_half);
        let all = Block { page: 0, order: 6, content: Content::Used };
        assert_eq!(buddy.take(6), Some(all), "joined when it must be");
    }

    #[test]
    fn used_pages_are_taken_before_zero_ones() {
        let mut buddy = buddy(0, 64, Content::Zero);
        let block = buddy.take(1).unwrap();
        buddy.give(Block { content: Content::Used, ..block });
        let contents = [(); 3].map(|()| buddy.take(0).unwrap().content);
        assert_eq!(contents, [Content::Used, Content::Used, Content::Zero]);
        assert_eq!((buddy.count(Content::Used), buddy.count(Content::Zero)), (0, 61));
    }

    #[test]
    fn the_largest_block_of_a_content_is_taken_as_far_as_it_is_wanted() {
        let mut buddy = buddy(0, 1024, Content::Used);
        buddy.add(1024..1024, Content::Used);
        let mut take = |content, most| buddy.take_most(content, most).map(|block| (block.page, block.order));
        assert_eq!(take(Content::Used, 100), Some((0, 6)));
        assert_eq!(take(Content::Used, u64::MAX), Some((512, 9)));
        assert_eq!(take(Content::Used, u64::MAX), Some((256, 8)));
        assert_eq!((take(Content::Used, 0), take(Content::Zero, 1)), (None, None));
    }

    #[test]
    fn what_is_reported_is_neither_taken_nor_joined() {
        let mut buddy = buddy(0, 64, Content::Used);
        let half = buddy.take_most(Content::Used, 32).unwrap();
        buddy.give(Block { content: Content::Reported, ..half });
        assert_eq!((buddy.take(6), buddy.free()), (None, 64));
        assert!(buddy.take(5).is_some());
        assert_eq!((buddy.take(0), buddy.free()), (None, 32));
        let half = buddy.take_most(Content::Reported, 64).unwrap();
        buddy.give(Block { content: Content::Held, ..half });
        assert_eq!((buddy.count(Content::Held), buddy.free()), (32, 0));
    }

    #[test]
    fn all_that_was_taken_in_any_order_comes_back_as_one_block() {
        let mut random = 1_u64;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut buddy = buddy(1024, 1024, Content::Used);
        let mut taken: Vec<Block> = Vec::new();
        let mut owner = vec![false; 1024];
        for _ in 0..40_000 {
            let content = Content::ALL[next(4) as usize];
            if next(2) == 0 {
                let block = match content {
                    Content::Used | Content::Zero => buddy.take(next(7) as u32),
                    Content::Reported | Content::Held => buddy.take_most(content, next(60)),
                };
                let Some(block) = block else { continue };
                let pages = &mut owner[(block.page - 1024) as usize..][..1 << block.order];
                assert!(pages.iter().all(|taken| !taken), "{block:?} was given twice");
                pages.fill(true);
                taken.push(block);
            } else if !taken.is_empty() {
                let block = taken.swap_remove(next(taken.len() as u64) as usize);
                owner[(block.page - 1024) as usize..][..1 << block.order].fill(false);
                buddy.give(Block { content, ..block });
            }
            let free = owner.iter().filter(|taken| !**taken).count() as u64;
            assert_eq!(buddy.free() + buddy.count(Content::Held), free);
        }
        for content in [Content::Reported, Content::Held] {
            while let Some(block) = buddy.take_most(content, u64::MAX) {
                taken.push(block);
            }
        }
        taken.into_iter().for_each(|block| buddy.give(Block { content: Content::Used, ..block }));
        assert_eq!(buddy.take(10).map(|block| block.page), Some(1024));
    }

    #[test]
    fn what_was_never_its_own_is_left_alone() {
        let mut buddy = buddy(100, 8, Content::Zero);
        buddy.give(Block { page: 99, order: 0, content: Content::Zero });
        buddy.give(Block { page: 108, order: 2, content: Content::Zero });
        assert_eq!(buddy.free(), 8);
    }
}

//! The memory balloon (Virtual I/O Device 1.3, section 5.5): pages that the guest gives up because the host asks for them, and
//! free pages that it tells of.
//!
//! It is another way to the same books as `PAGES_REPORT`, `PAGES_CLAIM` and `BALLOON` ([`presence`](crate::presence)), for guests
//! that have a driver for this. A page in the balloon is absent; one that was told of as free is zero, and the guest's as before.
//!
//! Start at [`Balloon::process`](Device::process).

use super::chain::Chain;
use super::line::Line;
use super::ring::Ring;
use super::{Broken, Device};
use crate::memory::GuestMemory;
use hv_abi::device::kind;
use hv_abi::{GuestPhys, PAGE_SIZE};
use std::ops::Range;

/// Pages that a request names at most.
const MOST: usize = 64 << 10;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORT: usize = 4;
/// Those for statistics and for hints are not there.
const QUEUES: [u16; 5] = [64, 64, 0, 0, 64];

/// Where the driver says how many pages it holds.
const ACTUAL: usize = 4;

mod feature {
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    pub(super) const PAGE_REPORTING: u64 = 1 << 5;
}

/// The device.
#[derive(Default)]
pub(super) struct Balloon {
    /// Pages that it is asked to hold, as the driver was told, and that it holds.
    target: u32,
    held: u32,
}

impl Device for Balloon {
    fn kind(&self) -> u32 {
        kind::BALLOON
    }

    fn features(&self) -> u64 {
        feature::DEFLATE_ON_OOM | feature::PAGE_REPORTING
    }

    fn queues(&self) -> &'static [u16] {
        &QUEUES
    }

    fn config(&self) -> Vec<u8> {
        let (hint, poison) = (0, 0);
        [self.target, self.held, hint, poison].iter().flat_map(|word: &u32| word.to_le_bytes()).collect()
    }

    fn write_config(&mut self, offset: usize, value: u32, line: &Line) {
        if offset == ACTUAL {
            self.hold(value, line.memory());
        }
        line.note_config(self.config()); // all else is the device's
    }

    fn process(&mut self, rings: &mut [Option<Ring>], line: &Line, _: bool) -> Result<bool, Broken> {
        let memory = line.memory();
        let target = u32::try_from(memory.presence().target()).unwrap_or(u32::MAX);
        if target != self.target {
            self.target = target;
            line.set_config(self.config());
        }
        let mut worked = false;
        for (queue, ring) in rings.iter_mut().enumerate() {
            let Some(ring) = ring else { continue };
            let Some(mut chain) = ring.pop()? else { continue };
            match queue {
                INFLATE => {
                    let pages = named(&mut chain, memory)?;
                    let more = pages.len() as u32;
                    memory.report(pages);
                    self.hold(self.held.saturating_add(more), memory);
                }
                DEFLATE => {
                    let pages = named(&mut chain, memory)?;
                    self.hold(self.held.saturating_sub(pages.len() as u32), memory);
                    let _ = memory.claim(pages); // pages of a balloon that was told to be larger stay in it
                }
                REPORT => memory.discard(
                    std::iter::from_fn(|| chain.take_room())
                        .map(|s| whole_pages(s.start, s.length))
                        .collect(),
                ),
                _ => {}
            }
            ring.push(chain);
            worked = true;
        }
        Ok(worked)
    }
}

impl Balloon {
    fn hold(&mut self, pages: u32, memory: &GuestMemory) {
        self.held = pages;
        memory.presence().hold(pages.into());
    }
}

/// The pages that a request names.
fn named(chain: &mut Chain, memory: &GuestMemory) -> Result<Vec<Range<u64>>, Broken> {
    let count = chain.readable() / size_of::<u32>();
    if count > MOST || !chain.readable().is_multiple_of(size_of::<u32>()) {
        return Err(Broken("a request to a balloon is not of 1 to 65536 page numbers"));
    }
    let mut bytes = vec![0; chain.readable()];
    chain.read(&mut bytes).expect("so many there are");
    let numbers = bytes.as_chunks().0.iter().map(|number| u64::from(u32::from_le_bytes(*number)));
    let inside = |page: u64| memory.contains(GuestPhys(page * PAGE_SIZE), PAGE_SIZE);
    let pages = numbers.map(|page| inside(page).then_some(page..page + 1)).collect::<Option<_>>();
    pages.ok_or(Broken("a page of a balloon is not in guest memory"))
}

/// The pages that are whole in a run of bytes; perhaps none.
fn whole_pages(start: GuestPhys, length: u32) -> Range<u64> {
    start.0.div_ceil(PAGE_SIZE)..(start.0 + u64::from(length)) / PAGE_SIZE
}

//! What docs/abi.md says of free pages: a part of the model.

use super::machine::MEMORY;
use super::model::{Expected, Model, outside, unless};
use hv_abi::{PAGE_SIZE, Status};
use std::collections::BTreeSet;

const BALLOON: u64 = 1;

/// The pages that are reported, by their P, and the balloon's target.
#[derive(Default)]
pub(super) struct Pages {
    reported: BTreeSet<u64>,
    target: u64,
}

impl Model {
    /// The pages of some runs.
    fn runs(&self, runs: u64, count: u64) -> Result<Vec<u64>, Vec<Status>> {
        let bad = !runs.is_multiple_of(8) || outside(runs, count.saturating_mul(16));
        unless(&[(count > 512, Status::OUT_OF_RANGE), (bad, Status::BAD_ADDRESS)])?;
        let mut pages = Vec::new();
        for run in 0..count {
            let (start, length) = (self.word(runs + run * 16), self.word(runs + run * 16 + 8));
            let beyond = length > MEMORY / PAGE_SIZE || outside(start, length * PAGE_SIZE);
            unless(&[(!start.is_multiple_of(PAGE_SIZE) || beyond, Status::BAD_ADDRESS)])?;
            pages.extend((0..length).map(|page| start + page * PAGE_SIZE));
        }
        Ok(pages)
    }

    pub(super) fn pages_report(&mut self, runs: u64, count: u64) -> Expected {
        for page in self.runs(runs, count)? {
            // A load may give the old content, too; this host gives zeros.
            self.state.memory[page as usize..][..PAGE_SIZE as usize].fill(0);
            self.pages.reported.insert(page);
        }
        self.state.reported = self.pages.reported.len() as u64;
        Ok(count)
    }

    pub(super) fn pages_claim(&mut self, runs: u64, count: u64) -> Expected {
        let claimed = BTreeSet::from_iter(self.runs(runs, count)?);
        let left: BTreeSet<u64> = self.pages.reported.difference(&claimed).copied().collect();
        let takes = left.len() < self.pages.reported.len();
        unless(&[(takes && (left.len() as u64) < self.state.held, Status::BUSY)])?;
        self.state.reported = left.len() as u64;
        self.pages.reported = left;
        Ok(count)
    }

    pub(super) fn hold(&mut self, pages: u64) -> u64 {
        self.state.held = pages.min(self.state.reported);
        self.pages.target
    }

    /// The host asks for so many bytes.
    pub(super) fn ask(&mut self, bytes: u64) {
        let target = bytes.min(MEMORY) / PAGE_SIZE;
        if self.offers_balloon() && target != self.pages.target {
            self.pages.target = target;
            self.fire(0, BALLOON);
        }
    }
}

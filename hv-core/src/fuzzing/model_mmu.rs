//! What docs/abi.md, sections 11 and 14, say of calls that change page tables, a second time.
//!
//! No program runs here: what a translation is worth is the conformance suite's; here it is what calls answer and write.

use super::machine::KERNEL_ROOT;
use super::model::{Expected, Model, outside, unless};
use hv_abi::Status;
use std::collections::BTreeSet;

const PAGE: u64 = 4096;

/// The pages that programs can be entered under.
#[derive(Default)]
pub(super) struct Tables {
    roots: BTreeSet<u64>,
}

impl Model {
    pub(super) fn root_create(&mut self, table: u64) -> Expected {
        let no_page = table == 0 || table % PAGE != 0 || outside(table, PAGE);
        unless(&[(no_page, Status::BAD_ADDRESS)])?;
        unless(&[
            ((255..512).any(|entry| self.word(table + entry * 8) != 0), Status::BAD_ARGUMENT),
            (table == KERNEL_ROOT || self.tables.roots.contains(&table), Status::BUSY),
        ])?;
        self.tables.roots.insert(table);
        Ok(0)
    }

    pub(super) fn root_destroy(&mut self, table: u64) -> Expected {
        unless(&[(table == KERNEL_ROOT, Status::BUSY)])?;
        unless(&[(!self.tables.roots.remove(&table), Status::NOT_FOUND)])?;
        Ok(0)
    }

    /// `after` is memory behind the call, which says which of several errors an update was given.
    pub(super) fn mmu_update(&mut self, updates: u64, count: u64, flags: u64, after: &[u8]) -> Expected {
        let length = count.saturating_mul(32);
        unless(&[
            (count > 512, Status::OUT_OF_RANGE),
            (updates % 8 != 0 || outside(updates, length), Status::BAD_ADDRESS),
            (flags > 1, Status::BAD_ARGUMENT),
        ])?;
        let copied = self.bytes(updates, length);
        let word = |at: usize| u64::from_le_bytes(copied[at..at + 8].try_into().unwrap());
        let mut results = Vec::new();
        for at in (0..copied.len()).step_by(32) {
            let (entry, new, reserved) = (word(at), word(at + 8), word(at + 24) >> 32);
            let errors = if reserved != 0 { vec![Status::BAD_ARGUMENT] } else { self.wrong_with(entry, new) };
            let old = if errors.is_empty() { self.word(entry) } else { 0 };
            if errors.is_empty() {
                self.state.memory[entry as usize..][..8].copy_from_slice(&new.to_le_bytes());
            }
            results.push((updates as usize + at, old, errors));
        }
        for (at, old, errors) in results {
            self.state.memory[at + 16..at + 24].copy_from_slice(&old.to_le_bytes());
            let given = Status(u32::from_le_bytes(after[at + 24..at + 28].try_into().unwrap()));
            let first = errors.first().copied().unwrap_or(Status::SUCCESS);
            let Status(status) = if errors.contains(&given) { given } else { first };
            self.state.memory[at + 24..at + 28].copy_from_slice(&status.to_le_bytes());
        }
        Ok(count)
    }

    /// What is wrong with an update: none, or any of these is told.
    fn wrong_with(&self, entry: u64, new: u64) -> Vec<Status> {
        let present = new & 1 != 0;
        let large = new & 1 << 7 != 0;
        let (phys, size) = (new & 0x000f_ffff_ffff_f000, if large { 512 * PAGE } else { PAGE });
        let must_be_zero = (1 << 3 | 1 << 4 | 1 << 8 | 0b1111 << 59) | if large { 0x1f_f000 } else { 0 };
        let index = entry % PAGE / 8;
        let hosts = match entry - entry % PAGE {
            KERNEL_ROOT => !(33..255).contains(&index),
            table => self.tables.roots.contains(&table) && index >= 255,
        };
        let wrong = [
            (entry % 8 != 0 || outside(entry, 8), Status::BAD_ADDRESS),
            (present && outside(phys, size), Status::BAD_ADDRESS),
            (present && new & must_be_zero != 0, Status::BAD_ARGUMENT),
            (hosts, Status::BAD_ARGUMENT),
        ];
        unless(&wrong).err().unwrap_or_default()
    }

    pub(super) fn mmu_flush(&self, root: u64, start: u64, length: u64) -> Expected {
        let end = u128::from(start) + u128::from(length);
        unless(&[
            (start % PAGE != 0 || length % PAGE != 0 || end > 1 << 47, Status::BAD_ARGUMENT),
            (root == 0 && (start, length) != (0, 0), Status::BAD_ARGUMENT),
            (root != 0 && root != KERNEL_ROOT && !self.tables.roots.contains(&root), Status::NOT_FOUND),
        ])?;
        Ok(0)
    }

    /// No context is held, since no program was entered.
    pub(super) fn user_xstate(&self, context: u64) -> Expected {
        unless(&[(context % 64 != 0 || outside(context, 256), Status::BAD_ADDRESS)])?;
        let valid = self.word(context + 160) as u32;
        unless(&[(valid != 1, Status::BAD_ARGUMENT)])?;
        Ok(0)
    }
}

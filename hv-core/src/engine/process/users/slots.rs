//! Sandboxes for address spaces: a bounded number, each with a slot in the file of links, and a spare one made ahead.
//!
//! Start at [`Inner::start`].

use super::Inner;
use crate::engine::EngineError;
use crate::engine::process::layout::MOST_SPACES;
use crate::engine::process::sandbox::{Files, Kind, Sandbox, Starting};
use crate::memory::GuestMemory;
use std::collections::BTreeSet;

impl Inner {
    /// A sandbox for another space, and its slot: the spare one, if there is one. If the host is short of something, gives up
    /// others one by one, each of which sets some of it free.
    pub(super) fn start(&mut self, files: &Files) -> Result<(Sandbox, u32), EngineError> {
        loop {
            let (slot, starting) = match self.spare.take() {
                Some((slot, starting)) => (slot, Ok(starting)),
                None => {
                    let slot = self.free_slot(&files.memory);
                    (slot, Starting::new(Kind::User { slot }, files, &[]))
                }
            };
            let error = match starting.and_then(Starting::finish) {
                Ok(sandbox) => return Ok((sandbox, slot)),
                Err(error @ EngineError::SandboxDied { .. }) => return Err(error), // with fewer it would be no better
                Err(error) => error,
            };
            let Some(root) = self.longest_unused() else { return Err(error) };
            tracing::debug!(%error, root, "an address space is given up for another");
            self.give_up(&files.memory, root);
            self.leaving.iter().for_each(|(_, sandbox)| sandbox.shared.wait_until_gone());
        }
    }

    /// The user space that was not used for longest.
    fn longest_unused(&self) -> Option<u64> {
        let users = self.spaces.iter().filter(|(_, space)| !space.is_kernel());
        users.min_by_key(|(_, space)| space.used).map(|(root, _)| *root)
    }

    /// A slot for another space. If there are too many, gives up the one that was not used for longest.
    fn free_slot(&mut self, memory: &GuestMemory) -> u32 {
        let users = self.spaces.values().filter(|space| !space.is_kernel()).count();
        if users >= MOST_SPACES as usize
            && let Some(root) = self.longest_unused()
        {
            self.give_up(memory, root);
        }
        loop {
            if let Some(slot) = self.unused_slot() {
                return slot;
            }
            self.leaving[0].1.shared.wait_until_gone();
        }
    }

    fn unused_slot(&mut self) -> Option<u32> {
        self.leaving.retain(|(_, sandbox)| !sandbox.shared.is_gone());
        let leaving = self.leaving.iter().map(|(slot, _)| *slot);
        let taken: BTreeSet<_> = self.spaces.values().filter_map(|space| space.slot).chain(leaving).collect();
        (0..MOST_SPACES).find(|slot| !taken.contains(slot))
    }

    /// Has a spare sandbox made, if there is room for one: who makes one address space soon makes another.
    pub(super) fn prepare(&mut self, files: &Files) {
        if let Some(slot) = self.unused_slot() {
            // If it fails now, it is for the next space to tell.
            self.spare = Starting::new(Kind::User { slot }, files, &[]).ok().map(|starting| (slot, starting));
        }
    }
}

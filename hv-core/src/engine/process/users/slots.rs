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
    pub(super) fn start(
        &mut self,
        files: &Files,
        vcpu: u32,
        in_use: &dyn Fn(u64) -> bool,
    ) -> Result<(Sandbox, u32), EngineError> {
        if self.ended {
            return Err(EngineError::SandboxDied { how: "the VM was ended before".into() });
        }
        loop {
            let (slot, starting) = match self.spare.take() {
                Some((slot, starting)) => (slot, Ok(starting)),
                None => {
                    let slot = self.free_slot(&files.memory, in_use);
                    (slot, Starting::new(Kind::User { slot }, files, vcpu, &[]))
                }
            };
            let error = match starting.and_then(Starting::finish) {
                Ok(sandbox) => return Ok((sandbox, slot)),
                Err(error @ EngineError::SandboxDied { .. }) => return Err(error), // with fewer it would be no better
                Err(error) => error,
            };
            if !self.give_up_longest_unused(&files.memory, in_use) {
                return Err(error);
            }
            tracing::debug!(%error, "an address space was given up for another");
            self.leaving.iter().for_each(|(_, sandbox)| sandbox.shared.wait_until_gone());
        }
    }

    /// Gives up the user space that was not used for longest and is not in use. Whether there was one.
    fn give_up_longest_unused(&mut self, memory: &GuestMemory, in_use: &dyn Fn(u64) -> bool) -> bool {
        let mut users: Vec<_> = self.spaces.iter().filter(|(_, space)| !space.is_kernel()).collect();
        users.sort_by_key(|(_, space)| space.used);
        let users: Vec<u64> = users.into_iter().map(|(root, _)| *root).collect();
        for root in users {
            // First vCPUs are kept from entering it, then it is looked whether one has: they do it the other way round.
            self.forbid(root);
            if !in_use(root) {
                self.give_up(memory, root);
                self.counts.evictions += 1;
                return true;
            }
        }
        false
    }

    /// A slot for another space. If there are too many, gives up the one that was not used for longest.
    fn free_slot(&mut self, memory: &GuestMemory, in_use: &dyn Fn(u64) -> bool) -> u32 {
        let users = self.spaces.values().filter(|space| !space.is_kernel()).count();
        if users >= MOST_SPACES as usize {
            let given_up = self.give_up_longest_unused(memory, in_use);
            debug_assert!(
                given_up,
                "the vCPU that asks is in none, and there are not more vCPUs than spaces"
            );
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
    pub(super) fn prepare(&mut self, files: &Files, vcpu: u32) {
        if let Some(slot) = self.unused_slot() {
            // If it fails now, it is for the next space to tell.
            self.spare =
                Starting::new(Kind::User { slot }, files, vcpu, &[]).ok().map(|starting| (slot, starting));
        }
    }
}

//! Breakpoints: `int3` in guest memory, wherever the code at an address is mapped, and the bytes that it stands for.
//!
//! One of the guest kernel is in one place. One of user programs is at an address, in all programs: it is put into a program's
//! page when the program is entered, for until then the page may not be there. Guest kernels copy such pages (a fork, a page
//! cache), `int3` and all; the byte that it stands for is known by the address, also after the breakpoint is gone.
//!
//! Start at [`Breakpoints::hit`].

use crate::memory::GuestMemory;
use crate::view::View;
use hv_abi::GuestPhys;
use std::collections::{BTreeMap, BTreeSet};

const INT3: u8 = 0xcc;

/// For whom there is an `int3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// The debugger, in the guest kernel.
    Kernel(u64),
    /// The debugger, in programs.
    Program(u64),
    /// A vCPU that is to come back there.
    Return(u32),
}

/// A place in guest memory that has an `int3`.
struct Patch {
    original: u8,
    owners: BTreeSet<Owner>,
}

/// All of a VM.
pub(super) struct Breakpoints {
    memory: GuestMemory,
    /// By P.
    patches: BTreeMap<u64, Patch>,
    /// Those of programs, by V.
    programs: BTreeSet<u64>,
    /// What was at the V of one of programs, whether it is still set or not.
    originals: BTreeMap<u64, u8>,
    /// Where vCPUs are to come back.
    returns: BTreeMap<u32, u64>,
}

/// Whose breakpoint a vCPU has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hit {
    /// The debugger's.
    Set,
    /// Its own, where it was to come back.
    Return,
    /// One that is for others, or was: it goes on with the instruction that was there.
    Other,
    /// The guest's own.
    Guests,
}

impl Breakpoints {
    pub(super) fn new(memory: GuestMemory) -> Self {
        let (patches, programs, originals, returns) = Default::default();
        Self { memory, patches, programs, originals, returns }
    }

    /// Sets the debugger's breakpoint at V `at` of the guest kernel. Whether there is code.
    pub(super) fn set_in_kernel(&mut self, kernel: &View<'_>, at: u64) -> bool {
        code(kernel, at).is_some_and(|phys| self.patch(phys, Owner::Kernel(at)))
    }

    /// Sets the debugger's breakpoint at V `at` of all programs, from their next entry on.
    pub(super) fn set_in_programs(&mut self, at: u64) {
        self.programs.insert(at);
    }

    /// Takes the debugger's breakpoint away. Whether there was one.
    pub(super) fn clear(&mut self, at: u64) -> bool {
        self.unpatch(Owner::Program(at));
        self.programs.remove(&at) | self.unpatch(Owner::Kernel(at))
    }

    pub(super) fn clear_all(&mut self) {
        self.programs.clear();
        let owners: BTreeSet<_> =
            self.patches.values().flat_map(|patch| patch.owners.iter().copied()).collect();
        for owner in owners {
            self.unpatch(owner);
        }
    }

    /// A vCPU is to come back to V `at` of the guest kernel. Whether there is code.
    pub(super) fn set_return(&mut self, kernel: &View<'_>, vcpu: u32, at: u64) -> bool {
        self.clear_return(vcpu);
        let is_set = code(kernel, at).is_some_and(|phys| self.patch(phys, Owner::Return(vcpu)));
        if is_set {
            self.returns.insert(vcpu, at);
        }
        is_set
    }

    pub(super) fn clear_return(&mut self, vcpu: u32) {
        if self.returns.remove(&vcpu).is_some() {
            self.unpatch(Owner::Return(vcpu));
        }
    }

    /// A program is to run: it has the breakpoints that are set in programs.
    pub(super) fn apply(&mut self, program: &View<'_>) {
        for at in self.programs.clone() {
            if let Some(phys) = code(program, at) {
                let copied = self.originals.get(&at).copied();
                let found = self.byte(phys);
                if let (Some(original), Some(INT3), false) = (copied, found, self.patches.contains_key(&phys))
                {
                    // The guest kernel has copied the page from one that has it.
                    let _ = self.memory.write(GuestPhys(phys), &original);
                }
                self.patch(phys, Owner::Program(at));
                if let Some(patch) = self.patches.get(&phys) {
                    self.originals.insert(at, patch.original);
                }
            }
        }
    }

    /// A vCPU has come to an `int3` at V `at` of the guest kernel.
    pub(super) fn hit(&self, kernel: &View<'_>, vcpu: u32, at: u64) -> Hit {
        let patch = code(kernel, at).and_then(|phys| self.patches.get(&phys));
        match patch {
            Some(patch) if patch.owners.contains(&Owner::Kernel(at)) => Hit::Set,
            _ if self.returns.get(&vcpu) == Some(&at) => Hit::Return,
            Some(_) => Hit::Other,
            // Another vCPU had it taken away meanwhile, or it is the guest's.
            None if code(kernel, at).and_then(|phys| self.byte(phys)) != Some(INT3) => Hit::Other,
            None => Hit::Guests,
        }
    }

    /// A program has come to an `int3` at V `at`. One that has stayed behind in a copy of a page is taken away.
    pub(super) fn hit_in_program(&mut self, program: &View<'_>, at: u64) -> Hit {
        if self.programs.contains(&at) {
            return Hit::Set;
        }
        let Some(phys) = code(program, at) else { return Hit::Guests };
        match (self.originals.get(&at), self.byte(phys)) {
            (Some(original), Some(INT3)) if *original != INT3 => {
                let _ = self.memory.write(GuestPhys(phys), original);
                Hit::Other
            }
            (_, Some(INT3)) => Hit::Guests,
            _ => Hit::Other,
        }
    }

    /// Shows the instruction that is at V `at` of the guest kernel, for one vCPU to make it; or hides it again.
    pub(super) fn lift(&self, kernel: &View<'_>, at: u64, lift: bool) {
        if let Some(phys) = code(kernel, at)
            && let Some(patch) = self.patches.get(&phys)
        {
            let _ = self.memory.write(GuestPhys(phys), if lift { &patch.original } else { &INT3 });
        }
    }

    /// Reads guest memory as it would be without breakpoints.
    pub(super) fn read(&self, view: &View<'_>, address: u64, bytes: &mut [u8]) -> usize {
        let length = view.read(address, bytes);
        each_run(view, address, length, |phys, place| {
            for (at, patch) in self.patches.range(phys..phys + place.len() as u64) {
                bytes[place.start + (at - phys) as usize] = patch.original;
            }
        });
        length
    }

    /// Writes guest memory under the breakpoints.
    pub(super) fn write(&mut self, view: &View<'_>, address: u64, bytes: &[u8]) -> usize {
        let length = view.write(address, bytes);
        each_run(view, address, length, |phys, place| {
            for (at, patch) in self.patches.range_mut(phys..phys + place.len() as u64) {
                patch.original = bytes[place.start + (at - phys) as usize];
                let _ = self.memory.write(GuestPhys(*at), &INT3);
            }
        });
        length
    }

    fn byte(&self, phys: u64) -> Option<u8> {
        self.memory.read(GuestPhys(phys)).ok()
    }

    /// Whether guest memory is there.
    fn patch(&mut self, phys: u64, owner: Owner) -> bool {
        let Some(original) = self.byte(phys) else { return false };
        let patch = self.patches.entry(phys).or_insert(Patch { original, owners: BTreeSet::new() });
        if original != INT3 {
            patch.original = original; // new, or the guest has written there
        }
        patch.owners.insert(owner);
        self.memory.write(GuestPhys(phys), &INT3).is_ok()
    }

    /// Whether there was one.
    fn unpatch(&mut self, owner: Owner) -> bool {
        let mut found = false;
        let memory = &self.memory;
        self.patches.retain(|phys, patch| {
            let was_there = patch.owners.remove(&owner);
            found |= was_there;
            let is_over = was_there && patch.owners.is_empty();
            // What the guest has written over it is the guest's.
            if is_over && memory.read::<u8>(GuestPhys(*phys)) == Ok(INT3) {
                let _ = memory.write(GuestPhys(*phys), &patch.original);
            }
            !is_over
        });
        found
    }
}

/// P of an address, if it can be executed.
fn code(view: &View<'_>, at: u64) -> Option<u64> {
    view.is_executable(at).then(|| view.translate(at)).flatten().map(|(phys, _)| phys.0)
}

/// Tells of each run of guest memory in `length` bytes from `address` on: its P, and where in them it is.
fn each_run(view: &View<'_>, address: u64, length: usize, mut act: impl FnMut(u64, std::ops::Range<usize>)) {
    let mut done = 0;
    while done < length {
        let Some((phys, run)) = view.translate(address + done as u64) else { return };
        let end = length.min(done.saturating_add(usize::try_from(run).unwrap_or(usize::MAX)));
        act(phys.0, done..end);
        done = end;
    }
}

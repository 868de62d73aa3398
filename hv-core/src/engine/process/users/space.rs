//! One address space with a sandbox, and the contexts whose extended state that holds: one for each vCPU's thread there.

use super::super::frame::UserFrame;
use super::super::sandbox::Sandbox;
use super::super::shadow::Shadow;
use crate::engine::Registers;
use crate::engine::process::xstate;
use crate::memory::GuestMemory;
use crate::mmu::KERNEL;
use core::mem::offset_of;
use hv_abi::GuestPhys;
use hv_abi::address::SLOT_255;
use hv_abi::user::{LOWEST_USER, RFLAGS, RFLAGS_FIXED, UserContext};
use std::collections::BTreeMap;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// What noting a table counts for: in bytes it is less, but a change of a table looks at all of its notes.
const NOTE_COST: usize = 512;

pub(in super::super) struct Space {
    pub sandbox: Arc<Sandbox>,
    /// Which of the links is its sandbox's. None is the guest kernel's.
    pub(super) slot: Option<u32>,
    pub shadow: Shadow,
    /// The tables in `Inner::tables` that name this root, by level and base.
    pub(super) tables: BTreeMap<(u32, u64), u64>,
    /// The contexts whose extended state is in the sandbox, each by the vCPU whose thread there has it.
    held: BTreeMap<u32, u64>,
    /// Pages whose entries became present since it last ran.
    pub(super) wanted: Vec<u64>,
    pub(super) used: u64,
}

impl Space {
    pub(super) fn new(sandbox: Arc<Sandbox>, slot: Option<u32>) -> Self {
        let range = if slot.is_some() { LOWEST_USER..SLOT_255 } else { KERNEL };
        Self {
            sandbox,
            slot,
            shadow: Shadow::new(range),
            tables: BTreeMap::new(),
            held: BTreeMap::new(),
            wanted: Vec::new(),
            used: 0,
        }
    }

    /// Bytes that what is shadowed costs the host, about.
    pub(super) fn cost(&self) -> usize {
        self.shadow.cost() + self.tables.len() * NOTE_COST
    }

    /// Whether it is the guest kernel's, where entries need not be for user mode.
    pub(in super::super) fn is_kernel(&self) -> bool {
        self.slot.is_none()
    }

    /// The vCPU whose thread here has the extended state of a context.
    pub(super) fn holder(&self, context: u64) -> Option<u32> {
        self.held.iter().find(|(_, held)| **held == context).map(|(vcpu, _)| *vcpu)
    }

    /// Lets go of all contexts.
    pub(super) fn save_all(&mut self, memory: &GuestMemory) {
        let vcpus: Vec<u32> = self.held.keys().copied().collect();
        vcpus.into_iter().for_each(|vcpu| self.save(memory, vcpu));
    }

    pub(super) fn frame(&self, vcpu: u32) -> UserFrame<'_> {
        let shared = &self.sandbox.shared;
        UserFrame { exchange: shared.exchange(), handover: shared.handover(vcpu), vcpu }
    }

    /// Lets go of the context that a vCPU's thread holds: puts its extended state into guest memory, and says so in it. If that is
    /// nowhere, the program has written over it, and gets the initial state. If the guest has said by itself that guest
    /// memory has it, that is so.
    pub(super) fn save(&mut self, memory: &GuestMemory, vcpu: u32) {
        let Some(context) = self.held.remove(&vcpu) else { return };
        let valid = valid(context);
        let area = memory.read(GuestPhys(context + offset_of!(UserContext, xstate) as u64));
        let (Ok(0), Ok(area)) = (memory.read::<u32>(valid), area) else {
            return;
        };
        let (size, mask) = crate::cpu::xstate();
        let words = size as usize / 8;
        self.sandbox.shared.leave_gate(vcpu);
        let mut state = self.frame(vcpu).xstate(words).unwrap_or_else(|| vec![0; words]);
        xstate::make_valid(&mut state, mask);
        // The guest may have made the area one that is not in its memory; then it goes nowhere.
        let _ = memory.write_bytes(area, state.as_bytes());
        let _ = memory.write(valid, &1_u32);
    }

    /// Makes the sandbox's thread go on as the program of `context`, with the extended state that is in guest memory.
    pub(super) fn load(
        &mut self,
        memory: &GuestMemory,
        vcpu: u32,
        context: u64,
        user: &UserContext,
        registers: &Registers,
    ) {
        let (size, mask) = crate::cpu::xstate();
        let mut state = vec![0_u64; size as usize / 8];
        let _ = memory.read_bytes(user.xstate, state.as_mut_bytes());
        // It was found valid, but guest memory can change: what is loaded is checked, not what was.
        xstate::make_valid(&mut state, mask);
        self.frame(vcpu).replace(registers, &state);
        self.held.insert(vcpu, context);
    }
}

/// Where a context says who has its extended state.
fn valid(context: u64) -> GuestPhys {
    GuestPhys(context + offset_of!(UserContext, xstate_valid) as u64)
}

/// Whether the context at P `context` says that its extended state is in guest memory.
pub(super) fn is_saved(memory: &GuestMemory, context: u64) -> bool {
    memory.read::<u32>(valid(context)) == Ok(1)
}

impl From<&UserContext> for Registers {
    fn from(user: &UserContext) -> Self {
        let (registers, _) = Self::read_from_prefix(user.as_bytes()).expect("a context begins with them");
        Self { rflags: registers.rflags & RFLAGS | RFLAGS_FIXED, ..registers }
    }
}

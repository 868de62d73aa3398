//! The address spaces of a VM that have a sandbox at the moment: the guest kernel's, and a bounded cache of user roots.
//!
//! A root costs nothing until a program is entered under it; then it gets a sandbox of its own, and when there are too
//! many, the one that was not used for longest goes. No sandbox ever serves a second root: a program that pretends to
//! wait could still run in it.
//!
//! Of the guest kernel's sandbox, only the V that its own root translates are this module's: a space like others, but that
//! it is never given up.
//!
//! `space` is one of them, `slots` makes sandboxes for them, `mirror` fills their shadows and empties them.
//!
//! Start at [`Users::enter`] and [`Users::fault`].

mod mirror;
mod slots;
mod space;

use super::InUser;
use super::frame::UserFault;
use super::layout::{Command, LINKS_BASE, link_offset};
use super::rewrite::{self, Rewriter};
use super::sandbox::{Files, Sandbox, Starting};
use crate::cpu_share::Pass;
use crate::engine::{Access, EngineError, EnterError, Registers, Setup, SpaceCounts};
use crate::memory::GuestMemory;
use crate::mmu::span;
use core::ops::{Deref, DerefMut};
use hv_abi::PAGE_SIZE;
use hv_abi::user::UserContext;
use mirror::{AHEAD, Use};
pub(super) use space::Space;
use std::collections::HashMap;
use std::sync::atomic::{Ordering::SeqCst, fence};
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes that the host may spend on what it maps of all spaces of a VM, about.
const MOST_COST_OF_ALL: usize = 12 << 20;
pub(super) struct Users {
    files: Files,
    /// The guest kernel's own root.
    kernel: Option<u64>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// The guest kernel's, which may enter some programs by itself.
    kernel: Arc<Sandbox>,
    vcpus: u32,
    spaces: HashMap<u64, Space>,
    rewriter: Rewriter,
    /// Which tables the shadows came through.
    tables: HashMap<u64, Vec<Use>>,
    /// Sandboxes that were killed and may not be gone yet; until then nobody gets their slots.
    leaving: Vec<(u32, Arc<Sandbox>)>,
    /// One that is made ahead for the next space, and its slot.
    spare: Option<(u32, Starting)>,
    /// What was done; its two that are of now are not kept here.
    counts: SpaceCounts,
    /// The VM ends: no sandbox is made any more, for nobody would end it.
    ended: bool,
    /// Counts entries, to find the space that was not used for longest.
    now: u64,
}

/// [`Inner`], while no guest code is held back.
struct Locked<'a> {
    inner: MutexGuard<'a, Inner>,
    _open: Pass<'a>,
}

impl Deref for Locked<'_> {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.inner
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

/// What became of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The engine had lost the translation, and has it again.
    Mended,
    /// The guest's tables do not allow the access.
    Guest,
    /// The host cannot give what they allow.
    Lost,
}

impl Users {
    /// No user space yet; and the guest kernel's own root, if it has one, with its sandbox.
    pub(super) fn new(files: Files, kernel: Arc<Sandbox>, setup: &Setup<'_>) -> Self {
        let own = setup.kernel_root.map(|root| (root, Space::new(kernel.clone(), None)));
        let inner = Inner {
            spaces: own.into_iter().collect(),
            rewriter: Rewriter::new(&files, kernel.clone(), setup.mappings),
            kernel,
            vcpus: files.pages.vcpus(),
            tables: HashMap::new(),
            leaving: Vec::new(),
            spare: None,
            counts: SpaceCounts::default(),
            ended: false,
            now: 0,
        };
        Self { files, kernel: setup.kernel_root, inner: Mutex::new(inner) }
    }

    /// While guest code is held back, mapping threads are, too: nobody begins something that needs them.
    fn lock(&self) -> Locked<'_> {
        let open = self.files.gate.pass();
        let inner = self.inner.lock().expect("no thread panics with the lock held");
        Locked { inner, _open: open }
    }

    /// Readies the sandbox of `root` for going on with `user`, the context at P `context`. Gives it. If another has
    /// to go for it, that is one whose root is not `in_use`.
    pub(super) fn enter(
        &self,
        vcpu: u32,
        root: u64,
        context: u64,
        user: &UserContext,
        in_use: &dyn Fn(u64) -> bool,
    ) -> Result<Arc<Sandbox>, EnterError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        let holder = inner.holder(context);
        // A vCPU that held it may have let go of it since `user` was copied.
        let mut from_memory =
            user.xstate_valid != 0 || holder.is_none() && space::is_saved(&self.files.memory, context);
        // Held elsewhere, it comes from there: the program changes its address space.
        if let Some((at, holder)) = holder
            && (at, holder) != (root, vcpu)
        {
            inner.save(&self.files.memory, at, holder);
            from_memory = true;
        }
        let was_there = inner.spaces.contains_key(&root);
        if !was_there {
            if !from_memory {
                return Err(EnterError::NoExtendedState);
            }
            let (sandbox, slot) = inner.start(&self.files, vcpu, in_use).map_err(EnterError::Engine)?;
            inner.spaces.insert(root, Space::new(Arc::new(sandbox), Some(slot)));
            inner.counts.made += 1;
            inner.prepare(&self.files, vcpu);
        }
        inner.touch(root);
        if let Err(error) = inner.spaces[&root].sandbox.ensure_vcpu(vcpu) {
            inner.remove(root);
            return Err(EnterError::Engine(error));
        }
        let holds = inner.spaces[&root].holder(context) == Some(vcpu);
        if from_memory && !holds {
            inner.save(&self.files.memory, root, vcpu);
        }
        let space = inner.spaces.get_mut(&root).expect("it is there, or was made");
        let registers = Registers::from(user);
        if holds && !from_memory {
            space.frame(vcpu).set_registers(&registers);
        } else if from_memory {
            space.load(&self.files.memory, vcpu, context, user, &registers);
        } else {
            return Err(EnterError::NoExtendedState);
        }
        let wanted = std::mem::take(&mut space.wanted);
        inner.shadow_all(&self.files.memory, root, &wanted);
        inner.make_room(&self.files.memory, root);
        let batches = inner.counts.batches;
        if let Err(error) = inner.update(root) {
            inner.give_up(&self.files.memory, root);
            return Err(EnterError::Engine(error));
        }
        if was_there && inner.counts.batches == batches {
            inner.counts.shadow_hits += 1;
        } else {
            inner.counts.shadow_misses += 1;
        }
        Ok(inner.spaces[&root].sandbox.clone())
    }

    /// A vCPU may enter a program that has come back without the monitor, if nothing is outstanding for its address space.
    pub(super) fn allow(&self, vcpu: u32, user: &InUser) {
        let inner = self.lock();
        let unchanged = |space: &&Space| {
            Arc::ptr_eq(&space.sandbox.shared, &user.shared)
                && space.holder(user.context) == Some(vcpu)
                && !space.shadow.has_changes()
        };
        if let Some(slot) = inner.spaces.get(&user.root).filter(unchanged).and_then(|space| space.slot) {
            let link = LINKS_BASE + link_offset(inner.vcpus, slot, vcpu);
            inner.kernel.shared.handover(vcpu).allow(user.root, user.context, user.xstate, link);
        }
    }

    /// No vCPU enters a program under `root` but by the monitor, from now on.
    pub(super) fn forbid(&self, root: u64) {
        self.lock().forbid(root);
    }

    /// The guest kernel used an address that its own page tables may translate, and its sandbox does not have.
    pub(super) fn kernel_fault(&self, address: u64, access: Access) -> Fault {
        self.kernel.map_or(Fault::Guest, |root| self.fault(root, address, access))
    }

    /// A program under `root` used an address that its sandbox does not have.
    pub(super) fn fault(&self, root: u64, address: u64, access: Access) -> Fault {
        let mut inner = self.lock();
        inner.touch(root);
        let rights = inner.shadow(&self.files.memory, root, address, AHEAD);
        inner.make_room(&self.files.memory, root);
        let Some(rights) = rights else { return Fault::Guest };
        let allowed = match access {
            Access::Read => true,
            Access::Write => rights.write,
            Access::Execute => rights.execute,
        };
        match (allowed, inner.update(root)) {
            (_, Err(error)) => {
                tracing::warn!(%error, root, "an address space is given up");
                Fault::Lost
            }
            (true, Ok(())) => {
                inner.counts.shadow_misses += 1;
                Fault::Mended
            }
            (false, Ok(())) => Fault::Guest,
        }
    }

    /// What a program under `root` did, where its signal came from a rewritten system call; the registers become those of
    /// the original program.
    pub(super) fn original(&self, root: u64, fault: UserFault, registers: &mut Registers) -> UserFault {
        let inner = self.lock();
        let Some(space) = inner.spaces.get(&root) else { return fault };
        inner.rewriter.original(space, fault, registers)
    }

    /// A system call that a program under `root` has made traps often. Whether it will not any more; `None` if that is not
    /// wanted, and the program has written to its hand-over page, or the call is of an odd kind.
    pub(super) fn rewrite(&self, root: u64, registers: &Registers) -> Option<bool> {
        if self.files.look_after == rewrite::NEVER {
            return None;
        }
        let mut inner = self.lock();
        let inner = &mut *inner;
        let at = registers.rip.wrapping_sub(2);
        Some(inner.rewriter.rewrite(&mut inner.spaces, root, at, registers.rax))
    }

    /// The monitor may have written frames: no program goes on with what they were.
    pub(super) fn frames_written(&self) {
        if self.files.memory.watched().has_written() {
            let mut inner = self.lock();
            let inner = &mut *inner;
            inner.rewriter.drop_written(&mut inner.spaces);
        }
    }

    /// The guest kernel is to write a frame, which the engine may have made read-only; if not, another vCPU was first. Whether
    /// it can be written.
    pub(super) fn frame_written(&self, phys: u64) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.rewriter.drop_frames(&mut inner.spaces, phys..phys + 1);
        phys < self.files.memory.size()
    }

    /// Takes a space away, and with it all that it can reach: when this returns, its pages can be somebody else's. A thread
    /// of it that only pretends to wait is killed a moment later.
    pub(super) fn destroy(&self, root: u64) {
        let mut inner = self.lock();
        if let Some(space) = inner.spaces.get_mut(&root) {
            space.shadow.empty();
            let _ = inner.update(root); // fails if it is dead, and then reaches nothing, either
            inner.remove(root);
        }
    }

    /// Takes a space away; its programs are lost.
    pub(super) fn kill(&self, root: u64) {
        self.lock().remove(root);
    }

    /// Lets go of a context, with its extended state in guest memory. Whether it was held.
    pub(super) fn release(&self, context: u64) -> bool {
        let mut inner = self.lock();
        inner.holder(context).map(|(root, vcpu)| inner.save(&self.files.memory, root, vcpu)).is_some()
    }

    /// An entry of a table, at P `at`, has changed.
    pub(super) fn entry_changed(&self, at: u64) {
        let mut inner = self.lock();
        inner.counts.entries_changed += 1;
        let (table, index) = (at - at % PAGE_SIZE, at % PAGE_SIZE / 8);
        let uses = inner.tables.get(&table).cloned().unwrap_or_default();
        for of in uses {
            let start = of.base + index * span(of.level);
            inner.changed(of, start..start + span(of.level));
        }
    }

    /// Makes all changes that are outstanding.
    pub(super) fn flush(&self) {
        let mut inner = self.lock();
        let roots: Vec<_> = inner.spaces.keys().copied().collect();
        for root in roots {
            inner.update_or_give_up(&self.files.memory, root);
        }
    }

    /// Makes those that are outstanding for the guest kernel's own root. What became present is mapped at once.
    pub(super) fn flush_kernel(&self) {
        let Some(root) = self.kernel else { return };
        let mut inner = self.lock();
        let wanted = inner.spaces.get_mut(&root).map(|space| std::mem::take(&mut space.wanted));
        inner.shadow_all(&self.files.memory, root, &wanted.unwrap_or_default());
        inner.make_room(&self.files.memory, root);
        inner.update_or_give_up(&self.files.memory, root);
    }

    pub(super) fn kill_all(&self) {
        let mut inner = self.lock();
        inner.ended = true;
        if let Some((slot, spare)) = inner.spare.take()
            && let Ok(sandbox) = spare.process()
        {
            inner.leaving.push((slot, Arc::new(sandbox)));
        }
        self::sandboxes(&inner).for_each(|sandbox| sandbox.kill());
    }

    /// What was done so far, and what there is now.
    pub(super) fn counts(&self) -> SpaceCounts {
        let inner = self.lock();
        let shadow_bytes = inner.spaces.values().map(|space| space.shadow.cost() as u64).sum();
        SpaceCounts { spaces: inner.spaces.len() as u64, shadow_bytes, ..inner.counts }
    }

    /// All sandboxes of programs, and those that are on their way out.
    pub(super) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        sandboxes(&self.lock()).cloned().collect()
    }
}

fn sandboxes(inner: &Inner) -> impl Iterator<Item = &Arc<Sandbox>> {
    let spaces = inner.spaces.values().filter(|space| !space.is_kernel()).map(|space| &space.sandbox);
    spaces.chain(inner.leaving.iter().map(|(_, sandbox)| sandbox))
}

impl Inner {
    /// A space is in use.
    fn touch(&mut self, root: u64) {
        self.now += 1;
        if let Some(space) = self.spaces.get_mut(&root) {
            space.used = self.now;
        }
    }

    /// Has other spaces than `root` forget theirs while all together cost too much: first what was not used for longest.
    fn make_room(&mut self, memory: &GuestMemory, root: u64) {
        while self.spaces.values().map(Space::cost).sum::<usize>() > MOST_COST_OF_ALL {
            let others = self.spaces.iter().filter(|(at, space)| **at != root && space.cost() > 0);
            let Some(other) = others.min_by_key(|(_, space)| space.used).map(|(other, _)| *other) else {
                return;
            };
            self.forget(other);
            self.counts.evictions += 1;
            self.update_or_give_up(memory, other);
        }
    }

    /// Has the sandbox make what its shadow says.
    fn update(&mut self, root: u64) -> Result<(), EngineError> {
        self.rewriter.before_update(&mut self.spaces, root);
        let Some(space) = self.spaces.get_mut(&root) else { return Ok(()) };
        let commands: Vec<Command> = space.shadow.take_commands();
        if !commands.is_empty() {
            self.counts.batches += 1;
            self.counts.mappings += commands.len() as u64;
            space.sandbox.command(&commands)?;
        }
        if space.shadow.is_uncovered() {
            space.shadow.forget_uncovered();
            self.rewriter.retire(&self.spaces);
        }
        Ok(())
    }

    /// As [`update`](Self::update). A sandbox that cannot is given up: a program goes on in another, a guest kernel ends.
    fn update_or_give_up(&mut self, memory: &GuestMemory, root: u64) {
        if let Err(error) = self.update(root) {
            tracing::warn!(%error, root, "an address space is given up");
            self.give_up(memory, root);
        }
    }

    /// Takes a space away whose programs go on in another sandbox, when they are next entered.
    fn give_up(&mut self, memory: &GuestMemory, root: u64) {
        self.forbid(root);
        if let Some(space) = self.spaces.get_mut(&root) {
            space.save_all(memory);
        }
        self.remove(root);
    }

    /// The guest kernel comes to the monitor with the next program under `root`.
    fn forbid(&self, root: u64) {
        (0..self.vcpus).for_each(|vcpu| self.kernel.shared.handover(vcpu).forbid(root));
        fence(SeqCst);
    }

    /// Where the extended state of a context is: under which root, in which vCPU's thread.
    fn holder(&self, context: u64) -> Option<(u64, u32)> {
        self.spaces.iter().find_map(|(root, space)| Some((*root, space.holder(context)?)))
    }

    /// Has the space of `root` let go of the context that a vCPU's thread holds.
    fn save(&mut self, memory: &GuestMemory, root: u64, vcpu: u32) {
        self.forbid(root);
        if let Some(space) = self.spaces.get_mut(&root) {
            space.save(memory, vcpu);
        }
    }

    /// Takes a space away, with what it holds.
    fn remove(&mut self, root: u64) {
        self.forget(root);
        self.forbid(root);
        let Some(space) = self.spaces.remove(&root) else { return };
        space.sandbox.kill();
        if space.shadow.is_uncovered() {
            space.sandbox.shared.wait_until_gone(); // only then is a copy nobody's
            self.rewriter.retire(&self.spaces);
        }
        self.leaving.extend(space.slot.map(|slot| (slot, space.sandbox)));
    }
}

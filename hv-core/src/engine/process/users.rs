//! The address spaces of a VM that have a sandbox at the moment: the guest kernel's, and a bounded cache of user roots.
//!
//! A root costs nothing until a program is entered under it; then it gets a sandbox of its own, and when there are too
//! many, the one that was not used for longest goes. No sandbox ever serves a second root: a program that pretends to
//! wait could still run in it.
//!
//! Of the guest kernel's sandbox, only the V that its own root translates are this module's: a space like others, but that
//! it is never given up.
//!
//! Which entries of page tables a shadow depends on is noted by the walks that filled it (`Tables`): a change of an
//! entry takes away what was shadowed through it, and nothing else.
//!
//! Start at [`Users::enter`] and [`Users::fault`].

use super::frame::{UserFault, UserFrame};
use super::layout::{Command, MOST_SPACES};
use super::rewrite::{self, Rewriter};
use super::sandbox::{Files, Kind, Sandbox, Starting};
use super::shadow::Shadow;
use crate::engine::{Access, EngineError, EnterError, Registers, Setup};
use crate::memory::GuestMemory;
use crate::mmu::{self, ENTRIES, KERNEL, Leaf, Rights, Step, span};
use core::mem::offset_of;
use hv_abi::address::SLOT_255;
use hv_abi::mmu::Entry;
use hv_abi::user::{LOWEST_USER, UserContext};
use hv_abi::{GuestPhys, PAGE_SIZE};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use zerocopy::IntoBytes;

/// Pages that are mapped for one fault, at the most, and within the same aligned run of so many.
const AHEAD: u64 = 64;

/// Bytes that the host may spend on what it maps of one space, about, and of all spaces of a VM.
const MOST_COST: usize = 4 << 20;
const MOST_COST_OF_ALL: usize = 12 << 20;
/// What noting a table counts for: in bytes it is less, but a change of a table looks at all of its notes.
const NOTE_COST: usize = 512;

/// Pages that a batch of new entries maps before the program goes on, at the most.
const MOST_WANTED: usize = 512;

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
    /// Counts entries, to find the space that was not used for longest.
    now: u64,
}

/// A table that a walk under `root` came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    root: u64,
    level: u32,
    base: u64,
    rights: Rights,
}

pub(super) struct Space {
    pub sandbox: Arc<Sandbox>,
    /// Which of the links is its sandbox's. None is the guest kernel's.
    slot: Option<u32>,
    pub shadow: Shadow,
    /// The tables in `Inner::tables` that name this root, by level and base.
    tables: BTreeMap<(u32, u64), u64>,
    /// The context whose extended state is in the sandbox.
    held: Option<Held>,
    /// Pages whose entries became present since it last ran.
    wanted: Vec<u64>,
    used: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    context: u64,
    /// The vCPU whose thread in the sandbox has it.
    vcpu: u32,
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
            now: 0,
        };
        Self { files, kernel: setup.kernel_root, inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no thread panics with the lock held")
    }

    /// Readies the sandbox of `root` for going on with `user`, the context at P `context`. Gives it and its slot.
    pub(super) fn enter(
        &self,
        vcpu: u32,
        root: u64,
        context: u64,
        user: &UserContext,
    ) -> Result<(Arc<Sandbox>, u32), EnterError> {
        let mut inner = self.lock();
        let inner = &mut *inner;
        // Held elsewhere, it comes from there: the program changes its address space.
        let elsewhere = inner.spaces.iter().find(|(at, space)| **at != root && space.holds(context));
        let mut from_memory = user.xstate_valid != 0;
        if let Some(at) = elsewhere.map(|(at, _)| *at) {
            inner.save(&self.files.memory, at);
            from_memory = true;
        }
        if !inner.spaces.contains_key(&root) {
            if !from_memory {
                return Err(EnterError::NoExtendedState);
            }
            let (sandbox, slot) = inner.start(&self.files).map_err(EnterError::Engine)?;
            inner.spaces.insert(root, Space::new(Arc::new(sandbox), Some(slot)));
            inner.prepare(&self.files);
        }
        inner.touch(root);
        let holds = inner.spaces[&root].holds(context);
        if from_memory && !holds {
            inner.save(&self.files.memory, root);
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
        if let Err(error) = inner.update(root) {
            inner.give_up(&self.files.memory, root);
            return Err(EnterError::Engine(error));
        }
        let space = &inner.spaces[&root];
        Ok((space.sandbox.clone(), space.slot.expect("no program is entered under the guest kernel's root")))
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
            (true, Ok(())) => Fault::Mended,
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

    /// The guest kernel is to write a frame, which the engine may have made read-only. Whether it had.
    pub(super) fn frame_written(&self, phys: u64) -> bool {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.rewriter.drop_frames(&mut inner.spaces, phys..phys + 1)
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
        let root = inner.spaces.iter().find(|(_, space)| space.holds(context)).map(|(root, _)| *root);
        root.map(|root| inner.save(&self.files.memory, root)).is_some()
    }

    /// An entry of a table, at P `at`, has changed. Whether a program's sandbox has something to do for that.
    pub(super) fn entry_changed(&self, at: u64) {
        let mut inner = self.lock();
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
        if let Some((slot, spare)) = inner.spare.take()
            && let Ok(sandbox) = spare.process()
        {
            inner.leaving.push((slot, Arc::new(sandbox)));
        }
        self::sandboxes(&inner).for_each(|sandbox| sandbox.kill());
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
    /// Mirrors the page at `virt` and up to `most` of those around it. Gives the page's rights, if it is mapped for whom the
    /// space is.
    fn shadow(&mut self, memory: &GuestMemory, root: u64, virt: u64, most: u64) -> Option<Rights> {
        let space = self.spaces.get(&root).filter(|space| space.shadow.range().contains(&virt))?;
        if space.shadow.is_full() || space.cost() >= MOST_COST {
            self.forget(root);
        }
        let mut steps = Vec::with_capacity(4);
        let found = mmu::walk(memory, root, virt, |step| steps.push(step));
        let last = *steps.last().expect("a walk begins at the root");
        steps.into_iter().for_each(|step| self.note(root, step));
        let space = self.spaces.get_mut(&root)?;
        let found = found.filter(|found| found.rights.user || space.is_kernel())?;
        if found.size > PAGE_SIZE {
            let page = virt - virt % found.size;
            let start = page.max(space.shadow.range().start);
            space.shadow.map(start, page + found.size - start, found.phys + (start - page), found.rights);
        } else {
            space.shadow_around(memory, last, virt, most);
        }
        Some(found.rights)
    }

    /// Mirrors pages, and those around them.
    fn shadow_all(&mut self, memory: &GuestMemory, root: u64, pages: &[u64]) {
        let mut done = 0..0;
        for virt in pages {
            if !done.contains(virt) {
                self.shadow(memory, root, *virt, AHEAD);
                let start = virt - virt % (AHEAD * PAGE_SIZE);
                done = start..start + AHEAD * PAGE_SIZE;
            }
        }
    }

    /// A space is in use.
    fn touch(&mut self, root: u64) {
        self.now += 1;
        if let Some(space) = self.spaces.get_mut(&root) {
            space.used = self.now;
        }
    }

    /// Forgets what is shadowed of a space, and what that came through.
    fn forget(&mut self, root: u64) {
        let Some(space) = self.spaces.get_mut(&root) else { return };
        space.shadow.empty();
        let tables: BTreeSet<_> = std::mem::take(&mut space.tables).into_values().collect();
        for table in tables {
            forget_uses(&mut self.tables, table, |of| of.root == root);
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
            self.update_or_give_up(memory, other);
        }
    }

    /// Notes that shadows of `root` came through a table.
    fn note(&mut self, root: u64, step: Step) {
        let Some(space) = self.spaces.get_mut(&root) else { return };
        let of = Use { root, level: step.level, base: step.base, rights: step.rights };
        match space.tables.insert((step.level, step.base), step.table) {
            Some(before) if before == step.table => {
                let uses = self.tables.entry(step.table).or_default();
                uses.iter_mut().filter(|u| same_place(u, &of)).for_each(|u| *u = of);
            }
            before => {
                if let Some(before) = before {
                    forget_uses(&mut self.tables, before, |u| same_place(u, &of));
                }
                self.tables.entry(step.table).or_default().push(of);
            }
        }
    }

    /// The entry of `of` that translates `range` has changed.
    fn changed(&mut self, of: Use, range: Range<u64>) {
        self.forbid(of.root);
        let Some(space) = self.spaces.get_mut(&of.root) else { return };
        space.shadow.invalidate(range.clone());
        if space.shadow.is_uncovered() {
            // A copy is used again for another page, so it is unmapped before it is given up. Fails if the sandbox is dead.
            let _ = self.update(of.root);
        }
        let Some(space) = self.spaces.get_mut(&of.root) else { return };
        if of.level == 1 {
            if space.wanted.len() < MOST_WANTED {
                space.wanted.push(range.start);
            }
            return;
        }
        for level in 1..of.level {
            let below: Vec<_> = space
                .tables
                .range((level, range.start)..(level, range.end))
                .map(|(at, t)| (*at, *t))
                .collect();
            for ((level, base), table) in below {
                space.tables.remove(&(level, base));
                forget_uses(&mut self.tables, table, |u| same_place(u, &Use { level, base, ..of }));
            }
        }
    }

    /// Has the sandbox make what its shadow says.
    fn update(&mut self, root: u64) -> Result<(), EngineError> {
        self.rewriter.before_update(&mut self.spaces, root);
        let Some(space) = self.spaces.get_mut(&root) else { return Ok(()) };
        let commands: Vec<Command> = space.shadow.take_commands();
        if !commands.is_empty() {
            space.sandbox.command(&commands)?;
        }
        if space.shadow.is_uncovered() {
            space.shadow.forget_uncovered();
            self.rewriter.retire(&self.spaces);
        }
        Ok(())
    }

    /// Has a spare sandbox made, if there is room for one: who makes one address space soon makes another.
    fn prepare(&mut self, files: &Files) {
        if let Some(slot) = self.unused_slot() {
            // If it fails now, it is for the next space to tell.
            self.spare = Starting::new(Kind::User { slot }, files, &[]).ok().map(|starting| (slot, starting));
        }
    }

    /// As [`update`](Self::update). A sandbox that cannot is given up: a program goes on in another, a guest kernel ends.
    fn update_or_give_up(&mut self, memory: &GuestMemory, root: u64) {
        if let Err(error) = self.update(root) {
            tracing::warn!(%error, root, "an address space is given up");
            self.give_up(memory, root);
        }
    }

    /// A sandbox for another space, and its slot: the spare one, if there is one. If the host is short of something, gives up others one by one, each of which
    /// sets some of it free.
    fn start(&mut self, files: &Files) -> Result<(Sandbox, u32), EngineError> {
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

    /// Takes a space away whose programs go on in another sandbox, when they are next entered.
    fn give_up(&mut self, memory: &GuestMemory, root: u64) {
        self.save(memory, root);
        self.remove(root);
    }

    /// The guest kernel comes to the monitor with the next program under `root`.
    fn forbid(&self, root: u64) {
        (0..self.vcpus).for_each(|vcpu| self.kernel.shared.handover(vcpu).forbid(root));
    }

    /// Has the space of `root` let go of the context that it holds.
    fn save(&mut self, memory: &GuestMemory, root: u64) {
        self.forbid(root);
        if let Some(space) = self.spaces.get_mut(&root) {
            space.save(memory);
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

fn same_place(one: &Use, other: &Use) -> bool {
    (one.root, one.level, one.base) == (other.root, other.level, other.base)
}

fn forget_uses(tables: &mut HashMap<u64, Vec<Use>>, table: u64, which: impl Fn(&Use) -> bool) {
    if let Some(uses) = tables.get_mut(&table) {
        uses.retain(|of| !which(of));
        if uses.is_empty() {
            tables.remove(&table);
        }
    }
}

impl Space {
    fn new(sandbox: Arc<Sandbox>, slot: Option<u32>) -> Self {
        let range = if slot.is_some() { LOWEST_USER..SLOT_255 } else { KERNEL };
        Self {
            sandbox,
            slot,
            shadow: Shadow::new(range),
            tables: BTreeMap::new(),
            held: None,
            wanted: Vec::new(),
            used: 0,
        }
    }

    /// Bytes that what is shadowed costs the host, about.
    fn cost(&self) -> usize {
        self.shadow.cost() + self.tables.len() * NOTE_COST
    }

    /// Whether it is the guest kernel's, where entries need not be for user mode.
    pub(super) fn is_kernel(&self) -> bool {
        self.slot.is_none()
    }

    fn holds(&self, context: u64) -> bool {
        self.held.is_some_and(|held| held.context == context)
    }

    fn frame(&self, vcpu: u32) -> UserFrame<'_> {
        let shared = &self.sandbox.shared;
        UserFrame { exchange: shared.exchange(), handover: shared.handover(vcpu), vcpu }
    }

    /// Mirrors the page at `virt`, which the table of `step` maps, and pages beside it that are as present.
    fn shadow_around(&mut self, memory: &GuestMemory, step: Step, virt: u64, most: u64) {
        let mut entries = [0_u64; ENTRIES as usize];
        if memory.read_bytes(GuestPhys(step.table), entries.as_mut_bytes()).is_err() {
            return;
        }
        let is_kernel = self.is_kernel();
        let index = virt / PAGE_SIZE % ENTRIES;
        let first = index - index % most;
        let page = |i: u64| {
            let entry = Entry::from_bits_retain(entries[i as usize]);
            match mmu::leaf(memory, entry, 1) {
                Leaf::Page { phys, .. } => {
                    Some((phys, step.rights.and(entry))).filter(|(_, rights)| rights.user || is_kernel)
                }
                _ => None,
            }
        };
        let mut at = first;
        while at < (first + most).min(ENTRIES) {
            let start = at;
            let Some((phys, rights)) = page(at) else {
                at += 1;
                continue;
            };
            let goes_on = |i: u64| page(i) == Some((phys + (i - start) * PAGE_SIZE, rights));
            at += 1;
            while at < (first + most).min(ENTRIES) && goes_on(at) {
                at += 1;
            }
            self.shadow_run(step.base + start * PAGE_SIZE, at - start, phys, rights);
        }
    }

    /// Mirrors consecutive pages, but for those that already are.
    fn shadow_run(&mut self, virt: u64, pages: u64, phys: u64, rights: Rights) {
        let virt_of = |i| virt + i * PAGE_SIZE;
        let there = |shadow: &Shadow, i| {
            let phys = phys + i * PAGE_SIZE;
            shadow.has(virt_of(i), mmu::Translation { phys, size: PAGE_SIZE, rights })
                || !shadow.range().contains(&virt_of(i))
        };
        let mut i = 0;
        while i < pages {
            if there(&self.shadow, i) {
                i += 1;
                continue;
            }
            let start = i;
            while i < pages && !there(&self.shadow, i) {
                i += 1;
            }
            self.shadow.map(virt_of(start), (i - start) * PAGE_SIZE, phys + start * PAGE_SIZE, rights);
        }
    }

    /// Lets go of the context that it holds: puts its extended state into guest memory, and says so in it. If that is
    /// nowhere, the program has written over it, and gets the initial state. If the guest has said by itself that guest
    /// memory has it, that is so.
    fn save(&mut self, memory: &GuestMemory) {
        let Some(held) = self.held.take() else { return };
        let field = |offset: usize| GuestPhys(held.context + offset as u64);
        let valid = field(offset_of!(UserContext, xstate_valid));
        let (Ok(0), Ok(area)) =
            (memory.read::<u32>(valid), memory.read(field(offset_of!(UserContext, xstate))))
        else {
            return;
        };
        let (size, mask) = crate::cpu::xstate();
        let words = size as usize / 8;
        self.sandbox.shared.leave_gate(held.vcpu);
        let mut xstate = self.frame(held.vcpu).xstate(words).unwrap_or_else(|| vec![0; words]);
        super::xstate::make_valid(&mut xstate, mask);
        // The guest may have made the area one that is not in its memory; then it goes nowhere.
        let _ = memory.write_bytes(area, xstate.as_bytes());
        let _ = memory.write(valid, &1_u32);
    }

    /// Makes the sandbox's thread go on as the program of `context`, with the extended state that is in guest memory.
    fn load(
        &mut self,
        memory: &GuestMemory,
        vcpu: u32,
        context: u64,
        user: &UserContext,
        registers: &Registers,
    ) {
        let (size, mask) = crate::cpu::xstate();
        let mut xstate = vec![0_u64; size as usize / 8];
        let _ = memory.read_bytes(user.xstate, xstate.as_mut_bytes());
        // It was found valid, but guest memory can change: what is loaded is checked, not what was.
        super::xstate::make_valid(&mut xstate, mask);
        self.frame(vcpu).replace(registers, &xstate);
        self.held = Some(Held { context, vcpu });
    }
}

impl From<&UserContext> for Registers {
    fn from(user: &UserContext) -> Self {
        let [r8, r9, r10, r11, r12, r13, r14, r15] = user.r8_to_r15;
        let UserContext { rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, rip, fs_base, .. } = *user;
        let rflags = user.rflags & hv_abi::user::RFLAGS | hv_abi::user::RFLAGS_FIXED;
        Self {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            rsp,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
            fs_base,
        }
    }
}

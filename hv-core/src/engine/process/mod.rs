//! The process engine: guest code in deprivileged host processes.
//!
//! The guest kernel's address space is a *sandbox process*, and so is each guest user address space in use. In it are the
//! guest's own pages and, in PML4 slot 255, the stub and the pages it shares with the monitor; nothing else. One thread in
//! it, the *mapping thread*, makes the system calls that the monitor commands; one thread per vCPU runs guest code, may
//! make no system call but the stub's futex, and hands control over through memory.
//!
//! Start at [`ProcessEngine::start`](Engine::start). `layout` says where everything is, `stub` (assembly) is the code
//! in a sandbox, `sandbox` one such process, `handover` the protocol between it and the monitor, `filter` what its threads
//! may call; `users` keeps the user address spaces, `shadow` what is mapped in each, and `rewrite` makes
//! system calls of programs jumps.

mod elf;
#[cfg(test)]
mod event_model;
mod filter;
mod frame;
pub(crate) mod handover;
#[cfg(test)]
mod handover_model;
pub(crate) mod layout;
mod mapper;
mod processes;
mod rewrite;
mod sandbox;
mod shadow;
mod spawn;
pub(crate) mod spin;
mod stub;
mod users;
mod vcpu;
pub(crate) mod xstate;

use super::tally::Tally;
use super::{
    AddressSpaces, Control, Counters, Engine, EngineError, Mapping, Registers, Setup, SpaceCounts, VcpuRunner,
};
use crate::cpu_share::Gate;
use crate::events::{Notify, VcpuPages};
use crate::shared::SharedFile;
use handover::{Atomics, Machine, TURN_GUEST};
use hv_abi::vcpu::{run_state, upcall};
use layout::descriptor;
use processes::Processes;
use sandbox::{Files, Kind, Sandbox, Shared, Starting};
use std::collections::HashMap;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use users::Users;

/// Makes the file that sandboxes are started from, if that has not been done, and finds out what the host has.
pub(crate) fn prepare() -> std::io::Result<()> {
    mapper::prepare();
    elf::executable().map(drop)
}

/// Runs guest code in host processes.
pub(crate) struct ProcessEngine;

impl Engine for ProcessEngine {
    fn xstate(&self) -> (u64, u64) {
        crate::cpu::xstate()
    }

    fn start(&self, setup: &Setup<'_>) -> Result<Arc<dyn Control>, EngineError> {
        let vcpus = setup.pages.vcpus();
        let links = SharedFile::new("hv-links", layout::links_size(vcpus))
            .map_err(|source| EngineError::Host { what: "making the links to user programs", source })?;
        let rewritten = SharedFile::new("hv-rewritten", layout::REWRITTEN_SIZE)
            .map_err(|source| EngineError::Host { what: "making the jump table", source })?;
        let processes = Arc::new(Processes::default());
        let files = Files {
            memory: setup.memory.clone(),
            pages: setup.pages.clone(),
            links: Arc::new(links),
            rewritten: Arc::new(rewritten),
            processes: processes.clone(),
            gate: setup.gate.clone(),
            look_after: if setup.rewrite { rewrite::TRAPS } else { rewrite::NEVER },
        };
        let mappings: Vec<_> = setup.mappings.iter().map(guest_mapping).collect();
        let kernel = Arc::new(Starting::new(Kind::Kernel, &files, 0, &mappings)?.finish()?);
        kernel.command(&mapper::areas(Kind::Kernel, vcpus, 1..vcpus))?;
        let process = Arc::new(Process {
            users: Users::new(files, kernel.clone(), setup),
            sees_entries: setup.sees_entries,
            entered: (0..vcpus).map(|_| Mutex::default()).collect(),
            tallies: (0..vcpus).map(|_| Tally::default()).collect(),
            samples: (0..vcpus).map(|_| AtomicBool::new(false)).collect(),
            pages: setup.pages.clone(),
            upcalls: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            delays: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            gate: setup.gate.clone(),
            processes,
            kernel,
        });
        Ok(process)
    }
}

fn guest_mapping(mapping: &Mapping) -> layout::Command {
    let mut protection = libc::PROT_READ;
    if mapping.write {
        protection |= libc::PROT_WRITE;
    }
    if mapping.execute {
        protection |= libc::PROT_EXEC;
    }
    mapper::map(mapping.virt, mapping.length, descriptor::GUEST_MEMORY, mapping.phys, protection)
}

/// A running VM: its guest kernel's sandbox, and its programs'.
struct Process {
    pages: Arc<VcpuPages>,
    kernel: Arc<Sandbox>,
    users: Users,
    processes: Arc<Processes>,
    gate: Arc<Gate>,
    /// Per vCPU: nanoseconds for which its guest code has waited for a processor.
    delays: Vec<AtomicU64>,
    /// Per vCPU: times that it was told of events. Any thread tells.
    upcalls: Vec<AtomicU64>,
    /// No guest kernel enters a program by itself.
    sees_entries: bool,
    /// Per vCPU: the programs that it has entered.
    entered: Vec<Mutex<Entered>>,
    /// Per vCPU: what its crossings cost.
    tallies: Vec<Tally>,
    /// Per vCPU: its program is to be seen, and not to be called back for that.
    samples: Vec<AtomicBool>,
}

/// Programs that a vCPU has entered.
#[derive(Default)]
struct Entered {
    /// Those that its guest kernel may enter by itself, and others before them.
    by_root: HashMap<u64, Arc<InUser>>,
    /// The root under which it is about to enter one, or one has come back, and its context is not written yet.
    on_the_way: Option<u64>,
    /// The one that the monitor's thread waits for, and not its guest kernel.
    by_monitor: Option<Arc<InUser>>,
}

/// A program that a vCPU has entered, and may enter again without the monitor.
struct InUser {
    root: u64,
    context: u64,
    /// Where its extended state goes.
    xstate: u64,
    shared: Arc<Shared>,
    /// Somebody wants the vCPU back in its guest kernel.
    wanted: AtomicBool,
}

impl InUser {
    /// Asks the program to come back. It may not; the vCPU's thread in the monitor sees to that.
    fn call_back(&self, vcpu: u32) {
        self.wanted.store(true, SeqCst);
        self.shared.request_stop(vcpu);
    }
}

impl Process {
    fn tally(&self, vcpu: u32) -> &Tally {
        &self.tallies[vcpu as usize]
    }

    fn entered(&self, vcpu: u32) -> MutexGuard<'_, Entered> {
        self.entered[vcpu as usize].lock().expect("no thread panics with the lock held")
    }

    /// A vCPU enters a program by the monitor.
    fn enter(&self, vcpu: u32, user: Arc<InUser>) {
        let mut entered = self.entered(vcpu);
        entered.by_root.retain(|_, user| !user.shared.is_dead());
        entered.by_root.insert(user.root, user.clone());
        entered.by_monitor = Some(user);
        entered.on_the_way = None;
    }

    /// Whether a vCPU is in user mode under a root, or about to be.
    fn is_entered(&self, root: u64) -> bool {
        (0..self.pages.vcpus()).any(|vcpu| {
            self.entered(vcpu).on_the_way == Some(root)
                || self.running(vcpu).is_some_and(|user| user.root == root)
        })
    }

    /// The program that a vCPU says it entered by itself, and that has trapped: the monitor waits for it from here on.
    fn taken_over(&self, vcpu: u32) -> Option<Arc<InUser>> {
        let root = self.kernel.shared.handover(vcpu).direct_root.load(Relaxed);
        let mut entered = self.entered(vcpu);
        entered.by_monitor = entered.by_root.get(&root).cloned();
        self.kernel.shared.handover(vcpu).direct.store(0, SeqCst);
        entered.by_monitor.clone()
    }

    /// The program that a vCPU runs now, if it is not in its guest kernel.
    fn running(&self, vcpu: u32) -> Option<Arc<InUser>> {
        let handover = self.kernel.shared.handover(vcpu);
        let direct = handover.direct.load(SeqCst) != 0;
        let entered = self.entered(vcpu);
        if direct {
            entered.by_root.get(&handover.direct_root.load(Relaxed)).cloned()
        } else {
            entered.by_monitor.clone()
        }
    }

    /// Wants a vCPU back that may be in user mode. Whether it was.
    fn call_back(&self, vcpu: u32) -> bool {
        let Some(user) = self.running(vcpu) else { return false };
        user.call_back(vcpu);
        // Its thread watches over that, wherever it waits.
        user.shared.look(vcpu);
        self.kernel.shared.look(vcpu);
        true
    }

    /// Whether a vCPU is wanted in its guest kernel for an upcall.
    fn upcall_pending(&self, vcpu: u32) -> bool {
        self.pages.page(vcpu).upcall.load(SeqCst) & upcall::PENDING != 0
    }
}

impl Notify for Process {
    fn notify(&self, vcpu: u32) {
        self.upcalls[vcpu as usize].fetch_add(1, Relaxed);
        let page = self.pages.page(vcpu);
        if self.call_back(vcpu) {
            return;
        }
        // The event is stored before this is called, with a full fence: hv_stub_block does it the other way round.
        match page.run_state.load(SeqCst) {
            run_state::BLOCKED => Machine::wake(&page.upcall),
            run_state::STOPPED => {}
            _ if page.upcall.load(SeqCst) & upcall::MASKED != 0 => {}
            // In a call, and when it has woken another, the vCPU looks before it returns.
            _ if self.kernel.shared.handover(vcpu).turn.load(SeqCst) != TURN_GUEST => {}
            _ if self.kernel.shared.handover(vcpu).looks.load(SeqCst) != 0 => {}
            _ => self.kernel.shared.signal(vcpu),
        }
    }

    fn pending(&self, vcpu: u32) {
        // It says so before it looks at what is pending; whoever calls this has stored that before.
        if self.kernel.shared.handover(vcpu).polls.load(SeqCst) != 0 {
            self.kernel.shared.look(vcpu);
        }
    }
}

impl AddressSpaces for Process {
    fn yield_to(&self, _: u32) {
        // Whom the host's scheduler runs instead is its own choice; nothing better is to be had without privileges.
        std::thread::yield_now();
    }

    fn entry_changed(&self, entry: u64) {
        self.users.entry_changed(entry);
    }

    fn flush(&self) {
        self.users.flush();
    }

    fn flush_kernel(&self) {
        self.users.flush_kernel();
    }

    fn root_created(&self, _: u64) {} // it costs nothing until it is entered

    fn forget_root(&self, root: u64) -> bool {
        let vcpus = 0..self.pages.vcpus();
        self.users.forbid(root);
        if self.is_entered(root) {
            return false;
        }
        vcpus.for_each(|vcpu| drop(self.entered(vcpu).by_root.remove(&root)));
        self.users.destroy(root);
        true
    }

    fn frames_written(&self) {
        self.users.frames_written();
    }

    fn release_user(&self, context: u64) -> bool {
        self.users.release(context)
    }
}

impl Control for Process {
    fn start_vcpu(
        self: Arc<Self>,
        vcpu: u32,
        registers: &Registers,
    ) -> Result<Box<dyn VcpuRunner>, EngineError> {
        let open = self.gate.pass();
        self.kernel.ensure_vcpu(vcpu)?;
        drop(open);
        self.kernel.shared.write_first_context(vcpu, registers);
        Ok(Box::new(vcpu::Vcpu::new(self, vcpu)))
    }

    fn request_stop(&self, vcpu: u32) {
        self.call_back(vcpu); // the guest kernel then stops at the end of the call that entered it
        self.kernel.shared.handover(vcpu).stop.store(1, SeqCst);
        Machine::wake(&self.pages.page(vcpu).upcall);
        self.pending(vcpu);
        self.kernel.shared.signal(vcpu);
    }

    fn cancel_stop(&self, vcpu: u32) {
        self.kernel.shared.cancel_stop(vcpu);
    }

    fn computes(&self, vcpu: u32) -> bool {
        let sleeps =
            matches!(self.pages.page(vcpu).run_state.load(SeqCst), run_state::BLOCKED | run_state::STOPPED);
        !sleeps && self.kernel.shared.handover(vcpu).polls.load(SeqCst) == 0
    }

    fn request_sample(&self, vcpu: u32) {
        match self.running(vcpu) {
            Some(user) => {
                self.samples[vcpu as usize].store(true, SeqCst);
                user.shared.request_stop(vcpu);
            }
            None => self.kernel.shared.request_stop(vcpu),
        }
    }

    fn kill(&self) {
        self.gate.end();
        self.kernel.kill();
        self.users.kill_all();
    }

    fn wait_until_gone(&self) {
        self.kernel.shared.wait_until_gone();
        self.users.sandboxes().iter().for_each(|sandbox| sandbox.shared.wait_until_gone());
    }

    fn cpu_time(&self, vcpu: u32) -> Option<u64> {
        self.kernel.shared.cpu_time(vcpu)
    }

    fn counters(&self, vcpu: u32) -> Counters {
        let guest_spins = self.kernel.shared.handover(vcpu).spun.load(Relaxed);
        self.tallies[vcpu as usize].counters(guest_spins, self.upcalls[vcpu as usize].load(Relaxed))
    }

    fn space_counts(&self) -> SpaceCounts {
        self.users.counts()
    }

    fn held_back(&self) -> Duration {
        self.gate.held_back()
    }

    fn total_cpu_time(&self) -> u64 {
        self.processes.cpu_time()
    }

    fn hold_back(&self, held_back: bool) {
        self.processes.hold_back(held_back);
    }

    fn run_delay(&self, vcpu: u32) -> u64 {
        let running = self.running(vcpu);
        let programs = running.iter().map(|user| &*user.shared);
        let new =
            core::iter::once(&*self.kernel.shared).chain(programs).map(|shared| shared.new_delay(vcpu)).sum();
        self.delays[vcpu as usize].fetch_add(new, Relaxed) + new
    }

    fn processes(&self) -> Vec<u32> {
        let users = self.users.sandboxes();
        core::iter::once(self.kernel.pid()).chain(users.iter().map(|sandbox| sandbox.pid())).collect()
    }
}

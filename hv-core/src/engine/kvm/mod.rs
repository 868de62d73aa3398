//! The KVM engine: guest code on the processor's own virtualisation, where a host has it.
//!
//! The guest kernel runs in ring 0 of a virtual machine of KVM's, in an address space that the engine makes, and programs in ring
//! 3 on the guest's own page tables. Behind the hypercall page is code of the engine's, in ring 0, too ([`ring0`](layout)): it
//! serves page tables, enters programs and takes their traps without leaving the guest. What it does not serve, leaves by writing
//! to a port. To the host all of that is the guest's: what it finds in the engine's pages is a claim, and KVM is what holds the
//! guest.
//!
//! Start at [`KvmEngine::start`](Engine::start). `host` is what this machine's KVM has, `machine_memory` what the engine lays out
//! for a VM, `code` and `ring0/` what runs there, `vcpu` one vCPU, `kick` how its thread is had out, `probe` how fast it all is.

mod code;
mod host;
mod kick;
#[path = "ring0/layout.rs"]
pub(crate) mod layout;
mod machine_memory;
mod probe;
mod registers;
#[expect(dead_code, reason = "a part of it is for ring 0")]
#[path = "ring0/tables.rs"]
mod tables;
#[cfg(test)]
mod tables_tests;
mod vcpu;

pub use host::NoKvm;
pub use probe::{Probe, probe};

use super::process::handover::{Atomics, Machine as Futex};
use super::tally::Tally;
use super::{
    AddressSpaces, Control, Counters, Engine, EngineError, Registers, Setup, SpaceCounts, VcpuRunner,
};
use crate::cpu_share::Gate;
use crate::events::{Notify, VcpuPages};
use crate::memory::GuestMemory;
use host::{Host, host, refused};
use hv_abi::vcpu::{run_state, upcall};
use kick::{Seat, wanted};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuFd, VmFd};
use layout::frame;
use machine_memory::{MachineMemory, Xstate};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, fence};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

// What `layout` repeats.
const _: () = {
    use hv_abi::address;
    assert!(layout::SLOT_255 == address::SLOT_255 && layout::VCPU_PAGES == address::VCPU_PAGES);
    assert!(layout::VCPU_STRIDE == address::VCPU_STRIDE && layout::area::CLOCK == address::CLOCK_PAGE);
    assert!(layout::DIRECT_MAP == address::DIRECT_MAP && layout::KERNEL_SPACE == address::KERNEL_SPACE);
    assert!(layout::GATE == hv_abi::user::GATE && layout::LOWEST_USER == hv_abi::user::LOWEST_USER);
    assert!(layout::PAGE == hv_abi::PAGE_SIZE && tables::EAGER == hv_abi::mmu::EAGER);
    assert!(tables::UPDATE_MAX == hv_abi::mmu::MMU_UPDATE_MAX);
    assert!(tables::MUST_BE_ZERO == hv_abi::mmu::Entry::MUST_BE_ZERO);
    assert!(tables::ADDRESS == hv_abi::mmu::Entry::ADDRESS);
    assert!(layout::area::END <= layout::VCPU_STRIDE);
};

/// Opens KVM, if it is there: before whoever embeds this gives up its right to open files.
pub(crate) fn prepare() {
    let _ = host(); // that it cannot be used is told when it is wanted
}

/// Whether guests can run on KVM here, fast or slowly.
///
/// # Errors
///
/// Why they cannot.
pub fn usable() -> Result<(), &'static NoKvm> {
    host().map(drop)
}

impl From<&'static NoKvm> for EngineError {
    fn from(why: &'static NoKvm) -> Self {
        Self::NoKvm(why.to_string())
    }
}

impl From<NoKvm> for EngineError {
    fn from(why: NoKvm) -> Self {
        Self::NoKvm(why.to_string())
    }
}

/// Runs guest code on KVM.
pub(crate) struct KvmEngine;

impl Engine for KvmEngine {
    fn xstate(&self) -> (u64, u64) {
        host().map_or_else(|_| crate::cpu::xstate(), |host| (host.xstate_size, host.xstate_mask))
    }

    fn start(&self, setup: &Setup<'_>) -> Result<Arc<dyn Control>, EngineError> {
        Ok(Arc::new(Virtual::new(host()?, setup)?))
    }
}

/// A running VM.
struct Virtual {
    host: &'static Host,
    /// Before the memory that it uses: what is dropped first.
    vcpus: Vec<PerVcpu>,
    vm: VmFd,
    machine: MachineMemory,
    memory: GuestMemory,
    pages: Arc<VcpuPages>,
    gate: Arc<Gate>,
    /// Not 0 while it is held back; a futex.
    held_back: AtomicU32,
    dead: AtomicBool,
    /// Rises when translations are to be forgotten.
    flushes: AtomicU32,
    /// Held while a root gets or loses its place.
    places: Mutex<()>,
}

/// What there is of a vCPU, whoever runs it.
#[derive(Default)]
struct PerVcpu {
    /// KVM's, while no thread runs it.
    fd: Mutex<Option<VcpuFd>>,
    seat: Seat,
    tally: Tally,
    upcalls: AtomicU64,
    /// It is to come to a stopping point, or to be seen where it is.
    stop: AtomicBool,
    sample: AtomicBool,
    /// It waits in a call; and the futex for that.
    polls: AtomicBool,
    looks: AtomicU32,
    /// What threads waited for a processor that ran it before.
    delay_before: AtomicU64,
}

impl Virtual {
    fn new(host: &'static Host, setup: &Setup<'_>) -> Result<Self, EngineError> {
        kick::prepare();
        let xstate =
            Xstate { mask: host.xstate_mask, size: host.xstate_size, has_xsaveopt: host.has_xsaveopt };
        let machine = MachineMemory::build(setup, host.addresses, &xstate)?;
        let vm = host.kvm.create_vm().map_err(refused("a virtual machine"))?;
        let this = Self {
            host,
            vcpus: (0..setup.pages.vcpus()).map(|_| PerVcpu::default()).collect(),
            vm,
            machine,
            memory: setup.memory.clone(),
            pages: setup.pages.clone(),
            gate: setup.gate.clone(),
            held_back: AtomicU32::new(0),
            dead: AtomicBool::new(false),
            flushes: AtomicU32::new(0),
            places: Mutex::new(()),
        };
        this.give_memory()?;
        Ok(this)
    }

    #[expect(unsafe_code, reason = "KVM is given memory by its address")]
    fn give_memory(&self) -> Result<(), NoKvm> {
        let guest = machine_memory::Region {
            machine: 0,
            host: self.memory.host_address(),
            length: self.memory.size(),
        };
        let regions = core::iter::once(guest).chain(self.machine.regions(&self.pages));
        for (slot, region) in (0..).zip(regions) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.machine,
                memory_size: region.length,
                userspace_addr: region.host,
            };
            // SAFETY: the host's memory at that address must stay mapped, and may change at any time, while the VM runs. It is
            // guest memory and files of this value's, which it keeps until the VM is gone (fields are dropped in order), and all
            // of them are looked at by atomics and copies alone.
            unsafe { self.vm.set_user_memory_region(region) }.map_err(refused("memory for a guest"))?;
        }
        Ok(())
    }

    fn of(&self, vcpu: u32) -> &PerVcpu {
        &self.vcpus[vcpu as usize]
    }

    fn places(&self) -> MutexGuard<'_, ()> {
        self.places.lock().expect("no thread panics with the lock held")
    }

    /// Whether a vCPU says that it runs a program under a root.
    fn is_entered(&self, root: u64) -> bool {
        fence(SeqCst);
        (0..self.pages.vcpus()).any(|vcpu| self.machine.engine_page(vcpu).user_root.load(SeqCst) == root)
    }

    /// Takes a root's place away. Not, and gives `false`, if a vCPU is in user mode under it.
    fn vacate(&self, place: usize) -> bool {
        let space = &self.machine.shared().spaces[place];
        let root = space.root.swap(0, SeqCst);
        let free = root == 0 || !self.is_entered(root);
        if !free {
            space.root.store(root, SeqCst);
        }
        free
    }

    /// Sees to it that a root has a place. Whether there was one.
    fn ensure_place(&self, root: u64) -> bool {
        let _alone = self.places();
        let tables = self.machine.tables(&self.memory);
        if tables.find(root).is_some() {
            return true;
        }
        let spaces = &self.machine.shared().spaces;
        let empty = tables::places(root).find(|place| spaces[*place].root.load(SeqCst) == 0);
        let Some(place) = empty.or_else(|| tables::places(root).find(|place| self.vacate(*place))) else {
            return false;
        };
        spaces[place].stale.store(1, SeqCst);
        spaces[place].root.store(root, SeqCst);
        true
    }

    /// Has each vCPU forget its translations before it goes on to the guest's own code.
    fn ask_to_forget(&self) -> u32 {
        let now = self.flushes.fetch_add(1, SeqCst) + 1;
        let pages = (0..self.pages.vcpus()).map(|vcpu| self.machine.engine_page(vcpu));
        pages.for_each(|page| page.flush_wanted.store(now, SeqCst));
        now
    }

    /// Nanoseconds that a vCPU's thread has run, and waited for a processor.
    fn schedstat(&self, vcpu: u32) -> Option<[u64; 2]> {
        let thread = self.of(vcpu).seat.thread()?;
        let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
        let mut numbers = text.split(' ').map(|number| number.parse().ok());
        Some([numbers.next()??, numbers.next()??])
    }

    /// Has a vCPU look around, wherever it is.
    fn rouse(&self, vcpu: u32, what: u32) {
        let of = self.of(vcpu);
        of.seat.want(what);
        Futex::wake(&self.pages.page(vcpu).upcall);
        of.looks.fetch_add(1, SeqCst);
        Futex::wake(&of.looks);
        Futex::wake(&self.held_back);
    }
}

impl Notify for Virtual {
    fn notify(&self, vcpu: u32) {
        let of = self.of(vcpu);
        of.upcalls.fetch_add(1, Relaxed);
        let page = self.pages.page(vcpu);
        // The event is stored before this is called, with a full fence: ring 0 says what it does, and looks afterwards.
        match page.run_state.load(SeqCst) {
            run_state::BLOCKED => Futex::wake(&page.upcall),
            run_state::STOPPED => {}
            _ => {
                let masked = page.upcall.load(SeqCst) & upcall::MASKED != 0;
                // A program is interrupted though upcalls are masked.
                if !masked || self.machine.engine_page(vcpu).user_root.load(SeqCst) != 0 {
                    of.seat.want(wanted::INTERRUPT);
                }
            }
        }
    }

    fn pending(&self, vcpu: u32) {
        let of = self.of(vcpu);
        if of.polls.load(SeqCst) {
            of.looks.fetch_add(1, SeqCst);
            Futex::wake(&of.looks);
        }
    }
}

impl AddressSpaces for Virtual {
    fn yield_to(&self, _: u32) {
        std::thread::yield_now();
    }

    fn entry_changed(&self, entry: u64) {
        self.machine.tables(&self.memory).note_change(entry);
    }

    fn flush(&self) {
        let now = self.ask_to_forget();
        for vcpu in 0..self.pages.vcpus() {
            let seat = &self.of(vcpu).seat;
            let runs = seat.runs();
            if runs.is_multiple_of(2) {
                continue; // it looks on its way in
            }
            seat.want(wanted::INTERRUPT);
            let done = || self.machine.engine_page(vcpu).flush_done.load(SeqCst) == now;
            while seat.runs() == runs && !done() && !self.dead.load(SeqCst) {
                std::thread::yield_now();
            }
        }
    }

    fn flush_kernel(&self) {
        self.ask_to_forget();
    }

    fn root_created(&self, root: u64) {
        self.machine.frame(root).fetch_or(frame::ROOT, SeqCst);
    }

    fn forget_root(&self, root: u64) -> bool {
        let _alone = self.places();
        let place = self.machine.tables(&self.memory).find(root);
        let free = place.is_none_or(|place| self.vacate(place));
        if free {
            self.machine.frame(root).fetch_and(!frame::ROOT, SeqCst);
        }
        free
    }

    fn frames_written(&self) {}

    fn release_user(&self, _: u64) -> bool {
        false // extended state is in its area whenever the guest kernel runs
    }
}

impl Control for Virtual {
    fn start_vcpu(
        self: Arc<Self>,
        vcpu: u32,
        registers: &Registers,
    ) -> Result<Box<dyn VcpuRunner>, EngineError> {
        if vcpu != 0 {
            self.machine.shared().several.store(1, SeqCst);
        }
        let kept = self.of(vcpu).fd.lock().expect("no thread panics with the lock held").take();
        Ok(Box::new(vcpu::Vcpu::new(self, vcpu, kept, registers)?))
    }

    fn request_stop(&self, vcpu: u32) {
        // It stays wanted until the request is taken back. To call it again before it has come would keep it from coming.
        if !self.of(vcpu).stop.swap(true, SeqCst) {
            self.rouse(vcpu, wanted::LOOK);
        }
    }

    fn cancel_stop(&self, vcpu: u32) {
        self.of(vcpu).stop.store(false, SeqCst);
        self.of(vcpu).sample.store(false, SeqCst);
    }

    fn computes(&self, vcpu: u32) -> bool {
        let state = self.pages.page(vcpu).run_state.load(SeqCst);
        !matches!(state, run_state::BLOCKED | run_state::STOPPED) && !self.of(vcpu).polls.load(SeqCst)
    }

    fn request_sample(&self, vcpu: u32) {
        if !self.of(vcpu).sample.swap(true, SeqCst) {
            self.rouse(vcpu, wanted::LOOK);
        }
    }

    fn kill(&self) {
        self.gate.end();
        self.dead.store(true, SeqCst);
        (0..self.pages.vcpus()).for_each(|vcpu| self.rouse(vcpu, wanted::LOOK));
    }

    fn wait_until_gone(&self) {
        let runs = || self.vcpus.iter().any(|vcpu| vcpu.seat.is_in_guest());
        while runs() {
            (0..self.pages.vcpus()).for_each(|vcpu| self.rouse(vcpu, wanted::LOOK));
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn cpu_time(&self, vcpu: u32) -> Option<u64> {
        self.schedstat(vcpu).map(|[ran, _]| ran)
    }

    fn counters(&self, vcpu: u32) -> Counters {
        let of = self.of(vcpu);
        of.tally.counters(0, of.upcalls.load(Relaxed))
    }

    fn space_counts(&self) -> SpaceCounts {
        let spaces = self.machine.shared().spaces.iter();
        let ready = spaces.filter(|space| space.root.load(Relaxed) != 0).count() as u64;
        SpaceCounts { spaces: ready, ..SpaceCounts::default() }
    }

    fn held_back(&self) -> Duration {
        self.gate.held_back()
    }

    fn total_cpu_time(&self) -> u64 {
        0 // guest code runs on the vCPUs' own threads, whose time is counted as those'
    }

    fn hold_back(&self, held_back: bool) {
        self.held_back.store(held_back.into(), SeqCst);
        (0..self.pages.vcpus()).for_each(|vcpu| self.rouse(vcpu, wanted::LOOK));
        let runs = || self.vcpus.iter().any(|vcpu| vcpu.seat.is_in_guest());
        while held_back && runs() && !self.dead.load(SeqCst) {
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn run_delay(&self, vcpu: u32) -> u64 {
        let before = self.of(vcpu).delay_before.load(Relaxed);
        before + self.schedstat(vcpu).map_or(0, |[_, waited]| waited)
    }

    fn processes(&self) -> Vec<u32> {
        Vec::new()
    }
}

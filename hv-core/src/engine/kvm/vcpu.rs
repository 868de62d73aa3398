//! One vCPU of the KVM engine: the monitor's thread that serves it is the one that runs its guest code.
//!
//! What ring 0 leaves the guest for is in the vCPU's engine page; for the rest, this looks where the guest is by its registers.
//! Stops need nothing of ring 0: in the guest kernel's own code the thread stops where it is, and in the engine's it asks for the
//! moment at which interrupts are on again, which is behind the entry's end.

use super::kick::{Seat, Timer, wanted};
use super::layout::{ENTER, EnginePage, SLOT_255, port, vector};
use super::{Futex, NoKvm, Virtual, registers};
use crate::clock::{self, monotonic_ns};
use crate::engine::process::handover::Atomics;
use crate::engine::tally::Tally;
use crate::engine::{CallCounts, EngineError, EnterError, Exit, Fault, Registers, Trap, VcpuRunner};
use hv_abi::Status;
use hv_abi::call::woken_by;
use hv_abi::user::UserContext;
use hv_abi::vcpu::upcall;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

const GENERAL_PROTECTION: u64 = 13;
/// In the flags: interrupts are on.
const IF: u64 = 1 << 9;

pub(super) struct Vcpu {
    vm: Arc<Virtual>,
    vcpu: u32,
    /// `None` once it was given back.
    fd: Option<VcpuFd>,
    /// Made on the thread that runs it.
    timer: Option<Timer>,
    /// The guest's deadline of the `BLOCK` that it is in.
    blocks: Option<u64>,
    /// It is to get the interrupt.
    interrupt: bool,
    /// It is in the engine's code, at a port.
    in_call: bool,
    /// It has come to an exception of the guest kernel's, whose registers are in the engine page.
    trapped: bool,
}

/// What came of being in the guest.
enum Came {
    Out(Exit),
    /// To look around.
    Again,
}

impl Vcpu {
    pub(super) fn new(
        vm: Arc<Virtual>,
        vcpu: u32,
        kept: Option<VcpuFd>,
        first: &Registers,
    ) -> Result<Self, EngineError> {
        let fd = match kept {
            Some(fd) => fd,
            None => vm.vm.create_vcpu(vcpu.into()).map_err(super::refused("a virtual processor"))?,
        };
        registers::begin(&vm, vcpu, &fd, first)?;
        Ok(Self {
            vm,
            vcpu,
            fd: Some(fd),
            timer: None,
            blocks: None,
            interrupt: false,
            in_call: false,
            trapped: false,
        })
    }

    fn fd(&mut self) -> &mut VcpuFd {
        self.fd.as_mut().expect("it is given back at its end")
    }

    fn seat(&self) -> &Seat {
        &self.vm.of(self.vcpu).seat
    }

    fn tally(&self) -> &Tally {
        &self.vm.of(self.vcpu).tally
    }

    fn page(&self) -> &EnginePage {
        self.vm.machine.engine_page(self.vcpu)
    }

    /// The calling thread runs it from here on.
    fn sit_down(&mut self) -> Result<(), std::io::Error> {
        self.timer = Some(Timer::new()?);
        let vm = self.vm.clone();
        vm.of(self.vcpu).seat.take(registers::immediate_exit(self.fd()));
        Ok(())
    }

    fn is_wanted_to_stop(&self) -> bool {
        let of = self.vm.of(self.vcpu);
        of.stop.load(SeqCst) || of.sample.load(SeqCst)
    }

    /// Waits in `BLOCK`. `None`: it is over.
    fn block(&mut self, until: u64, deadline: u64) -> Option<Exit> {
        let vm = self.vm.clone();
        let word = &vm.pages.page(self.vcpu).upcall;
        loop {
            let seen = word.load(SeqCst);
            let now = clock::read(vm.pages.clock());
            let why = match () {
                () if seen & upcall::PENDING != 0 => woken_by::EVENT,
                () if now >= until => woken_by::DEADLINE,
                () if vm.dead.load(SeqCst) => return Some(ended()),
                () if self.is_wanted_to_stop() => return Some(Exit::StoppedInBlock),
                () => {
                    let host = monotonic_ns();
                    if host >= deadline {
                        return Some(Exit::Deadline);
                    }
                    let left = (until - now).min(deadline - host);
                    self.tally().sleeps.add(1);
                    Futex::sleep(word, seen, Some(Duration::from_nanos(left)));
                    continue;
                }
            };
            self.answer(Status::SUCCESS, why);
            return None;
        }
    }

    /// Comes to a stopping point, or as near as it can at once. `None`: it has to run for that.
    fn stop(&mut self) -> Option<Exit> {
        if self.trapped || self.in_call {
            self.leave_soon();
            return None;
        }
        let found = registers::read(self.fd()).ok()?;
        if found.cs & 3 != 0 {
            let root = self.page().user_root.load(SeqCst);
            if !self.vm.of(self.vcpu).stop.load(SeqCst) {
                self.vm.of(self.vcpu).sample.store(false, SeqCst);
                return Some(Exit::Sampled { root, registers: found.registers });
            }
            self.interrupt = true; // its guest kernel is to have it back
            self.leave_soon();
            return None;
        }
        if found.registers.rip < SLOT_255 {
            return Some(Exit::Stopped(found.registers));
        }
        if found.registers.rflags & IF != 0 && is_entry(found.registers.rip) {
            // It has called, and no more: the entry's first instruction, `cli`, is made for it.
            let registers = Registers {
                rip: found.registers.rip + 1,
                rflags: found.registers.rflags & !IF,
                ..found.registers
            };
            registers::write(self.fd(), &registers).ok()?;
        }
        self.leave_soon();
        None
    }

    /// It comes out when interrupts are on.
    fn leave_soon(&mut self) {
        self.fd().get_kvm_run().request_interrupt_window = 1;
    }

    /// Gives it the interrupt, if it is to have it and can.
    fn give_interrupt(&mut self) -> Result<(), NoKvm> {
        let page = self.vm.machine.engine_page(self.vcpu);
        let forgets = page.flush_wanted.load(SeqCst) != page.flush_done.load(SeqCst);
        self.interrupt |= forgets && !self.in_call; // a call's end looks by itself
        if !self.interrupt {
            return Ok(());
        }
        let run = self.fd().get_kvm_run();
        if run.ready_for_interrupt_injection != 0 && run.if_flag != 0 {
            registers::interrupt(self.fd(), vector::UPCALL as u32)?;
            self.interrupt = false;
        } else {
            self.leave_soon();
        }
        Ok(())
    }

    /// Is in the guest until something comes.
    fn enter(&mut self) -> Came {
        let vm = self.vm.clone();
        let seat = &vm.of(self.vcpu).seat;
        if !seat.enter() {
            return Came::Again;
        }
        (self.in_call, self.trapped) = (false, false);
        let exit = self.fd.as_mut().expect("it is given back at its end").run();
        seat.exit();
        vm.of(self.vcpu).tally.exits.add(1);
        let came = match exit {
            Ok(VcpuExit::IoOut(at, _)) => return self.left_by(at),
            Ok(VcpuExit::IrqWindowOpen) => Came::Again,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Came::Again,
            Ok(VcpuExit::Hlt | VcpuExit::IoIn(..)) => return self.privileged(),
            Ok(VcpuExit::MmioRead(at, _) | VcpuExit::MmioWrite(at, _)) => {
                died(format!("an entry of its page tables leads to P {at:#x}, which is not in its memory"))
            }
            Ok(VcpuExit::Shutdown) => {
                died("a fault while a fault was being told: its vCPU is shut down".into())
            }
            Ok(other) => died(format!("KVM gave it up: {other:?}")),
            Err(error) => died(format!("KVM could not run it: {error}")),
        };
        self.fd().get_kvm_run().request_interrupt_window = 0;
        came
    }

    /// Ring 0 has written to a port.
    fn left_by(&mut self, at: u16) -> Came {
        self.fd().get_kvm_run().request_interrupt_window = 0;
        let [first, second, ..] = self.page().arguments.each_ref().map(|argument| argument.load(Relaxed));
        // It looks for events, and for translations to forget, before it goes back.
        (self.in_call, self.interrupt) = (true, false);
        match at {
            port::CALL => {
                let number = self.page().number.load(Relaxed);
                let arguments = self.page().arguments.each_ref().map(|argument| argument.load(Relaxed));
                self.tally().calls[CallCounts::kind_of(number)].add(1);
                Came::Out(Exit::Hypercall { number, arguments })
            }
            port::BLOCK => {
                self.blocks = Some(first);
                Came::Again
            }
            port::ENTER => {
                self.tally().calls[CallCounts::ENTER_USER].add(1);
                Came::Out(Exit::EnterUser { root: first, context: second })
            }
            port::TRAP => {
                self.trapped = true;
                self.tally().traps.kernel.add(1);
                Came::Out(Exit::Trap(self.trap()))
            }
            _ => self.privileged(),
        }
    }

    /// The guest kernel executed what it must not, and what KVM shows its user.
    fn privileged(&mut self) -> Came {
        let registers = registers::read(self.fd()).map(|found| found.registers).unwrap_or_default();
        let fault = Fault::Exception { vector: GENERAL_PROTECTION, error: 0 };
        Came::Out(Exit::Trap(Trap { fault, registers }))
    }

    /// The exception that ring 0 tells of.
    fn trap(&self) -> Trap {
        let words = self.page().trap.each_ref().map(|word| word.load(Relaxed));
        let mut registers = registers::from_words(&words);
        let [vector, error, address] = [words[19], words[20], words[21]];
        let header = self.vm.machine.header();
        if (header.syscall..header.syscall_end).contains(&registers.rip) {
            registers.rip = registers.rcx.wrapping_sub(2); // as `syscall` has left it
            let number = registers.rax as u32;
            return Trap { fault: Fault::SystemCall { number }, registers };
        }
        if (header.upcall..header.upcall_end).contains(&registers.rip) {
            // Its stack has no room for an upcall: what was interrupted is told.
            let [rip, _, rflags, rsp, _] = self.vm.machine.interrupt_frame(self.vcpu);
            registers = Registers { rip, rflags, rsp, ..registers };
        }
        let fault = registers::fault(vector, error, address, registers.rip >= SLOT_255);
        Trap { fault, registers }
    }
}

/// Whether a V is the first instruction of one of the hypercall page's entries.
fn is_entry(virt: u64) -> bool {
    use hv_abi::address::entry;
    [entry::CALL, entry::BLOCK, entry::UPCALL_RETURN, entry::ENTER_USER].contains(&(virt - SLOT_255))
}

fn ended() -> Exit {
    Exit::Died("the VM was ended".into())
}

fn died(why: String) -> Came {
    Came::Out(Exit::Died(why))
}

impl VcpuRunner for Vcpu {
    fn run(&mut self, deadline: u64) -> Exit {
        if self.timer.is_none()
            && let Err(error) = self.sit_down()
        {
            return Exit::Died(format!("the host has no timer for its vCPU: {error}"));
        }
        loop {
            registers::clear_immediate_exit(self.fd());
            let wanted = self.seat().take_wanted();
            self.interrupt |= wanted & wanted::INTERRUPT != 0 && !self.in_call;
            if self.vm.dead.load(SeqCst) {
                return ended();
            }
            if let Some(until) = self.blocks {
                match self.block(until, deadline) {
                    Some(exit) => return exit,
                    None => continue,
                }
            }
            if self.is_wanted_to_stop()
                && let Some(exit) = self.stop()
            {
                return exit;
            }
            if monotonic_ns() >= deadline {
                return Exit::Deadline;
            }
            if self.vm.held_back.load(SeqCst) != 0 {
                Futex::sleep(&self.vm.held_back, 1, None);
                continue;
            }
            if let Some(timer) = &mut self.timer {
                timer.set(deadline);
            }
            if let Err(error) = self.give_interrupt() {
                return Exit::Died(error.to_string());
            }
            match self.enter() {
                Came::Out(exit) => return exit,
                Came::Again => {}
            }
        }
    }

    fn answer(&mut self, status: Status, value: u64) {
        self.blocks = None;
        self.page().status.store(status.0, Relaxed);
        self.page().value.store(value, Relaxed);
    }

    fn resume(&mut self) {}

    fn enter_user(&mut self, root: u64, _: u64, user: &UserContext) -> Result<(), EnterError> {
        if user.xstate_valid == 0 {
            return Err(EnterError::NoExtendedState);
        }
        if !self.vm.ensure_place(root) {
            let why = "all places for its root are taken by roots under which vCPUs run";
            return Err(EnterError::Engine(EngineError::NoKvm(why.into())));
        }
        self.page().status.store(ENTER, Relaxed);
        Ok(())
    }

    fn sleep_in_call(&mut self, deadline: u64, ready: &mut dyn FnMut() -> bool) {
        let of = self.vm.of(self.vcpu);
        of.polls.store(true, SeqCst);
        let seen = of.looks.load(SeqCst);
        if !ready() && !self.vm.dead.load(SeqCst) {
            let left = deadline.saturating_sub(monotonic_ns());
            Futex::sleep(&of.looks, seen, Some(Duration::from_nanos(left)));
        }
        of.polls.store(false, SeqCst);
    }

    fn has_died(&self) -> bool {
        self.vm.dead.load(SeqCst)
    }

    fn park(&mut self) {
        let of = self.vm.of(self.vcpu);
        let waited = self.vm.schedstat(self.vcpu).map_or(0, |[_, waited]| waited);
        of.delay_before.fetch_add(waited, Relaxed);
        of.seat.leave();
        self.timer = None;
        *of.fd.lock().expect("no thread panics with the lock held") = self.fd.take();
    }

    fn registers_in_call(&self) -> Registers {
        let page = self.page();
        Registers { rsp: page.rsp.load(Relaxed), rbp: page.rbp.load(Relaxed), ..Registers::default() }
    }

    fn guest_thread(&self) -> Option<i32> {
        self.seat().thread()
    }

    fn set_registers(&mut self, registers: &Registers) {
        if self.trapped {
            let words = registers::to_words(registers);
            self.page().trap.iter().zip(words).for_each(|(word, value)| word.store(value, Relaxed));
        } else if registers::write(self.fd(), registers).is_err() {
            tracing::warn!(vcpu = self.vcpu, "KVM does not take its registers");
        }
    }

    fn fx_state(&self) -> Option<[u64; 64]> {
        registers::fx_state(self.fd.as_ref()?)
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        if self.timer.is_some() {
            self.seat().leave();
        }
    }
}

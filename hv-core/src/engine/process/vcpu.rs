//! One vCPU of the process engine: its threads in the sandboxes, seen from the monitor's thread that serves it.
//!
//! At any time it runs its guest kernel or one program, and this waits for the one that runs.

use super::frame::UserFault;
use super::handover::{
    Handover, Machine, PARK, Server, TURN_CALL, TURN_ENTER_USER, TURN_GUEST, TURN_NOTIFY, TURN_SYSCALL,
    TURN_TRAP, TURN_USER_TRAP, Wait, Words,
};
use super::layout::*;
use super::sandbox::Shared;
use super::spin::{Parting, Spin};
use super::users;
use super::{InUser, Process, frame, stub};
use crate::clock::monotonic_ns;
use crate::engine::tally::Tally;
use crate::engine::{
    Access, CallCounts, EnterError, Exit, Fault, Registers, Trap, UserCause, UserExit, VcpuRunner,
};
use crate::events::Notify;
use crate::mmu::KERNEL;
use hv_abi::address::DIRECT_MAP;
use hv_abi::user::UserContext;
use hv_abi::{PAGE_SIZE, Status};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

/// A program that used so much processor time, or so long, after it was called back will not come; nor one that sleeps,
/// though it has published nothing, each time that it is looked at after a signal. A host that is a virtual machine itself may
/// take tens of milliseconds to deliver a signal, and counts them as the program's.
const PATIENCE_CPU: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_ASLEEP: u32 = 10;
/// How often a program is called back.
const CALL_AGAIN: u64 = 1_000_000;
/// How often one that is waited for is looked at, at the least, in nanoseconds.
const LOOK_AGAIN: u64 = 20_000_000;

/// A program that has been called back and has not come.
struct CalledBack {
    user: Arc<InUser>,
    /// By the gate's clock, which stands while nothing of the guest may run.
    since: Duration,
    /// Its processor time then, in nanoseconds.
    used: u64,
    /// How often in a row it was found asleep.
    asleep: u32,
}

pub(super) struct Vcpu {
    process: Arc<Process>,
    vcpu: u32,
    spin: Spin,
    parting: Parting,
    /// What the vCPU asked for is answered: it is to be given the turn.
    answered: bool,
    /// The program that it entered last.
    entered: Option<Arc<InUser>>,
    /// This thread waits for that program, and not for the guest kernel.
    in_user: bool,
    /// A program has come back, and its guest kernel does not know yet.
    has_left: bool,
    called_back: Option<CalledBack>,
}

impl Vcpu {
    pub(super) fn new(process: Arc<Process>, vcpu: u32) -> Self {
        Self {
            parting: Parting::new(process.kernel.shared.handover(vcpu)),
            process,
            vcpu,
            spin: Spin::new(),
            answered: false,
            entered: None,
            in_user: false,
            has_left: false,
            called_back: None,
        }
    }

    /// The sandbox whose thread has the turn, or is asked for it.
    fn running(&self) -> &Shared {
        let user = self.entered.as_ref().filter(|_| self.in_user);
        user.map_or(&self.process.kernel.shared, |user| &user.shared)
    }

    /// The program that runs, if it has been called back.
    fn wanted(&self) -> Option<Arc<InUser>> {
        self.process.running(self.vcpu).filter(|user| user.wanted.load(SeqCst))
    }

    fn tally(&self) -> &Tally {
        self.process.tally(self.vcpu)
    }

    fn handover(&self) -> &Handover {
        self.running().handover(self.vcpu)
    }

    fn server(&self) -> Server<'_, Machine> {
        Server(words(self.handover()))
    }

    /// Whether this thread is on the processor that the vCPU was last seen on.
    fn together(&self) -> bool {
        let here = rustix::thread::sched_getcpu() as u32;
        let handover = self.handover();
        if handover.host_cpu.load(Relaxed) != here {
            handover.host_cpu.store(here, Relaxed);
        }
        here == handover.cpu.load(Relaxed)
    }

    /// Spins for a request: briefly, and then, if it is not for a thread on this very processor, as long as it pays.
    fn spin(&mut self) -> Option<u32> {
        let (turn, spun) = self.server().spin(self.spin.brief());
        self.tally().host_spins.add(spun.into());
        if turn.is_some() {
            return turn;
        }
        let limit = self.spin.limit(self.together());
        let (turn, spun) = self.server().spin(limit);
        self.tally().host_spins.add(spun.into());
        if turn.is_none() {
            self.spin.in_vain();
        }
        turn
    }

    /// Waits for the vCPU's turn to end.
    fn wait(&mut self, deadline: u64) -> Wait {
        if let Some(turn) = self.spin() {
            return Wait::Published(turn);
        }
        let before = monotonic_ns();
        self.tally().sleeps.add(1);
        let look = || {
            self.running().is_dead()
                || self.process.kernel.shared.is_dead()
                || (self.called_back.is_none() && self.wanted().is_some())
        };
        let left = || {
            let left = deadline.saturating_sub(monotonic_ns());
            (left > 0).then_some(Some(Duration::from_nanos(left)))
        };
        let wait = self.server().sleep(look, left);
        self.spin.slept(monotonic_ns() - before);
        wait
    }

    fn hypercall(&mut self) -> Exit {
        let handover = self.handover();
        if handover.in_block.load(Relaxed) != 0 {
            handover.in_block.store(0, Relaxed);
            return Exit::StoppedInBlock;
        }
        let number = handover.number.load(Relaxed);
        let arguments = handover.arguments();
        self.tally().calls[CallCounts::kind_of(number)].add(1);
        Exit::Hypercall { number, arguments }
    }

    /// What had trapped is mended, and goes on. One that faults all the time is never waited for, so the time is looked at.
    fn goes_on(&mut self, deadline: u64) -> Option<Exit> {
        self.tally().traps.mended.add(1);
        self.answered = true;
        (monotonic_ns() >= deadline).then_some(Exit::Deadline)
    }

    /// A trap, or a stop, that the vCPU says it has come to. `None`: it goes on.
    fn trap(&mut self, deadline: u64) -> Option<Exit> {
        let handover = self.handover();
        let signal = handover.signal.load(Relaxed) as i32;
        let Some(frame) = frame::read(self.running().exchange(), self.vcpu, handover) else {
            return Some(Exit::Died("it published a trap with a context outside its signal stack".into()));
        };
        if signal == 0 {
            return Some(Exit::Stopped(frame.registers));
        }
        if let Fault::PageFault { address, access } = frame.fault(signal)
            && signal == libc::SIGSEGV
            && KERNEL.contains(&address)
        {
            // Also if it is the stub that uses a stack of the guest's.
            match self.process.users.kernel_fault(address, access) {
                users::Fault::Guest => {}
                users::Fault::Lost => {
                    let reason = "the host cannot map what the guest kernel's page tables say";
                    return Some(Exit::Died(reason.into()));
                }
                users::Fault::Mended => return self.goes_on(deadline),
            }
        }
        if let Fault::PageFault { address, access: Access::Write } = frame.fault(signal)
            && let Some(phys) = address.checked_sub(DIRECT_MAP)
            && self.process.users.frame_written(phys - phys % PAGE_SIZE)
        {
            return self.goes_on(deadline);
        }
        self.tally().traps.kernel.add(1);
        let fault = if stub::contains(frame.registers.rip) {
            Fault::InEngine { signal, address: frame.address }
        } else {
            frame.fault(signal)
        };
        Some(Exit::Trap(Trap { fault, registers: frame.registers }))
    }
}

impl Vcpu {
    /// Waits for the guest kernel, or for a program that it entered by itself. `None`: there is more to wait for.
    fn run_kernel(&mut self, deadline: u64) -> Option<Exit> {
        let exit = match self.wait(self.patience(deadline)) {
            Wait::Published(turn) => {
                // A trap of the program's may be mended, and then it is still wanted.
                if turn != TURN_USER_TRAP {
                    self.came_back();
                }
                self.published(turn, deadline)?
            }
            _ if self.process.kernel.shared.is_dead() => Exit::Died(self.process.kernel.shared.death()),
            Wait::Interrupted | Wait::TimedOut if self.called_back.is_some() || self.wanted().is_some() => {
                self.call_back();
                return None;
            }
            Wait::Interrupted => return None,
            Wait::TimedOut => Exit::Deadline,
        };
        Some(exit)
    }

    /// What the guest kernel has published.
    fn published(&mut self, turn: u32, deadline: u64) -> Option<Exit> {
        Some(match turn {
            TURN_CALL => self.hypercall(),
            TURN_TRAP => self.trap(deadline)?,
            TURN_ENTER_USER => {
                let [root, context, ..] = self.handover().arguments();
                self.tally().calls[CallCounts::ENTER_USER].add(1);
                Exit::EnterUser { root, context }
            }
            TURN_NOTIFY => {
                let [vcpu, ..] = self.handover().arguments();
                if vcpu < self.process.pages.vcpus().into() {
                    self.process.notify(vcpu as u32);
                }
                self.handover().set_answer(Status::SUCCESS.0, 0);
                self.answered = true;
                return None;
            }
            TURN_USER_TRAP => match self.process.taken_over(self.vcpu) {
                Some(user) => {
                    self.entered = Some(user);
                    self.in_user = true;
                    return None; // it has published, and this thread waits for it now
                }
                None => Exit::Died("it published a trap of a program that it had not entered".into()),
            },
            other => Exit::Died(format!("it set its turn to {other}, which means nothing")),
        })
    }

    /// Waits for the program. `None`: it goes on, or is to be waited for again.
    fn run_user(&mut self, user: &Arc<InUser>, deadline: u64) -> Option<Exit> {
        match self.wait(self.patience(deadline)) {
            Wait::Published(TURN_TRAP) => self.user_trap(user, deadline),
            Wait::Published(TURN_SYSCALL) => {
                let registers = user.shared.handover(self.vcpu).registers();
                Some(self.user_exit(user, UserCause::SystemCall, registers))
            }
            Wait::Published(_) => Some(self.user_killed(user)),
            _ if self.process.kernel.shared.is_dead() => Some(Exit::Died(self.process.kernel.shared.death())),
            _ if user.shared.is_dead() => Some(self.user_killed(user)),
            Wait::Interrupted | Wait::TimedOut
                if user.wanted.load(SeqCst) || self.process.upcall_pending(self.vcpu) =>
            {
                self.call_back();
                None
            }
            Wait::Interrupted => None,
            Wait::TimedOut => (monotonic_ns() >= deadline).then_some(Exit::Deadline),
        }
    }

    /// While a program has been called back, it is looked after often; while it is waited for, now and then, for one that
    /// has damaged its hand-over page may not wake this thread.
    fn patience(&self, deadline: u64) -> u64 {
        match (&self.called_back, self.in_user) {
            (Some(_), _) => deadline.min(monotonic_ns() + CALL_AGAIN),
            (None, true) => deadline.min(monotonic_ns() + LOOK_AGAIN),
            (None, false) => deadline,
        }
    }

    /// The program has been called back and has not come: calls again, for a time, and then gives it up.
    fn call_back(&mut self) {
        let Some(user) = self.wanted() else {
            self.called_back = None; // it has come, and its guest kernel has not called since
            return;
        };
        let shared = &user.shared;
        let used = shared.cpu_time(self.vcpu).unwrap_or(u64::MAX);
        let hides = shared.sleeps(self.vcpu) && shared.handover(self.vcpu).turn.load(SeqCst) == TURN_GUEST;
        if self.called_back.as_ref().is_none_or(|called| !Arc::ptr_eq(&called.user, &user)) {
            self.called_back =
                Some(CalledBack { user: user.clone(), since: self.process.gate.clock(), used, asleep: 0 });
        }
        let called = self.called_back.as_mut().expect("it was set if it was not");
        called.asleep = if hides { called.asleep + 1 } else { 0 };
        if used.saturating_sub(called.used) > PATIENCE_CPU.as_nanos() as u64
            || self.process.gate.clock().saturating_sub(called.since) > PATIENCE
            || called.asleep > PATIENCE_ASLEEP
        {
            self.process.users.kill(user.root);
        } else {
            shared.request_stop(self.vcpu);
        }
    }

    /// The program that was called back has come.
    fn came_back(&mut self) {
        if let Some(called) = self.called_back.take() {
            self.no_longer_wanted(&called.user);
        }
    }

    fn no_longer_wanted(&self, user: &InUser) {
        if user.wanted.swap(false, SeqCst) {
            user.shared.cancel_stop(self.vcpu);
        }
    }

    /// A trap, or a stop, that the program says it has come to.
    fn user_trap(&mut self, user: &Arc<InUser>, deadline: u64) -> Option<Exit> {
        let shared = &user.shared;
        let handover = shared.handover(self.vcpu);
        let signal = handover.signal.load(Relaxed) as i32;
        let Some(mut frame) = frame::read(shared.exchange(), self.vcpu, handover) else {
            return Some(self.user_killed(user));
        };
        let fault = frame.user_fault(signal);
        let cause = match self.process.users.original(user.root, fault, &mut frame.registers) {
            UserFault::None if self.was_sampled(user) => {
                return Some(Exit::Sampled { root: user.root, registers: frame.registers });
            }
            UserFault::None => UserCause::Interrupted,
            UserFault::SystemCall => {
                if fault == UserFault::SystemCall {
                    self.rewrite(user.root, &frame.registers);
                }
                UserCause::SystemCall
            }
            UserFault::Exception { vector } => UserCause::Exception { vector },
            UserFault::Lost => return Some(self.user_killed(user)),
            UserFault::Again if user.wanted.load(SeqCst) => UserCause::Interrupted,
            UserFault::Again => return self.goes_on(deadline),
            UserFault::PageFault { address, access } => {
                match self.process.users.fault(user.root, address, access) {
                    users::Fault::Guest => UserCause::PageFault { address, access },
                    users::Fault::Lost => return Some(self.user_killed(user)),
                    // Who raised an event before this thread took over found nobody to call back.
                    users::Fault::Mended
                        if user.wanted.load(SeqCst) || self.process.upcall_pending(self.vcpu) =>
                    {
                        UserCause::Interrupted
                    }
                    users::Fault::Mended => return self.goes_on(deadline),
                }
            }
        };
        Some(self.user_exit(user, cause, frame.registers))
    }

    /// Whether a program was stopped to see where it is. If it is wanted for something else, too, it stops again.
    fn was_sampled(&self, user: &InUser) -> bool {
        let sampled = self.process.samples[self.vcpu as usize].swap(false, SeqCst);
        if sampled {
            // Whoever calls the program back says so first, and then has it stop: here it is the other way round.
            user.shared.cancel_stop(self.vcpu);
            if user.wanted.load(SeqCst) || self.process.upcall_pending(self.vcpu) {
                user.call_back(self.vcpu);
            }
        }
        sampled
    }

    /// A program's system call has trapped often.
    fn rewrite(&mut self, root: u64, registers: &Registers) {
        match self.process.users.rewrite(root, registers) {
            Some(true) => self.tally().rewritten.add(1),
            Some(false) => self.tally().not_rewritten.add(1),
            None => {}
        }
    }

    /// The program's guest kernel goes on, and may enter it again by itself.
    fn user_exit(&mut self, user: &Arc<InUser>, cause: UserCause, registers: Registers) -> Exit {
        self.tally().traps.came_back(cause).add(1);
        self.leave_user(user);
        user.shared.cancel_stop(self.vcpu); // the program may have written there, too
        if !self.process.sees_entries {
            self.process.users.allow(self.vcpu, user);
        }
        Exit::User(UserExit { context: user.context, cause, registers })
    }

    fn user_killed(&mut self, user: &Arc<InUser>) -> Exit {
        self.tally().traps.came_back(UserCause::Killed).add(1);
        self.process.users.kill(user.root);
        self.leave_user(user);
        let registers = Registers::default();
        Exit::User(UserExit { context: user.context, cause: UserCause::Killed, registers })
    }

    fn leave_user(&mut self, user: &Arc<InUser>) {
        {
            let mut entered = self.process.entered(self.vcpu);
            (entered.by_monitor, entered.on_the_way) = (None, Some(user.root));
        }
        self.has_left = true;
        self.parting.trapped();
        self.no_longer_wanted(user);
        self.called_back = None;
        self.in_user = false;
        self.answered = false;
    }
}

impl VcpuRunner for Vcpu {
    fn run(&mut self, deadline: u64) -> Exit {
        loop {
            if std::mem::take(&mut self.answered) {
                self.server().answer();
            }
            let exit = match self.entered.clone().filter(|_| self.in_user) {
                Some(user) => self.run_user(&user, deadline),
                None => self.run_kernel(deadline),
            };
            if let Some(exit) = exit {
                return exit;
            }
        }
    }

    fn answer(&mut self, status: Status, value: u64) {
        if std::mem::take(&mut self.has_left) {
            self.process.entered(self.vcpu).on_the_way = None;
        }
        self.process.users.frames_written();
        self.handover().set_answer(status.0, value);
        self.answered = true;
    }

    fn resume(&mut self) {
        self.answered = true;
    }

    fn enter_user(&mut self, root: u64, context: u64, user: &UserContext) -> Result<(), EnterError> {
        self.process.entered(self.vcpu).on_the_way = Some(root);
        let in_use = |root| self.process.is_entered(root);
        let entered = self.process.users.enter(self.vcpu, root, context, user, &in_use);
        let sandbox = entered.inspect_err(|_| self.process.entered(self.vcpu).on_the_way = None)?;
        self.process.users.frames_written(); // a context's extended state, perhaps
        self.parting
            .entering(self.process.kernel.shared.handover(self.vcpu), sandbox.shared.thread(self.vcpu));
        let xstate = user.xstate.0;
        let entered = Arc::new(InUser {
            root,
            context,
            xstate,
            shared: sandbox.shared.clone(),
            wanted: AtomicBool::new(false),
        });
        self.process.enter(self.vcpu, entered.clone());
        // Whoever raises an event stores it, and then looks for a program; here it is the other way round.
        if self.process.upcall_pending(self.vcpu) {
            entered.call_back(self.vcpu);
        }
        self.entered = Some(entered);
        self.in_user = true;
        self.answered = true;
        Ok(())
    }

    fn sleep_in_call(&mut self, deadline: u64, ready: &mut dyn FnMut() -> bool) {
        let handover = self.process.kernel.shared.handover(self.vcpu);
        handover.polls.store(1, SeqCst);
        let is_dead = || self.process.kernel.shared.is_dead();
        let left = deadline.saturating_sub(monotonic_ns());
        self.tally().sleeps.add(1);
        Server(words(handover)).sleep_once(|| is_dead() || ready(), Duration::from_nanos(left));
        handover.polls.store(0, SeqCst);
    }

    fn has_died(&self) -> bool {
        self.process.kernel.shared.is_dead()
    }

    fn park(&mut self) {
        self.handover().set_answer(PARK, 0);
        self.server().answer();
    }

    fn registers_in_call(&self) -> Registers {
        let handover = self.process.kernel.shared.handover(self.vcpu);
        Registers { rsp: handover.rsp.load(Relaxed), rbp: handover.rbp.load(Relaxed), ..Registers::default() }
    }

    fn guest_thread(&self) -> Option<i32> {
        self.running().thread(self.vcpu).map(|thread| thread.as_raw_nonzero().get())
    }

    fn set_registers(&mut self, registers: &Registers) {
        let shared = &self.process.kernel.shared;
        frame::set_registers(shared.exchange(), self.vcpu, shared.handover(self.vcpu), registers);
    }

    fn fx_state(&self) -> Option<[u64; 64]> {
        let user = self.entered.as_ref().filter(|_| self.has_left);
        let shared = user.map_or(&self.process.kernel.shared, |user| &user.shared);
        let (exchange, handover, vcpu) = (shared.exchange(), shared.handover(self.vcpu), self.vcpu);
        let words = frame::UserFrame { exchange, handover, vcpu }.xstate(64)?;
        words.try_into().ok()
    }
}

/// The words of the protocol in a hand-over page.
pub(super) fn words(handover: &Handover) -> Words<'_, Machine> {
    Words { turn: &handover.turn, host_sleeps: &handover.host_sleeps, caller_sleeps: &handover.caller_sleeps }
}

/// Offset in the exchange file of a vCPU's hand-over page.
pub(super) const fn handover_offset(vcpu: u32) -> u64 {
    vcpu as u64 * EXCHANGE_STRIDE
}

//! One vCPU of the process engine: its threads in the sandboxes, seen from the monitor's thread that serves it.
//!
//! At any time it runs its guest kernel or one program, and this waits for the one that runs.

use super::frame::{Frame, UserFault};
use super::handover::{Handover, Machine, Server, TURN_CALL, TURN_ENTER_USER, TURN_TRAP, Wait, Words};
use super::layout::*;
use super::sandbox::Shared;
use super::spin::{self, Spin};
use super::users;
use super::{InUser, Process, frame, stub};
use crate::clock::monotonic_ns;
use crate::engine::{Counters, EnterError, Exit, Fault, Registers, Trap, UserCause, UserExit, VcpuRunner};
use hv_abi::Status;
use hv_abi::user::UserContext;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

/// A program that used so much processor time, or so long, after it was called back will not come.
const PATIENCE_CPU: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a program is called back.
const CALL_AGAIN: u64 = 1_000_000;

pub(super) struct Vcpu {
    process: Arc<Process>,
    vcpu: u32,
    spin: Spin,
    /// What the vCPU asked for is answered: it is to be given the turn.
    answered: bool,
    /// The program that it runs, instead of its guest kernel.
    user: Option<Arc<InUser>>,
    /// Since when, and at which of its processor times, the program has been called back.
    called_back: Option<(Instant, u64)>,
    counters: Counters,
}

impl Vcpu {
    pub(super) fn new(process: Arc<Process>, vcpu: u32) -> Self {
        Self {
            process,
            vcpu,
            spin: Spin::new(),
            answered: false,
            user: None,
            called_back: None,
            counters: Counters::default(),
        }
    }

    /// The sandbox whose thread has the turn, or is asked for it.
    fn running(&self) -> &Shared {
        self.user.as_ref().map_or(&self.process.kernel.shared, |user| &user.sandbox.shared)
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
        self.spin.count(spun);
        if turn.is_some() {
            return turn;
        }
        let limit = self.spin.limit(self.together());
        let (turn, spun) = self.server().spin(limit);
        self.spin.count(spun);
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
        self.counters.sleeps += 1;
        let dead = || {
            let called_back = |user: &Arc<InUser>| user.wanted.load(SeqCst) && self.called_back.is_none();
            self.running().is_dead()
                || self.process.kernel.shared.is_dead()
                || self.user.as_ref().is_some_and(called_back)
        };
        let left = || {
            let left = deadline.saturating_sub(monotonic_ns());
            (left > 0).then_some(Some(Duration::from_nanos(left)))
        };
        let wait = self.server().sleep(dead, left);
        self.spin.slept(monotonic_ns() - before);
        wait
    }

    fn hypercall(&mut self) -> Exit {
        let handover = self.handover();
        if handover.in_block.swap(0, Relaxed) != 0 {
            return Exit::StoppedInBlock;
        }
        let number = handover.number.load(Relaxed);
        let arguments = core::array::from_fn(|i| handover.arguments[i].load(Relaxed));
        self.counters.hypercalls += 1;
        Exit::Hypercall { number, arguments }
    }

    /// A trap, or a stop, that the vCPU says it has come to.
    fn trap(&mut self) -> Exit {
        let handover = self.handover();
        let signal = handover.signal.load(Relaxed) as i32;
        let Some(frame) = frame::read(self.running().exchange(), self.vcpu, handover) else {
            return Exit::Died("it published a trap with a context outside its signal stack".into());
        };
        if signal == 0 {
            return Exit::Stopped(frame.registers);
        }
        self.counters.traps += 1;
        let fault = if stub::contains(frame.registers.rip) {
            Fault::InEngine { signal, address: frame.address }
        } else {
            frame.fault(signal)
        };
        Exit::Trap(Trap { fault, registers: frame.registers })
    }
}

impl Vcpu {
    fn run_kernel(&mut self, deadline: u64) -> Exit {
        match self.wait(deadline) {
            Wait::Published(TURN_CALL) => self.hypercall(),
            Wait::Published(TURN_TRAP) => self.trap(),
            Wait::Published(TURN_ENTER_USER) => {
                let [root, context] = core::array::from_fn(|i| self.handover().arguments[i].load(Relaxed));
                self.counters.hypercalls += 1;
                Exit::EnterUser { root, context }
            }
            Wait::Published(other) => Exit::Died(format!("it set its turn to {other}, which means nothing")),
            Wait::Interrupted => Exit::Died(self.process.kernel.shared.death()),
            Wait::TimedOut => Exit::Deadline,
        }
    }

    /// Waits for the program. `None`: it goes on, or is to be waited for again.
    fn run_user(&mut self, user: &InUser, deadline: u64) -> Option<Exit> {
        let patience = self.called_back.map_or(deadline, |_| deadline.min(monotonic_ns() + CALL_AGAIN));
        match self.wait(patience) {
            Wait::Published(TURN_TRAP) => self.user_trap(user, deadline),
            Wait::Published(_) => Some(self.user_killed(user)),
            Wait::Interrupted if self.process.kernel.shared.is_dead() => {
                Some(Exit::Died(self.process.kernel.shared.death()))
            }
            Wait::Interrupted if user.sandbox.shared.is_dead() => Some(self.user_killed(user)),
            Wait::Interrupted | Wait::TimedOut if user.wanted.load(SeqCst) => self.call_back(user),
            Wait::Interrupted => None,
            Wait::TimedOut => Some(Exit::Deadline),
        }
    }

    /// The program has been called back and has not come: calls again, for a time.
    fn call_back(&mut self, user: &InUser) -> Option<Exit> {
        let shared = &user.sandbox.shared;
        let used = shared.cpu_time(self.vcpu).unwrap_or(u64::MAX);
        let (since, then) = *self.called_back.get_or_insert((Instant::now(), used));
        if used.saturating_sub(then) > PATIENCE_CPU.as_nanos() as u64 || since.elapsed() > PATIENCE {
            return Some(self.user_killed(user));
        }
        shared.request_stop(self.vcpu);
        None
    }

    /// A trap, or a stop, that the program says it has come to.
    fn user_trap(&mut self, user: &InUser, deadline: u64) -> Option<Exit> {
        self.counters.traps += 1;
        let shared = &user.sandbox.shared;
        let handover = shared.handover(self.vcpu);
        let signal = handover.signal.load(Relaxed) as i32;
        let Some(mut frame) = frame::read(shared.exchange(), self.vcpu, handover) else {
            return Some(self.user_killed(user));
        };
        let cause = match frame.user_fault(signal) {
            UserFault::None => UserCause::Interrupted,
            UserFault::SystemCall => UserCause::SystemCall,
            UserFault::Exception { vector } => UserCause::Exception { vector },
            UserFault::Lost => return Some(self.user_killed(user)),
            UserFault::PageFault { address, access } => {
                match self.process.users.fault(user.root, address, access) {
                    users::Fault::Guest => UserCause::PageFault { address, access },
                    users::Fault::Lost => return Some(self.user_killed(user)),
                    users::Fault::Mended if user.wanted.load(SeqCst) => UserCause::Interrupted,
                    users::Fault::Mended => {
                        self.answered = true;
                        // A program that faults all the time is never waited for.
                        return (monotonic_ns() >= deadline).then_some(Exit::Deadline);
                    }
                }
            }
        };
        Some(self.user_exit(user, cause, frame))
    }

    fn user_exit(&mut self, user: &InUser, cause: UserCause, frame: Frame) -> Exit {
        user.sandbox.shared.cancel_stop(self.vcpu);
        self.leave_user();
        Exit::User(UserExit { cause, registers: frame.registers })
    }

    fn user_killed(&mut self, user: &InUser) -> Exit {
        self.process.users.kill(user.root);
        self.leave_user();
        Exit::User(UserExit { cause: UserCause::Killed, registers: Registers::default() })
    }

    fn leave_user(&mut self) {
        *self.process.in_user(self.vcpu) = None;
        self.user = None;
        self.called_back = None;
        self.answered = false;
    }
}

impl VcpuRunner for Vcpu {
    fn run(&mut self, deadline: u64) -> Exit {
        loop {
            if std::mem::take(&mut self.answered) {
                self.server().answer();
            }
            let Some(user) = self.user.clone() else { return self.run_kernel(deadline) };
            if let Some(exit) = self.run_user(&user, deadline) {
                return exit;
            }
        }
    }

    fn answer(&mut self, status: Status, value: u64) {
        self.handover().status.store(status.0, Relaxed);
        self.handover().value.store(value, Relaxed);
        self.answered = true;
    }

    fn resume(&mut self) {
        self.answered = true;
    }

    fn enter_user(&mut self, root: u64, context: u64, user: &UserContext) -> Result<(), EnterError> {
        let sandbox = self.process.users.enter(self.vcpu, root, context, user)?;
        let entered = Arc::new(InUser { root, sandbox, wanted: AtomicBool::new(false) });
        *self.process.in_user(self.vcpu) = Some(entered.clone());
        // Whoever raises an event stores it, and then looks for a program; here it is the other way round.
        if self.process.upcall_pending(self.vcpu) {
            entered.call_back(self.vcpu);
        }
        self.user = Some(entered);
        self.answered = true;
        Ok(())
    }

    fn registers_in_call(&self) -> Registers {
        let handover = self.process.kernel.shared.handover(self.vcpu);
        Registers { rsp: handover.rsp.load(Relaxed), rbp: handover.rbp.load(Relaxed), ..Registers::default() }
    }

    fn counters(&self) -> Counters {
        let guest_spins = self.process.kernel.shared.handover(self.vcpu).spun.load(Relaxed);
        Counters {
            host_spin_ns: spin::to_ns(self.spin.total()),
            guest_spin_ns: spin::to_ns(guest_spins),
            ..self.counters
        }
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

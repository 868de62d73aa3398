//! A vCPU's loop: the monitor's thread that serves it.

mod debugged;

use crate::calls::{AfterCall, Calls, Poll};
use crate::clock::GuestClock;
use crate::config::Breakpoints;
use crate::cpu_share::steal;
use crate::debug::{Reason, Standing};
use crate::dispatch::dispatch;
use crate::engine::{Control, EnterError, Exit, Fault, Registers, Trap, UserExit, VcpuRunner};
use crate::ledger::Ledger;
use crate::report::End;
use crate::user;
use crate::view::AddressSpace;
use crate::vm::{Message, Shared};
use crossbeam_channel::{Receiver, Sender};
pub(crate) use debugged::Debugged;
use hv_abi::call::{NEVER, woken_by};
use hv_abi::vcpu::{EVENT_CHANNELS, TIMER_CHANNEL, run_state};
use hv_abi::{Features, Status};
use std::num::NonZeroU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a stopped vCPU is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Resume,
    End,
}

/// Everything a vCPU's thread works with.
pub(crate) struct VcpuThread {
    pub vm: Arc<Shared>,
    pub vcpu: u32,
    pub runner: Box<dyn VcpuRunner>,
    pub control: Arc<dyn Control>,
    /// The VM's, which all its vCPUs' threads correct.
    pub clock: Arc<Mutex<GuestClock>>,
    pub delay: steal::Delay,
    pub messages: Sender<Message>,
    pub orders: Receiver<Order>,
    /// What it keeps for a debugger, if there may be one.
    pub debugged: Option<Debugged>,
}

/// When the loop next has something to do by itself: the vCPU's timer, or a correction of the clock.
#[derive(Clone, Copy)]
struct Next {
    /// The timer that this was worked out for.
    timer: Option<u64>,
    /// On the host's monotonic clock, to sleep until.
    monotonic: u64,
    /// On the time-stamp counter, to compare with.
    tsc: u64,
}

/// What the loop does after an exit.
#[expect(
    clippy::large_enum_variant,
    reason = "it is looked at where it is made, and the large one is a VM's last"
)]
enum Then {
    Run,
    End(End, Registers),
    /// The vCPU stops itself.
    Stop,
}

const BREAKPOINT: u64 = 3;

impl VcpuThread {
    /// Runs until the vCPU stops itself, or the VM ends, and then says how, if nobody else has.
    pub(crate) fn run(mut self) {
        // The guest's timer is kept here; by default the host may let it be 50 us late. If it does not let us, it is.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let vm = self.vm.clone();
        let mut calls = Calls { vm: &vm, vcpu: self.vcpu, timer: None, then: None };
        let mut next = self.next(calls.timer);
        let trace = vm.tracer.vcpu(self.vcpu);
        loop {
            if calls.timer != next.timer {
                next = self.next(calls.timer);
            }
            let mut exit = self.runner.run(next.monotonic);
            let slept_to_the_end = matches!(exit, Exit::Deadline);
            let begun = if trace.is_on() { Some(trace.begin(&exit)) } else { None };
            match self.handle(&mut exit, &mut calls) {
                Then::Run => trace.end(begun),
                Then::End(end, registers) => {
                    trace.end(begun);
                    return self.end(end, registers);
                }
                Then::Stop => {
                    trace.end(begun);
                    self.vm.vcpus().has_stopped(self.vcpu, || {
                        self.vm.pages.page(self.vcpu).run_state.store(run_state::STOPPED, SeqCst);
                        self.runner.park();
                    });
                    return;
                }
            }
            // A guest that calls all the time is never waited for, so the time is looked at after each exit.
            if slept_to_the_end || crate::clock::tsc_now() >= next.tsc {
                self.deadline_passed(&mut calls.timer);
                next = self.next(calls.timer);
            }
        }
    }

    /// Ends the VM, if no other vCPU has.
    fn end(&self, end: End, registers: Registers) {
        if !self.vm.ended.swap(true, SeqCst) {
            // Nothing of the guest runs on, whoever may be looking at the report, or not yet; but for a core, the other vCPUs
            // come to stopping points first.
            if !(self.vm.leaves_core && end.is_failure()) {
                self.control.kill();
            }
            // The VM may be gone already; then nobody asks.
            let _ = self.messages.send(Message::Ended { vcpu: self.vcpu, end, registers });
        }
    }

    fn clock(&self) -> MutexGuard<'_, GuestClock> {
        self.clock.lock().expect("no thread panics with the lock held")
    }

    /// When this loop has something to do by itself.
    fn next(&self, timer: Option<u64>) -> Next {
        let clock = self.clock();
        let correction = clock.next_correction();
        let until_correction = correction.saturating_sub(crate::clock::monotonic_ns());
        let guest = timer.unwrap_or(u64::MAX).min(clock.now().saturating_add(until_correction));
        let monotonic = timer.map_or(u64::MAX, |at| clock.to_monotonic(at)).min(correction);
        Next { timer, monotonic, tsc: clock.to_tsc(guest) }
    }

    fn handle(&mut self, exit: &mut Exit, calls: &mut Calls<'_>) -> Then {
        match *exit {
            Exit::Hypercall { number, arguments } => return self.hypercall(number, arguments, calls),
            Exit::Trap(Trap { fault, registers }) => return self.trap(fault, registers),
            Exit::Stopped(registers) => {
                self.sample(AddressSpace::Kernel, &registers);
                if self.is_debugged() {
                    return self.stopped_for_debugger(registers);
                }
                if let Some(end) = self.stopped(registers) {
                    return end;
                }
                self.runner.resume();
            }
            Exit::StoppedInBlock => {
                self.sample(AddressSpace::Kernel, &self.runner.registers_in_call());
                let end = if self.stops_at_return() { None } else { self.stopped_in_call() };
                self.runner.answer(Status::SUCCESS, woken_by::EVENT);
                return end.unwrap_or(Then::Run);
            }
            Exit::EnterUser { root, context } => return self.enter_user(root, context),
            Exit::Sampled { root, registers } => {
                self.sample(AddressSpace::User { root }, &registers);
                self.runner.resume();
            }
            Exit::User(ref mut exit) => return self.user_exit(exit),
            Exit::Deadline => {} // the time is looked at after every exit
            Exit::Died(ref reason) => {
                return Then::End(End::Died { reason: reason.clone() }, Registers::default());
            }
        }
        Then::Run
    }

    fn hypercall(&mut self, number: u32, arguments: [u64; 5], calls: &mut Calls<'_>) -> Then {
        let result = dispatch(calls, self.vm.features, number, arguments);
        tracing::trace!(vcpu = self.vcpu, call = ?hv_abi::Call(number), ?arguments, ?result, "hypercall");
        let result = match calls.then.take() {
            None => result,
            Some(AfterCall::End(end)) => return self.ends_by_call(end),
            Some(AfterCall::Stop) => return Then::Stop,
            Some(AfterCall::Poll(poll)) => match self.poll(&poll, &mut calls.timer) {
                Ok(channel) => Ok(channel.into()),
                Err(then) => return then,
            },
        };
        self.runner.answer(result.err().unwrap_or(Status::SUCCESS), result.unwrap_or(0));
        self.stop_after_call().unwrap_or(Then::Run)
    }

    /// The guest has asked for the VM's end. A debugger may look at it once more, if it did not mean well.
    fn ends_by_call(&mut self, end: End) -> Then {
        if self.is_debugged()
            && !matches!(end, End::Shutdown { code: 0 })
            && let Err(then) = self.stand_in_call(Reason::Ending)
        {
            return then;
        }
        Then::End(end, self.runner.registers_in_call())
    }

    #[expect(clippy::result_large_err, reason = "the large one is a VM's last")]
    /// Waits for a channel of the set. Gives which, or `EVENT_CHANNELS`; or what to do instead.
    fn poll(&mut self, poll: &Poll, timer: &mut Option<u64>) -> Result<u32, Then> {
        let vm = self.vm.clone();
        let stopping = &vm.stopping[self.vcpu as usize];
        let page = vm.pages.page(self.vcpu);
        loop {
            if stopping.load(SeqCst)
                && let Some(then) = self.stopped_in_call()
            {
                return Err(then);
            }
            if let Some(channel) = poll.ready(page) {
                return Ok(channel);
            }
            if poll.deadline <= self.clock().now() {
                return Ok(EVENT_CHANNELS);
            }
            if self.runner.has_died() {
                return Err(Then::End(
                    End::Died { reason: "its sandbox is gone".into() },
                    Registers::default(),
                ));
            }
            let next = self.next(Some(timer.unwrap_or(NEVER).min(poll.deadline)));
            self.runner
                .sleep_in_call(next.monotonic, &mut || poll.ready(page).is_some() || stopping.load(SeqCst));
            self.deadline_passed(timer);
        }
    }

    /// It was stopped, or found in a call: says where it is, if somebody wants to know.
    fn sample(&self, space: AddressSpace, registers: &Registers) {
        // Also if nobody wants to know any more. A stop that others ask for meanwhile is asked for again.
        self.control.cancel_stop(self.vcpu);
        if self.vm.sampler.take(self.vcpu) {
            self.vm.sampler.give(&self.vm, self.vcpu, space, registers);
        }
    }

    /// A call is answered, and not yet returned from: a stopping point.
    fn stop_after_call(&mut self) -> Option<Then> {
        if self.vm.sampler.is_wanted(self.vcpu) {
            self.sample(AddressSpace::Kernel, &self.runner.registers_in_call());
        }
        let wanted = self.vm.stopping[self.vcpu as usize].load(SeqCst);
        if !wanted || self.stops_at_return() { None } else { self.stopped_in_call() }
    }

    /// The vCPU is at a stopping point in a call.
    fn stopped_in_call(&mut self) -> Option<Then> {
        match self.is_debugged() {
            true => self.stand_in_call(Reason::Asked).err(),
            false => self.stopped(self.runner.registers_in_call()),
        }
    }

    /// The guest kernel wants to run a program.
    fn enter_user(&mut self, root: u64, context: u64) -> Then {
        let checked = if self.vm.features.contains(Features::MMU) {
            user::check(&self.vm.memory, &self.vm.roots, self.vm.xstate, root, context)
        } else {
            Err(Status::UNKNOWN_CALL)
        };
        let mut program = match checked {
            Ok(program) => program,
            Err(status) => {
                self.runner.answer(status, 0);
                return Then::Run;
            }
        };
        let tables = [Some(root), self.vm.roots.kernel()].into_iter().flatten();
        let alone = self.vm.ledger.as_ref().map(Ledger::alone);
        let ledger = self.vm.ledger.iter();
        let mut checks =
            ledger.flat_map(|ledger| tables.clone().map(|root| ledger.check(&self.vm.memory, root)));
        if let Some(Err(bypass)) = checks.find(Result::is_err) {
            return Then::End(End::TableBypass(bypass), self.runner.registers_in_call());
        }
        drop((checks, alone));
        if let Err(then) = self.entering_for_debugger(root, context, &mut program) {
            return then;
        }
        match self.runner.enter_user(root, context, &program) {
            Ok(()) => self.arm(AddressSpace::User { root }),
            Err(EnterError::NoExtendedState) => self.runner.answer(Status::BAD_ARGUMENT, 0),
            Err(EnterError::Engine(error)) => {
                tracing::warn!(%error, "a user address space could not be made");
                self.runner.answer(Status::BUSY, 0);
            }
        }
        Then::Run
    }

    /// A program has come back: its guest kernel goes on.
    fn user_exit(&mut self, exit: &mut UserExit) -> Then {
        if let Some(then) = self.user_exit_for_debugger(exit) {
            return then;
        }
        self.arm(AddressSpace::Kernel);
        let number = user::trapped(&self.vm.memory, exit);
        self.runner.answer(Status::SUCCESS, number.into());
        self.stop_after_call().unwrap_or(Then::Run)
    }

    fn trap(&mut self, fault: Fault, registers: Registers) -> Then {
        if self.is_debugged() {
            return self.trap_for_debugger(fault, registers);
        }
        let breakpoint = matches!(fault, Fault::Exception { vector: BREAKPOINT, .. });
        if breakpoint && self.vm.breakpoints == Breakpoints::Continue {
            self.runner.resume();
            return Then::Run;
        }
        Then::End(End::Crash { fault, hint: None }, registers)
    }

    /// The vCPU has come to a stopping point: waits for what to do if a stop was asked for.
    fn stopped(&mut self, registers: Registers) -> Option<Then> {
        if !self.vm.stopping[self.vcpu as usize].load(SeqCst) {
            return None; // the guest forged it, or the request was taken back
        }
        self.stand(Standing::new(AddressSpace::Kernel, Reason::Asked, registers)).err()
    }

    fn deadline_passed(&mut self, timer: &mut Option<u64>) {
        let mut clock = self.clock();
        if crate::clock::monotonic_ns() >= clock.next_correction() {
            clock.correct(self.vm.pages.clock());
        }
        let now = clock.now();
        drop(clock);
        if timer.is_some_and(|at| at <= now) {
            *timer = None;
            self.delay.tell(&*self.control, &self.vm.pages);
            self.vm.events.raise(self.vcpu, TIMER_CHANNEL);
        }
    }
}

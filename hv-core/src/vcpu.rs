//! A vCPU's loop: the monitor's thread that serves it.

use crate::calls::Calls;
use crate::clock::GuestClock;
use crate::config::Breakpoints;
use crate::dispatch::dispatch;
use crate::engine::{Exit, Fault, Registers, Trap, VcpuRunner};
use crate::report::End;
use crate::vm::{Message, Shared};
use crossbeam_channel::{Receiver, Sender};
use hv_abi::Status;
use hv_abi::call::woken_by;
use hv_abi::vcpu::TIMER_CHANNEL;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

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
    pub clock: GuestClock,
    pub messages: Sender<Message>,
    pub orders: Receiver<Order>,
}

/// What the loop does after an exit.
enum Next {
    Run,
    End(End, Registers),
}

const BREAKPOINT: u64 = 3;

impl VcpuThread {
    /// Runs until the VM ends, and says how.
    pub(crate) fn run(mut self) {
        // The guest's timer is kept here; by default the host may let it be 50 us late. If it does not let us, it is.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let vm = self.vm.clone();
        let mut calls = Calls { vm: &vm, timer: None, end: None };
        // The vCPU's timer on the guest's clock, and the same moment on the host's.
        let mut timer = (None, u64::MAX);
        loop {
            if calls.timer != timer.0 {
                timer = (calls.timer, calls.timer.map_or(u64::MAX, |at| self.clock.to_monotonic(at)));
            }
            let deadline = timer.1.min(self.clock.next_correction());
            let exit = self.runner.run(Some(deadline));
            if let Next::End(end, registers) = self.handle(exit, &mut calls) {
                let message =
                    Message::Ended { vcpu: self.vcpu, end, registers, counters: self.runner.counters() };
                // The VM may be gone already; then nobody asks.
                let _ = self.messages.send(message);
                return;
            }
        }
    }

    fn handle(&mut self, exit: Exit, calls: &mut Calls<'_>) -> Next {
        match exit {
            Exit::Hypercall { number, arguments } => return self.hypercall(number, arguments, calls),
            Exit::Trap(Trap { fault, registers }) => return self.trap(fault, registers),
            Exit::Stopped(registers) => {
                if let Some(end) = self.stopped(registers) {
                    return end;
                }
                self.runner.resume();
            }
            Exit::StoppedInBlock => {
                let end = self.stopped(self.runner.registers_in_call());
                self.runner.answer(Status::SUCCESS, woken_by::EVENT);
                return end.unwrap_or(Next::Run);
            }
            Exit::Deadline => self.deadline_passed(&mut calls.timer),
            Exit::Died(reason) => return Next::End(End::Died { reason }, Registers::default()),
        }
        Next::Run
    }

    fn hypercall(&mut self, number: u32, arguments: [u64; 5], calls: &mut Calls<'_>) -> Next {
        let result = dispatch(calls, self.vm.features, number, arguments);
        tracing::trace!(vcpu = self.vcpu, call = ?hv_abi::Call(number), ?arguments, ?result, "hypercall");
        if let Some(end) = calls.end.take() {
            return Next::End(end, self.runner.registers_in_call());
        }
        self.runner.answer(result.err().unwrap_or(Status::SUCCESS), result.unwrap_or(0));
        if self.vm.stopping[self.vcpu as usize].load(SeqCst)
            && let Some(end) = self.stopped(self.runner.registers_in_call())
        {
            return end;
        }
        Next::Run
    }

    fn trap(&mut self, fault: Fault, registers: Registers) -> Next {
        let breakpoint = matches!(fault, Fault::Exception { vector: BREAKPOINT, .. });
        if breakpoint && self.vm.breakpoints == Breakpoints::Continue {
            self.runner.resume();
            return Next::Run;
        }
        Next::End(End::Crash { fault, hint: None }, registers)
    }

    /// The vCPU has come to a stopping point: waits for what to do if a stop was asked for.
    fn stopped(&mut self, registers: Registers) -> Option<Next> {
        if !self.vm.stopping[self.vcpu as usize].load(SeqCst) {
            return None; // the guest forged it, or the request was taken back
        }
        let _ = self.messages.send(Message::Stopped { vcpu: self.vcpu, registers });
        match self.orders.recv() {
            Ok(Order::Resume) => None,
            Ok(Order::End) | Err(_) => Some(Next::End(End::Stopped, registers)),
        }
    }

    fn deadline_passed(&mut self, timer: &mut Option<u64>) {
        if crate::clock::monotonic_ns() >= self.clock.next_correction() {
            self.clock.correct(self.vm.pages.clock());
        }
        if timer.is_some_and(|at| at <= self.clock.now()) {
            *timer = None;
            self.vm.events.raise(self.vcpu, TIMER_CHANNEL);
        }
    }
}

//! One vCPU of the process engine: its thread in the sandbox, seen from the monitor's thread that serves it.

use super::handover::{Handover, Machine, Server, TURN_CALL, TURN_TRAP, Wait, Words};
use super::layout::*;
use super::spin::{self, Spin};
use super::{Shared, frame, stub};
use crate::clock::monotonic_ns;
use crate::engine::{Counters, Exit, Fault, Registers, Trap, VcpuRunner};
use hv_abi::Status;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

pub(super) struct Vcpu {
    shared: Arc<Shared>,
    vcpu: u32,
    spin: Spin,
    /// What the vCPU asked for is answered: it is to be given the turn.
    answered: bool,
    counters: Counters,
}

impl Vcpu {
    pub(super) fn new(shared: Arc<Shared>, vcpu: u32) -> Self {
        Self { shared, vcpu, spin: Spin::new(), answered: false, counters: Counters::default() }
    }

    fn handover(&self) -> &Handover {
        self.shared.handover(self.vcpu)
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
        let dead = || self.shared.dead.load(Acquire);
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
        let Some(frame) = frame::read(&self.shared.exchange, self.vcpu, handover) else {
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

impl VcpuRunner for Vcpu {
    fn run(&mut self, deadline: u64) -> Exit {
        if std::mem::take(&mut self.answered) {
            self.server().answer();
        }
        match self.wait(deadline) {
            Wait::Published(TURN_CALL) => self.hypercall(),
            Wait::Published(TURN_TRAP) => self.trap(),
            Wait::Published(other) => Exit::Died(format!("it set its turn to {other}, which means nothing")),
            Wait::Interrupted => Exit::Died(self.shared.death()),
            Wait::TimedOut => Exit::Deadline,
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

    fn registers_in_call(&self) -> Registers {
        let handover = self.handover();
        Registers { rsp: handover.rsp.load(Relaxed), rbp: handover.rbp.load(Relaxed), ..Registers::default() }
    }

    fn counters(&self) -> Counters {
        let guest_spins = self.handover().spun.load(Relaxed);
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

/// Writes the context from which a vCPU's thread begins to run guest code.
pub(super) fn first_context(shared: &Shared, vcpu: u32, entry: u64, argument: u64) {
    let context = frame::write_first(&shared.exchange, vcpu, entry, argument);
    shared.handover(vcpu).frame.store(context, Relaxed);
}

/// Offset in the exchange file of a vCPU's hand-over page.
pub(super) const fn handover_offset(vcpu: u32) -> u64 {
    vcpu as u64 * EXCHANGE_STRIDE
}

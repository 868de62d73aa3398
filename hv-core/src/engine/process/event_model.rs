//! Events under a model checker: what a vCPU that sends one, the monitor, and the vCPU that it is for do, in every
//! interleaving, up to a bound on preemptions, with every value that weak memory could show. A lost wake-up is a deadlock,
//! which loom reports.
//!
//! The steps are those of `stub/calls.s` and `stub/user.s`, [`Events`](crate::events::Events), and the engine's `notify`, in
//! the same order; what is told of each is in the comment above it. loom takes SeqCst for AcqRel, so there is a fence behind
//! each locked instruction, which on x86 is one. What a test leaves out to see that the model notices is [`Broken`].

use super::handover::{Atomics, Server, kick};
use super::handover_model::{Model, Page as HandoverPage, Word, check};
use hv_abi::vcpu::{run_state, upcall};
use loom::sync::atomic::{AtomicU32, Ordering::*};
use loom::sync::{Arc, Mutex};
use loom::thread;
use std::time::Duration;

/// A step that is left out, to see that it matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    No,
    /// The vCPU does not say that it is blocked.
    SaysNothing,
    /// It looks for events before it unmasks, polls, or says that it is in user mode.
    LooksFirst,
    /// The sender does not look at the binding, at polls, or at user mode, after the pending bit.
    LooksNot,
}

/// What a model that may deadlock is made of: loom cannot drop what is its own once it has found that.
fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// `lock or`: a full fence.
fn or(word: &AtomicU32, bits: u32) -> u32 {
    let before = word.fetch_or(bits, SeqCst);
    Model::fence();
    before
}

/// `lock and`.
fn and(word: &AtomicU32, bits: u32) -> u32 {
    let before = word.fetch_and(bits, SeqCst);
    Model::fence();
    before
}

/// `xchg`.
fn exchange(word: &AtomicU32, value: u32) -> u32 {
    let before = word.swap(value, SeqCst);
    Model::fence();
    before
}

/// A vCPU's page, with one word of channels, and what of its hand-over page senders look at.
struct Vcpu {
    pending: AtomicU32,
    masked: AtomicU32,
    upcall: Word,
    run_state: AtomicU32,
    direct: AtomicU32,
    /// The monitor was asked to signal it.
    signalled: AtomicU32,
}

impl Vcpu {
    fn new() -> Self {
        Self {
            pending: AtomicU32::new(0),
            masked: AtomicU32::new(0),
            upcall: Word::new(0),
            run_state: AtomicU32::new(run_state::RUNNING),
            direct: AtomicU32::new(0),
            signalled: AtomicU32::new(0),
        }
    }

    /// `hv_stub_event_send` from the pending bit on, and `Events::raise` with the engine's `notify`.
    fn send(&self, bit: u32) {
        or(&self.pending, bit);
        if self.masked.load(Acquire) & bit != 0 {
            return;
        }
        if or(&self.upcall.value, upcall::PENDING) & upcall::PENDING != 0 {
            return;
        }
        if self.run_state.load(Acquire) == run_state::BLOCKED {
            Model::wake(&self.upcall);
        } else if Model::load(&self.upcall) & upcall::MASKED == 0 {
            self.signalled.store(1, Release);
        }
    }

    /// `hv_stub_block`, without a deadline.
    fn block(&self, broken: Broken) {
        if broken != Broken::SaysNothing {
            exchange(&self.run_state, run_state::BLOCKED);
        }
        loop {
            let seen = Model::load(&self.upcall);
            if seen & upcall::PENDING != 0 {
                break;
            }
            Model::sleep(&self.upcall, seen, None);
        }
        exchange(&self.run_state, run_state::RUNNING);
    }

    /// What an upcall's handler does, or a guest that sees to it by itself, with upcalls masked. Gives the channels.
    fn take(&self) -> u32 {
        let mut taken = 0;
        while and(&self.upcall.value, !upcall::PENDING) & upcall::PENDING != 0 {
            taken |= and(&self.pending, self.masked.load(Acquire)) & !self.masked.load(Acquire);
        }
        taken
    }

    /// `hv_stub_upcall_return`, and the SDK's way to unmask: gives what is handled before the guest goes on.
    fn unmask(&self, broken: Broken) -> u32 {
        let mut taken = 0;
        loop {
            if broken == Broken::LooksFirst && Model::load(&self.upcall) & upcall::PENDING == 0 {
                and(&self.upcall.value, !upcall::MASKED);
                return taken;
            }
            and(&self.upcall.value, !upcall::MASKED);
            if Model::load(&self.upcall) & upcall::PENDING == 0 {
                return taken;
            }
            or(&self.upcall.value, upcall::MASKED);
            taken |= self.take();
        }
    }
}

/// A guest that masks, looks, blocks and unmasks, as docs/abi.md says of BLOCK, against two senders.
fn masks_looks_blocks(broken: Broken) {
    check(2, move || {
        let vcpu = leak(Vcpu::new());
        let senders = [1, 2].map(|bit| thread::spawn(move || vcpu.send(bit)));
        let mut taken = 0;
        or(&vcpu.upcall.value, upcall::MASKED);
        while taken != 3 {
            taken |= vcpu.take();
            if taken != 3 {
                vcpu.block(broken);
            }
        }
        taken |= vcpu.unmask(Broken::No);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        assert_eq!(taken, 3);
    });
}

#[test]
fn no_event_is_lost_beside_a_block() {
    masks_looks_blocks(Broken::No);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_block_that_does_not_say_so_is_not_woken() {
    masks_looks_blocks(Broken::SaysNothing);
}

/// A guest that unmasks, or returns from an upcall, and then computes: it sees the event itself, or is interrupted.
fn unmasks(broken: Broken) {
    check(3, move || {
        let vcpu = Arc::new(Vcpu::new());
        or(&vcpu.upcall.value, upcall::MASKED);
        let senders = [1, 2].map(|bit| {
            let vcpu = vcpu.clone();
            thread::spawn(move || vcpu.send(bit))
        });
        let mut taken = vcpu.unmask(broken);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        if vcpu.signalled.load(Acquire) != 0 {
            or(&vcpu.upcall.value, upcall::MASKED); // hv_stub_deliver
            taken |= vcpu.take();
        }
        assert_eq!(taken, 3, "an event is lost");
    });
}

#[test]
fn no_event_is_lost_beside_the_return_from_an_upcall() {
    unmasks(Broken::No);
}

#[test]
#[should_panic(expected = "an event is lost")]
fn a_return_that_looks_before_it_unmasks_loses_one() {
    unmasks(Broken::LooksFirst);
}

/// Two vCPUs' pending bits for one channel, what guests see of whom it is bound to, and the monitor's own copy.
struct Bound {
    pending: [AtomicU32; 2],
    shown: AtomicU32,
    owner: Mutex<usize>,
}

impl Bound {
    /// `hv_stub_event_send` up to the look at the binding; then what the monitor does if that has changed.
    fn send(&self, broken: Broken) {
        let to = self.shown.load(Acquire);
        or(&self.pending[to as usize], 1);
        if broken != Broken::LooksNot && self.shown.load(Acquire) != to {
            and(&self.pending[to as usize], 0);
            let owner = self.owner.lock().unwrap(); // Events::send
            or(&self.pending[*owner], 1);
        }
    }

    /// `Events::bind`.
    fn bind(&self, to: usize) {
        let mut owner = self.owner.lock().unwrap();
        let old = std::mem::replace(&mut *owner, to);
        exchange(&self.shown, to as u32);
        if and(&self.pending[old], 0) != 0 {
            or(&self.pending[to], 1);
        }
    }
}

fn sends_and_binds(broken: Broken) {
    check(3, move || {
        let channel = Arc::new(Bound {
            pending: [AtomicU32::new(0), AtomicU32::new(0)],
            shown: AtomicU32::new(0),
            owner: Mutex::new(0),
        });
        let senders = [(); 2].map(|()| {
            let channel = channel.clone();
            thread::spawn(move || channel.send(broken))
        });
        channel.bind(1);
        channel.bind(0);
        channel.bind(1);
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        let pending = channel.pending.each_ref().map(|word| word.load(Acquire));
        assert_eq!(pending, [0, 1], "the event is where its channel is not");
    });
}

#[test]
fn an_event_is_pending_where_its_channel_is_bound() {
    sends_and_binds(Broken::No);
}

#[test]
#[should_panic(expected = "the event is where its channel is not")]
fn a_sender_that_does_not_look_at_the_binding_again_leaves_it_behind() {
    sends_and_binds(Broken::LooksNot);
}

/// A vCPU in POLL, for which the monitor looks, against a vCPU that sends and against the monitor's own event.
fn polls(broken: Broken) {
    check(2, move || {
        let (handover, polls) = (leak(HandoverPage::new()), leak(AtomicU32::new(0)));
        let pending = leak(AtomicU32::new(0));
        let raise = |bit| {
            or(pending, bit);
            // Process::pending
            if polls.load(SeqCst) != 0 {
                kick::<Model>(&handover.host_sleeps);
            }
        };
        let sender = thread::spawn(move || {
            or(pending, 1);
            if broken != Broken::LooksNot && polls.load(Acquire) != 0 {
                raise(1);
            }
        });
        let host = thread::spawn(move || raise(2));
        let ready = || pending.load(Acquire) == 3;
        while !ready() {
            exchange(polls, 1); // Vcpu::sleep_in_call
            if broken == Broken::LooksFirst {
                let early = ready();
                Server(handover.words()).sleep_once(|| early, Duration::MAX);
            } else {
                Server(handover.words()).sleep_once(ready, Duration::MAX);
            }
            exchange(polls, 0);
        }
        sender.join().unwrap();
        host.join().unwrap();
    });
}

#[test]
fn no_event_is_lost_beside_a_poll() {
    polls(Broken::No);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_poll_that_looks_first_is_not_woken() {
    polls(Broken::LooksFirst);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_sender_that_does_not_look_for_a_poll_does_not_wake_it() {
    polls(Broken::LooksNot);
}

/// `hv_stub_enter_user` against somebody who wants the vCPU: it has an event for it, or takes the permission away.
fn enters(broken: Broken) {
    check(3, move || {
        let vcpu = Arc::new(Vcpu::new());
        let allowed = Arc::new(AtomicU32::new(1));
        or(&vcpu.upcall.value, upcall::MASKED); // its program is interrupted all the same
        let sender = {
            let vcpu = vcpu.clone();
            thread::spawn(move || {
                or(&vcpu.upcall.value, upcall::PENDING);
                broken != Broken::LooksNot && vcpu.direct.load(Acquire) != 0 // and so is called back
            })
        };
        let monitor = {
            let (vcpu, allowed) = (vcpu.clone(), allowed.clone());
            thread::spawn(move || {
                allowed.store(0, Relaxed); // Users::forbid, which ends with a fence
                Model::fence();
                vcpu.direct.load(SeqCst) == 0 // and so takes the space away
            })
        };
        let look = || (Model::load(&vcpu.upcall) & upcall::PENDING != 0, allowed.load(Acquire) == 0);
        let early = look();
        exchange(&vcpu.direct, 1);
        let (event, forbidden) = if broken == Broken::LooksFirst { early } else { look() };
        let enters = !event && !forbidden;
        let (called_back, taken_away) = (sender.join().unwrap(), monitor.join().unwrap());
        assert!(!enters || !taken_away, "it is missed: it is in a space that is taken away");
        assert!(!enters || called_back, "it is missed: an event leaves it in its program");
    });
}

#[test]
fn a_vcpu_that_enters_a_program_is_called_back_or_does_not_enter() {
    enters(Broken::No);
}

#[test]
#[should_panic(expected = "it is missed")]
fn a_vcpu_that_looks_before_it_says_that_it_enters_is_missed() {
    enters(Broken::LooksFirst);
}

#[test]
#[should_panic(expected = "an event leaves it in its program")]
fn a_sender_that_does_not_look_for_a_program_leaves_it_there() {
    enters(Broken::LooksNot);
}

/// The same if the monitor enters the program: the guest kernel's turn says so, and upcalls are masked.
fn enters_by_monitor(broken: Broken) {
    check(3, move || {
        let vcpu = Arc::new(Vcpu::new());
        let (turn, by_monitor) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(false)));
        let sender = {
            let (vcpu, turn, by_monitor) = (vcpu.clone(), turn.clone(), by_monitor.clone());
            thread::spawn(move || {
                or(&vcpu.upcall.value, upcall::PENDING);
                let asks = broken != Broken::LooksNot && turn.load(Acquire) != 0;
                asks && *by_monitor.lock().unwrap() // Process::call_back
            })
        };
        let monitor = {
            let (vcpu, turn, by_monitor) = (vcpu.clone(), turn.clone(), by_monitor.clone());
            thread::spawn(move || {
                while turn.load(Acquire) == 0 {
                    thread::yield_now();
                }
                let early = Model::load(&vcpu.upcall);
                *by_monitor.lock().unwrap() = true; // Process::enter; to take a lock is a full fence on x86
                Model::fence();
                let late = Model::load(&vcpu.upcall);
                if broken == Broken::LooksFirst { early } else { late }
            })
        };
        turn.store(1, Release);
        Model::fence();
        let called_back = sender.join().unwrap();
        let seen = monitor.join().unwrap() & upcall::PENDING != 0;
        assert!(called_back || seen, "it is missed: an event leaves it in its program");
    });
}

#[test]
fn a_vcpu_whose_program_the_monitor_enters_is_called_back() {
    enters_by_monitor(Broken::No);
}

#[test]
#[should_panic(expected = "an event leaves it in its program")]
fn a_monitor_that_looks_before_it_enters_misses_an_event() {
    enters_by_monitor(Broken::LooksFirst);
}

#[test]
#[should_panic(expected = "an event leaves it in its program")]
fn a_sender_that_takes_masked_for_not_wanted_leaves_it_there() {
    enters_by_monitor(Broken::LooksNot);
}

/// A vCPU that has woken another, and goes back to its guest, against somebody who sends it an event meanwhile.
fn returns_from_waking(broken: Broken) {
    check(3, move || {
        let (vcpu, looks) = (Arc::new(Vcpu::new()), Arc::new(AtomicU32::new(1)));
        let sender = {
            let (vcpu, looks) = (vcpu.clone(), looks.clone());
            thread::spawn(move || {
                or(&vcpu.upcall.value, upcall::PENDING);
                looks.load(Acquire) == 0 // and so has it interrupted
            })
        };
        let early = Model::load(&vcpu.upcall);
        exchange(&looks, 0);
        let late = Model::load(&vcpu.upcall);
        let seen = if broken == Broken::LooksFirst { early } else { late };
        assert!(sender.join().unwrap() || seen & upcall::PENDING != 0, "an event is lost");
    });
}

#[test]
fn no_event_is_lost_beside_the_return_from_waking_another() {
    returns_from_waking(Broken::No);
}

#[test]
#[should_panic(expected = "an event is lost")]
fn a_return_that_looks_too_early_loses_one() {
    returns_from_waking(Broken::LooksFirst);
}

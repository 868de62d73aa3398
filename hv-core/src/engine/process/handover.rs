//! Handing control between a vCPU thread and the monitor, through shared memory.
//!
//! One word, `turn`, says whose turn it is. The caller (a vCPU thread) publishes a request by setting it, and
//! waits until it is [`TURN_GUEST`] again; the server (the monitor) waits until it is not, and answers by
//! setting it back. Each side spins for a bounded time and then sleeps on a futex:
//!
//! * the caller sleeps on `turn` itself, having set `caller_sleeps`;
//! * the server sleeps on `host_sleeps`, so that others in the monitor can wake it, too, by clearing that word.
//!
//! Whoever publishes does *store, fence, look whether the other sleeps*; whoever goes to sleep does *say so,
//! fence, look whether something was published*. One of the two looks must see the other's store, so no
//! wake-up is lost between honest parties. A hostile caller can lose its own; the monitor's [`kick`] is
//! repeated, or follows the sandbox's death, when it must arrive.
//!
//! The protocol is written once, over [`Atomics`], and model-checked with loom (`handover_model`). The
//! caller's half that really runs is assembly (`stub/`), which follows [`Caller`] step by step.

use crate::engine::Registers;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

/// The guest runs, or has been answered.
pub(crate) const TURN_GUEST: u32 = 0;
/// A hypercall is published.
pub(crate) const TURN_CALL: u32 = 1;
/// A trap or a stop is published.
pub(crate) const TURN_TRAP: u32 = 2;
/// The guest kernel wants to run a user program.
pub(crate) const TURN_ENTER_USER: u32 = 3;
/// A user program's system call is published. Its guest kernel takes it without the monitor, if it entered it so.
pub(crate) const TURN_SYSCALL: u32 = 4;
/// The guest kernel has found something else published by the program that it entered: the monitor is to see to it.
pub(crate) const TURN_USER_TRAP: u32 = 5;
/// The monitor says that the user program is gone.
pub(crate) const TURN_DEAD: u32 = 6;
/// A vCPU has sent an event by itself, and the monitor is to get the attention of the vCPU that it is for.
pub(crate) const TURN_NOTIFY: u32 = 7;

/// As the status of a call: the caller is to go where its thread began, and to wait there to be started anew.
pub(crate) const PARK: u32 = u32::MAX;

/// Words of a program's registers in a hand-over page: the first of a `UserContext`, up to its FS base.
pub(crate) const USER_WORDS: usize = size_of::<Registers>() / 8;

/// Where in a `UserContext`, in words, each of them comes from: first those that most system calls change, which go in the
/// line of the turn.
const ORDER: [usize; USER_WORDS] = [0, 1, 3, 4, 5, 16, 17, 2, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 18];

/// Where in [`Handover::WORDS`] a call's answer is, behind its arguments.
pub(crate) const CALL_VALUE: usize = 5;
pub(crate) const CALL_STATUS: usize = 6;

/// Counters of a program's trapped system calls, one byte each.
pub(crate) const TRAP_COUNTERS: usize = 1024;

/// The operations that the protocol is made of, so that a model checker can stand in for the machine.
pub(crate) trait Atomics {
    /// A 32-bit word that both sides see.
    type Word;

    /// Loads with acquire ordering.
    fn load(word: &Self::Word) -> u32;
    /// Stores with release ordering.
    fn store(word: &Self::Word, value: u32);
    /// Orders the stores before it with the loads after it.
    fn fence();
    /// Sleeps while `word` is `expected`, until woken, or until `timeout`; may return early.
    fn sleep(word: &Self::Word, expected: u32, timeout: Option<Duration>);
    /// Wakes whoever sleeps on `word`.
    fn wake(word: &Self::Word);
    /// Tells the processor that this is a spinning loop.
    fn relax();
}

/// The three words of the protocol.
pub(crate) struct Words<'a, A: Atomics> {
    /// Whose turn it is.
    pub turn: &'a A::Word,
    /// 1 while the server sleeps, or is about to; its futex.
    pub host_sleeps: &'a A::Word,
    /// 1 while the caller sleeps on `turn`, or is about to.
    pub caller_sleeps: &'a A::Word,
}

impl<A: Atomics> Clone for Words<'_, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A: Atomics> Copy for Words<'_, A> {}

/// Why [`Server::sleep`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// This turn was published: [`TURN_CALL`], [`TURN_TRAP`], or whatever a hostile caller wrote.
    Published(u32),
    /// `interrupted` said so.
    Interrupted,
    /// The time-out passed.
    TimedOut,
}

/// The monitor's half.
pub(crate) struct Server<'a, A: Atomics>(pub Words<'a, A>);

impl<A: Atomics> Server<'_, A> {
    /// Spins at most `spin` times for a request. Gives the turn that was published, and how often it spun.
    pub(crate) fn spin(&self, spin: u32) -> (Option<u32>, u32) {
        let mut spun = 0;
        loop {
            match A::load(self.0.turn) {
                TURN_GUEST if spun < spin => spun += 1,
                TURN_GUEST => return (None, spun),
                turn => return (Some(turn), spun),
            }
            A::relax();
        }
    }

    /// Sleeps until a request is published, `interrupted` is true after a [`kick`], or `timeout` gives `None`
    /// for "no time left". `timeout` is asked before each sleep; `Some(None)` is "for ever".
    pub(crate) fn sleep(
        &self,
        mut interrupted: impl FnMut() -> bool,
        mut timeout: impl FnMut() -> Option<Option<Duration>>,
    ) -> Wait {
        loop {
            A::store(self.0.host_sleeps, 1);
            A::fence();
            let turn = A::load(self.0.turn);
            let wait = if turn != TURN_GUEST {
                Wait::Published(turn)
            } else if interrupted() {
                Wait::Interrupted
            } else if let Some(timeout) = timeout() {
                A::sleep(self.0.host_sleeps, 1, timeout);
                continue;
            } else {
                Wait::TimedOut
            };
            A::store(self.0.host_sleeps, 0);
            return wait;
        }
    }

    /// Sleeps once, for `timeout` at the most, unless `ready` is true or becomes so before a [`kick`]; may return early.
    pub(crate) fn sleep_once(&self, mut ready: impl FnMut() -> bool, timeout: Duration) {
        A::store(self.0.host_sleeps, 1);
        A::fence();
        if !ready() {
            A::sleep(self.0.host_sleeps, 1, Some(timeout));
        }
        A::store(self.0.host_sleeps, 0);
    }

    /// Gives the turn back to the caller. The answer must have been stored before.
    pub(crate) fn answer(&self) {
        A::store(self.0.turn, TURN_GUEST);
        A::fence();
        if A::load(self.0.caller_sleeps) != 0 {
            A::wake(self.0.turn);
        }
    }
}

/// Makes a server that sleeps look at its `interrupted`, which the caller has made true before.
pub(crate) fn kick<A: Atomics>(host_sleeps: &A::Word) {
    A::fence();
    A::store(host_sleeps, 0);
    A::wake(host_sleeps);
}

/// The vCPU thread's half: the model of what the stub does at `hv_stub_call` and `hv_stub_publish_trap`.
#[cfg(test)]
pub(crate) struct Caller<'a, A: Atomics>(pub Words<'a, A>);

#[cfg(test)]
impl<A: Atomics> Caller<'_, A> {
    /// Publishes `turn` and waits for the answer. The request must have been stored before.
    pub(crate) fn call(&self, turn: u32, spin: u32) {
        // publish
        A::store(self.0.turn, turn);
        A::fence();
        // wake the host
        if A::load(self.0.host_sleeps) != 0 {
            A::store(self.0.host_sleeps, 0);
            A::wake(self.0.host_sleeps);
        }
        // spin
        for _ in 0..spin {
            if A::load(self.0.turn) != turn {
                return;
            }
            A::relax();
        }
        // sleep
        A::store(self.0.caller_sleeps, 1);
        A::fence();
        while A::load(self.0.turn) == turn {
            A::sleep(self.0.turn, turn, None);
        }
        A::store(self.0.caller_sleeps, 0);
    }
}

/// The hand-over page of one vCPU in one sandbox. The guest can write all of it at any time.
#[derive(Debug, zerocopy::FromBytes)]
#[repr(C, align(4096))]
pub(crate) struct Handover {
    /// 1: the call published is a `block` that gives way to a stop.
    pub in_block: AtomicU32,
    /// A guest kernel's: how often it may still find its program on its own processor before it comes to the monitor with it.
    pub together_left: AtomicU32,
    /// A guest kernel's: not 0 while the monitor polls event channels for it.
    pub polls: AtomicU32,
    /// A guest kernel's: not 0 while it is in the stub to wake another vCPU; it looks for upcalls before it returns.
    pub looks: AtomicU32,
    reserved1: [u64; 6],
    // One line that both sides only read while they spin.
    pub host_sleeps: AtomicU32,
    pub caller_sleeps: AtomicU32,
    /// How often the caller spins before it sleeps. The monitor sets it.
    pub spin: AtomicU32,
    /// Not 0: the vCPU is to stop at its next stopping point. The monitor sets it.
    pub stop: AtomicU32,
    /// Processor on which the monitor's thread last ran.
    pub host_cpu: AtomicU32,
    /// Not 0: the sandbox is gone. The monitor sets it.
    pub is_dead: AtomicU32,
    reserved3: [u64; 5],
    // The caller's own.
    /// Stack and frame pointer of the guest at its last call, for backtraces.
    pub rsp: AtomicU64,
    pub rbp: AtomicU64,
    /// Addresses of the `ucontext` and `siginfo` of the trap published.
    pub frame: AtomicU64,
    pub siginfo: AtomicU64,
    /// Signal of the trap published; 0 for a stop.
    pub signal: AtomicU32,
    /// Processor on which the caller last looked while it span.
    pub cpu: AtomicU32,
    /// Time-out of `block`, a `timespec`.
    pub timeout: [AtomicU64; 2],
    /// How often the caller has spun, in all.
    pub spun: AtomicU64,
    /// Host thread number of the caller; the host kernel writes it when it makes the thread.
    pub thread: AtomicU32,
    /// Not 0 in the sandbox of a user program. The monitor sets it.
    pub is_user: AtomicU32,
    // A guest kernel's, which enters programs by itself.
    /// 1 while it waits for a program that it entered so.
    pub direct: AtomicU32,
    /// In the sandbox of a user program: how often a system call traps before the monitor looks at it. The monitor sets it.
    pub look_after: AtomicU32,
    /// A guest kernel's: the root of the program that it waits for, as a claim.
    pub direct_root: AtomicU64,
    reserved5: [u64; 5],
    // One line that moves with every call; of a program's registers, those that most system calls change are in it.
    pub turn: AtomicU32,
    pub number: AtomicU32,
    /// A program's registers, in [`ORDER`]: at the trap that is published, and to go on with. They are stored only when they
    /// have changed, so that the other lines stay where they are. A guest kernel has its call here, and FS base.
    words: [AtomicU64; USER_WORDS],
    reserved6: [u64; 12],
    /// A guest kernel's: the programs that it may enter by itself, each at [`Enterable::index`] of its root.
    enterable: [Enterable; ENTERABLE],
    /// How often the program's system calls have trapped, by the lowest bits of RIP, each modulo 256.
    pub traps: [[AtomicU64; 32]; 4],
    reserved7: [[u64; 32]; 2],
}

/// Programs that a guest kernel may enter by itself, at the most. Two whose roots have one place take turns with it.
pub(crate) const ENTERABLE: usize = 64;

/// A program that a guest kernel may enter without the monitor, which has checked what is here.
#[derive(Debug, zerocopy::FromBytes)]
#[repr(C)]
pub(crate) struct Enterable {
    pub root: AtomicU64,
    /// P of its context. None is odd, so 1 stands for none.
    pub context: AtomicU64,
    /// Where the context's extended state goes.
    pub xstate: AtomicU64,
    /// Address in the guest kernel's sandbox of the program's hand-over page.
    pub link: AtomicU64,
}

impl Enterable {
    const NONE: u64 = 1;

    /// Where the one of a root is; the stub computes it, too.
    fn index(root: u64) -> usize {
        (root >> 12) as usize % ENTERABLE
    }
}
const _: () = assert!(size_of::<Handover>() == 4096);
const _: () = assert!(core::mem::offset_of!(Handover, host_sleeps) == 64);
const _: () = assert!(core::mem::offset_of!(Handover, rsp) == 128);
const _: () = assert!(core::mem::offset_of!(Handover, turn) == 256);
const _: () = assert!(
    core::mem::offset_of!(Handover, reserved7) - core::mem::offset_of!(Handover, traps) == TRAP_COUNTERS
);

impl Handover {
    /// Offset of the words that go with a turn.
    pub(crate) const WORDS: usize = core::mem::offset_of!(Self, words);
    /// Offset of the programs that may be entered.
    pub(crate) const ENTERABLE: usize = core::mem::offset_of!(Self, enterable);

    /// As for a new sandbox: nothing published, nothing asked for.
    pub(crate) fn reset(&self) {
        let words = [
            &self.turn,
            &self.in_block,
            &self.host_sleeps,
            &self.caller_sleeps,
            &self.stop,
            &self.is_dead,
            &self.direct,
            &self.polls,
            &self.looks,
        ];
        words.into_iter().for_each(|word| word.store(0, Relaxed));
        self.signal.store(0, Relaxed);
        self.frame.store(0, Relaxed);
        let counters = self.traps.iter().flatten();
        self.words.iter().chain(counters).for_each(|word| word.store(0, Relaxed));
        self.enterable.iter().for_each(|place| place.context.store(Enterable::NONE, Relaxed));
    }

    /// Arguments of the call that is published.
    pub(crate) fn arguments(&self) -> [u64; 5] {
        core::array::from_fn(|i| self.words[i].load(Relaxed))
    }

    /// Stores the answer to the call that is published.
    pub(crate) fn set_answer(&self, status: u32, value: u64) {
        self.words[CALL_VALUE].store(value, Relaxed);
        self.words[CALL_STATUS].store(status.into(), Relaxed);
    }

    /// A program's registers; of a guest kernel's, FS base.
    pub(crate) fn registers(&self) -> Registers {
        let mut registers = [0; USER_WORDS];
        self.words.iter().zip(ORDER).for_each(|(word, i)| registers[i] = word.load(Relaxed));
        zerocopy::transmute!(registers)
    }

    /// Sets what a program goes on with.
    pub(crate) fn set_registers(&self, registers: &Registers) {
        let registers: [u64; USER_WORDS] = zerocopy::transmute!(*registers);
        self.words.iter().zip(ORDER).for_each(|(word, i)| word.store(registers[i], Relaxed));
    }

    /// The guest kernel may enter this program by itself.
    pub(crate) fn allow(&self, root: u64, context: u64, xstate: u64, link: u64) {
        let place = &self.enterable[Enterable::index(root)];
        place.root.store(root, Relaxed);
        place.xstate.store(xstate, Relaxed);
        place.link.store(link, Relaxed);
        place.context.store(context, Relaxed);
    }

    /// The guest kernel is to come to the monitor with the next program under this root.
    pub(crate) fn forbid(&self, root: u64) {
        let place = &self.enterable[Enterable::index(root)];
        if place.root.load(Relaxed) == root {
            place.context.store(Enterable::NONE, Relaxed);
        }
    }
}

/// The machine's own atomics and futexes, on words that other processes see, too.
pub(crate) struct Machine;

impl Atomics for Machine {
    type Word = AtomicU32;

    fn load(word: &AtomicU32) -> u32 {
        word.load(core::sync::atomic::Ordering::Acquire)
    }

    fn store(word: &AtomicU32, value: u32) {
        word.store(value, core::sync::atomic::Ordering::Release);
    }

    fn fence() {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }

    fn sleep(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
        let timeout = timeout.map(|t| rustix::thread::futex::Timespec {
            tv_sec: t.as_secs().min(i64::MAX as u64) as i64,
            tv_nsec: t.subsec_nanos().into(),
        });
        // An error means that the word changed, a signal came or the time passed; the caller looks.
        let _ = rustix::thread::futex::wait(
            word,
            rustix::thread::futex::Flags::empty(),
            expected,
            timeout.as_ref(),
        );
    }

    fn wake(word: &AtomicU32) {
        // Fails only for a word that is not mapped, and this one is.
        // All, since a hostile guest may have lined up before the one that is meant.
        let _ = rustix::thread::futex::wake(word, rustix::thread::futex::Flags::empty(), i32::MAX as u32);
    }

    fn relax() {
        core::hint::spin_loop();
    }
}

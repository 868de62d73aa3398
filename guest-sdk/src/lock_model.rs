//! [`RawLock`](crate::sync::RawLock) under a model checker: three vCPUs that take it, in every interleaving, up to a bound on
//! preemptions. A vCPU that is never woken is a deadlock, which loom reports.
//!
//! The lock's steps are copied from `sync.rs`, with one turn of spinning and upcalls masked as they are there; those of BLOCK
//! and EVENT_SEND are what docs/abi.md says of them. loom takes SeqCst for AcqRel, so a fence stands where it is more.

use hv_abi::vcpu::{run_state, upcall};
use loom::sync::atomic::{AtomicU32, Ordering::*, fence};
use loom::sync::{Condvar, Mutex};
use loom::thread;
use std::boxed::Box;

/// A step that is left out, to see that it matters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Broken {
    No,
    /// The waiter looks whether the lock is free before it says that it waits.
    LooksFirst,
    /// The waiter does not look at its kick after it has put the sign of a pending upcall away.
    ForgetsKick,
}

struct Vcpu {
    kick: AtomicU32,
    upcall: AtomicU32,
    run_state: AtomicU32,
    queue: Mutex<()>,
    wake: Condvar,
}

struct Model {
    holder: AtomicU32,
    waiters: AtomicU32,
    inside: AtomicU32,
    vcpus: [Vcpu; 3],
    broken: Broken,
}

impl Vcpu {
    fn new() -> Self {
        Self {
            kick: AtomicU32::new(0),
            upcall: AtomicU32::new(upcall::MASKED),
            run_state: AtomicU32::new(run_state::RUNNING),
            queue: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    fn block(&self) {
        self.run_state.store(run_state::BLOCKED, SeqCst);
        fence(SeqCst);
        loop {
            let queue = self.queue.lock().unwrap();
            if self.upcall.load(SeqCst) & upcall::PENDING != 0 {
                break;
            }
            drop(self.wake.wait(queue).unwrap());
        }
        self.run_state.store(run_state::RUNNING, SeqCst);
        fence(SeqCst);
    }

    /// An EVENT_SEND by another.
    fn send_kick(&self) {
        self.kick.fetch_or(1, SeqCst);
        let was = self.upcall.fetch_or(upcall::PENDING, SeqCst);
        fence(SeqCst);
        if was & upcall::PENDING == 0 && self.run_state.load(SeqCst) == run_state::BLOCKED {
            drop(self.queue.lock().unwrap());
            self.wake.notify_all();
        }
    }
}

impl Model {
    fn take(&self, me: usize) -> bool {
        self.holder.compare_exchange(0, me as u32 + 1, Acquire, Relaxed).is_ok()
    }

    fn lock(&self, me: usize) {
        if !self.take(me) {
            while !(self.holder.load(Relaxed) == 0 && self.take(me)) {
                self.sleep(me);
            }
        }
    }

    fn sleep(&self, me: usize) {
        let (vcpu, bit) = (&self.vcpus[me], 1 << me);
        let early = self.holder.load(SeqCst);
        self.waiters.fetch_or(bit, SeqCst);
        fence(SeqCst);
        vcpu.upcall.fetch_and(!upcall::PENDING, SeqCst);
        fence(SeqCst);
        let held = if self.broken == Broken::LooksFirst { early } else { self.holder.load(SeqCst) };
        if held != 0 && (self.broken == Broken::ForgetsKick || vcpu.kick.load(Relaxed) == 0) {
            vcpu.block();
        }
        vcpu.kick.fetch_and(0, SeqCst);
        self.waiters.fetch_and(!bit, SeqCst);
    }

    fn unlock(&self) {
        self.holder.swap(0, SeqCst);
        fence(SeqCst);
        if self.waiters.load(SeqCst) != 0 {
            let waiters = self.waiters.load(SeqCst);
            if waiters != 0 {
                let waiter = waiters.trailing_zeros();
                self.waiters.fetch_and(!(1 << waiter), SeqCst);
                self.vcpus[waiter as usize].send_kick();
            }
        }
    }
}

fn contended(broken: Broken, times: [u32; 3]) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        // Leaked: loom cannot drop what is its own once it has found a deadlock.
        let model: &'static Model = Box::leak(Box::new(Model {
            holder: AtomicU32::new(0),
            waiters: AtomicU32::new(0),
            inside: AtomicU32::new(0),
            vcpus: core::array::from_fn(|_| Vcpu::new()),
            broken,
        }));
        let turns = move |me: usize| {
            for _ in 0..times[me] {
                model.lock(me);
                assert_eq!(model.inside.fetch_add(1, Relaxed), 0, "two have the lock");
                model.inside.fetch_sub(1, Relaxed);
                model.unlock();
            }
        };
        let others = [1, 2].map(|me| thread::spawn(move || turns(me)));
        turns(0);
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}

#[test]
fn a_waiter_is_always_woken() {
    contended(Broken::No, [1, 1, 1]);
    contended(Broken::No, [2, 2, 0]);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_waiter_that_looks_first_sleeps_for_ever() {
    contended(Broken::LooksFirst, [1, 1, 0]);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_waiter_that_forgets_its_kick_sleeps_for_ever() {
    contended(Broken::ForgetsKick, [2, 2, 0]);
}

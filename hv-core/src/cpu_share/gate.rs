//! A gate that guest code passes: open, it runs; closed, it is held back.
//!
//! One thread closes and opens it ([`super`]). Others may *pass* it, which keeps it from being closed while they do
//! something for which guest code, or what lives in its processes, must be able to run; or have it *lifted*, which opens
//! it and keeps it open: for a stop, which is to be prompt. Passing counts as holding nobody up for long: whoever wants to
//! close waits, and who comes after it waits for the gate to open again.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    /// Since when it is closed.
    closed: Option<Instant>,
    /// It is to be closed as soon as nobody passes.
    closing: bool,
    passing: u32,
    lifted: u32,
    /// For ever open.
    ended: bool,
    start: Instant,
    /// How long it was closed, before this time.
    was_closed: Duration,
}

/// Somebody passes.
#[derive(Debug)]
pub(crate) struct Pass<'a>(&'a Gate);

/// The gate stays open.
#[derive(Debug)]
pub(crate) struct Lifted<'a>(&'a Gate);

/// How a wait of the gate's keeper went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// The time is over.
    Through,
    /// The gate is to be open, now.
    Lifted,
    /// There is nothing left to guard.
    Ended,
}

impl Gate {
    /// An open one.
    pub(crate) fn new() -> Self {
        let state = State {
            closed: None,
            closing: false,
            passing: 0,
            lifted: 0,
            ended: false,
            start: Instant::now(),
            was_closed: Duration::ZERO,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics with the lock held")
    }

    fn wait_while<'a>(
        &self,
        state: MutexGuard<'a, State>,
        condition: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed.wait_while(state, condition).expect("no thread panics with the lock held")
    }

    /// Waits until it is open, and keeps it so. Not to be asked for twice by one thread.
    pub(crate) fn pass(&self) -> Pass<'_> {
        let mut state = self.wait_while(self.lock(), |state| {
            !state.ended && (state.closed.is_some() || state.closing && state.lifted == 0)
        });
        state.passing += 1;
        Pass(self)
    }

    /// Has it opened, and keeps it open.
    pub(crate) fn lift(&self) -> Lifted<'_> {
        let mut state = self.lock();
        state.lifted += 1;
        self.changed.notify_all();
        drop(self.wait_while(state, |state| !state.ended && state.closed.is_some()));
        Lifted(self)
    }

    /// Has it opened, for ever.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    /// How long it has been open, since it was made.
    pub(crate) fn clock(&self) -> Duration {
        let state = self.lock();
        let now = state.closed.unwrap_or_else(Instant::now);
        (now - state.start).saturating_sub(state.was_closed)
    }

    /// How long it has been closed, all times together.
    pub(crate) fn held_back(&self) -> Duration {
        let state = self.lock();
        state.was_closed + state.closed.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Closes it, once nobody passes. Not, and gives `false`, if it is lifted.
    pub(super) fn close(&self) -> bool {
        let mut state = self.lock();
        state.closing = true;
        let mut state = self.wait_while(state, |state| state.passing > 0 && !state.must_open());
        state.closing = false;
        if state.must_open() {
            self.changed.notify_all();
            return false;
        }
        state.closed = Some(Instant::now());
        true
    }

    /// How long it is closed by now.
    pub(super) fn closed_for(&self) -> Duration {
        self.lock().closed.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Opens it. Gives how long it was closed.
    pub(super) fn open(&self) -> Duration {
        let mut state = self.lock();
        let closed = state.closed.take().map_or(Duration::ZERO, |since| since.elapsed());
        state.was_closed += closed;
        self.changed.notify_all();
        closed
    }

    /// Waits for so long, or until there is nothing left to guard, or, if it is closed, it must open.
    pub(super) fn wait(&self, time: Duration) -> Waited {
        let wakes = |state: &mut State| state.ended || state.closed.is_some() && state.lifted > 0;
        let waited = self.changed.wait_timeout_while(self.lock(), time, |state| !wakes(state));
        let (state, _) = waited.expect("no thread panics with the lock held");
        match *state {
            State { ended: true, .. } => Waited::Ended,
            State { closed: Some(_), lifted: 1.., .. } => Waited::Lifted,
            _ => Waited::Through,
        }
    }
}

impl State {
    fn must_open(&self) -> bool {
        self.ended || self.lifted > 0
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.passing -= 1;
        if state.closing && state.passing == 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Lifted<'_> {
    fn drop(&mut self) {
        self.0.lock().lifted -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::thread;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn it_is_closed_when_nobody_passes_and_nobody_passes_while_it_is() {
        let gate = Gate::new();
        let closed = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let _pass = gate.pass();
                        assert!(!closed.load(SeqCst));
                    }
                });
            }
            for _ in 0..200 {
                assert!(gate.close());
                closed.store(true, SeqCst);
                thread::yield_now();
                closed.store(false, SeqCst);
                gate.open();
            }
        });
    }

    #[test]
    fn lifting_it_wakes_its_keeper_and_it_stays_open() {
        let gate = Gate::new();
        assert!(gate.close());
        thread::scope(|scope| {
            let keeper = scope.spawn(|| {
                let waited = gate.wait(LONG);
                gate.open();
                waited
            });
            let lifted = gate.lift();
            assert_eq!(keeper.join().unwrap(), Waited::Lifted);
            assert!(!gate.close());
            drop(gate.pass());
            drop(lifted);
        });
        assert!(gate.close());
    }

    #[test]
    fn one_that_passes_does_not_keep_a_lift_or_an_end_waiting() {
        let gate = Gate::new();
        let _pass = gate.pass();
        thread::scope(|scope| {
            let keeper = scope.spawn(|| gate.close());
            let lifted = gate.lift();
            assert!(!keeper.join().unwrap());
            drop(lifted);
            let keeper = scope.spawn(|| gate.close());
            gate.end();
            assert!(!keeper.join().unwrap());
            assert_eq!(gate.wait(LONG), Waited::Ended);
        });
    }

    #[test]
    fn its_clock_stands_while_it_is_closed() {
        let gate = Gate::new();
        assert!(gate.close());
        let closed = gate.clock();
        thread::sleep(Duration::from_millis(5));
        assert_eq!(gate.clock(), closed);
        assert!(gate.open() >= Duration::from_millis(5));
        let open = gate.clock();
        thread::sleep(Duration::from_millis(5));
        assert!(gate.clock() >= open + Duration::from_millis(5));
    }
}

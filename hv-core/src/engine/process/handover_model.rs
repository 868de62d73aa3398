//! The hand-over protocol under a model checker: every interleaving, up to a bound on preemptions, with every
//! value that weak memory could show. A lost wake-up is a deadlock, which loom reports.

use super::handover::*;
use hv_abi::vcpu::{run_state, upcall};
use loom::sync::atomic::{AtomicU32, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use std::time::Duration;

/// A word with its futex.
pub(super) struct Word {
    pub(super) value: AtomicU32,
    queue: Mutex<()>,
    wake: Condvar,
}

impl Word {
    pub(super) fn new(value: u32) -> Self {
        Self { value: AtomicU32::new(value), queue: Mutex::new(()), wake: Condvar::new() }
    }
}

/// loom's atomics, and futexes made of its mutexes.
pub(super) struct Model;

impl Atomics for Model {
    type Word = Word;

    fn load(word: &Word) -> u32 {
        word.value.load(Ordering::Acquire)
    }

    fn store(word: &Word, value: u32) {
        word.value.store(value, Ordering::Release);
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }

    fn sleep(word: &Word, expected: u32, timeout: Option<Duration>) {
        assert!(timeout.is_none_or(|time| time == Duration::MAX), "the model has no time");
        let queue = word.queue.lock().unwrap();
        // The kernel compares under the same lock that a waker takes.
        if word.value.load(Ordering::SeqCst) == expected {
            drop(word.wake.wait(queue).unwrap());
        }
    }

    fn wake(word: &Word) {
        drop(word.queue.lock().unwrap());
        word.wake.notify_all();
    }

    fn relax() {
        thread::yield_now();
    }
}

/// What both sides see: the protocol's words, and a request and answer that they order.
pub(super) struct Page {
    turn: Word,
    pub(super) host_sleeps: Word,
    caller_sleeps: Word,
    payload: AtomicU32,
    interrupted: AtomicU32,
}

impl Page {
    pub(super) fn new() -> Self {
        Self {
            turn: Word::new(TURN_GUEST),
            host_sleeps: Word::new(0),
            caller_sleeps: Word::new(0),
            payload: AtomicU32::new(0),
            interrupted: AtomicU32::new(0),
        }
    }

    pub(super) fn words(&self) -> Words<'_, Model> {
        Words { turn: &self.turn, host_sleeps: &self.host_sleeps, caller_sleeps: &self.caller_sleeps }
    }

    fn wait(&self) -> Wait {
        let server = Server(self.words());
        match server.spin(1) {
            (Some(turn), _) => Wait::Published(turn),
            (None, _) => server.sleep(|| self.interrupted.load(Ordering::Acquire) != 0, || Some(None)),
        }
    }

    fn interrupt(&self) {
        self.interrupted.store(1, Ordering::Release);
        kick::<Model>(&self.host_sleeps);
    }
}

pub(super) fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// The caller's side of `calls` calls: each answer must be the request plus one.
fn call_times(page: &Page, calls: u32, spin: u32) {
    for i in 0..calls {
        page.payload.store(i * 10, Ordering::Relaxed);
        Caller(page.words()).call(TURN_CALL, spin);
        assert_eq!(page.payload.load(Ordering::Relaxed), i * 10 + 1, "the answer is seen with the turn");
    }
}

fn serve(page: &Page) {
    let request = page.payload.load(Ordering::Relaxed);
    page.payload.store(request + 1, Ordering::Relaxed);
    Server(page.words()).answer();
}

#[test]
fn every_call_is_answered_and_answers_are_seen_whole() {
    for spin in [0, 1] {
        check(3, move || {
            let page = Arc::new(Page::new());
            let caller = {
                let page = page.clone();
                thread::spawn(move || call_times(&page, 2, spin))
            };
            for _ in 0..2 {
                assert_eq!(page.wait(), Wait::Published(TURN_CALL));
                serve(&page);
            }
            caller.join().unwrap();
        });
    }
}

#[test]
fn a_kick_is_never_lost_beside_a_call() {
    check(2, || {
        let page = Arc::new(Page::new());
        let caller = {
            let page = page.clone();
            thread::spawn(move || call_times(&page, 1, 0))
        };
        let kicker = {
            let page = page.clone();
            thread::spawn(move || page.interrupt())
        };
        let mut served = 0;
        let mut interrupted = false;
        while served < 1 || !interrupted {
            match page.wait() {
                Wait::Published(_) => {
                    serve(&page);
                    served += 1;
                }
                Wait::Interrupted => {
                    page.interrupted.store(0, Ordering::Relaxed);
                    interrupted = true;
                }
                Wait::TimedOut => unreachable!("the model has no time"),
            }
        }
        caller.join().unwrap();
        kicker.join().unwrap();
    });
}

#[test]
fn spurious_wake_ups_do_no_harm() {
    check(2, || {
        let page = Arc::new(Page::new());
        let caller = {
            let page = page.clone();
            thread::spawn(move || call_times(&page, 1, 0))
        };
        let nuisance = {
            let page = page.clone();
            thread::spawn(move || {
                Model::wake(&page.turn);
                Model::wake(&page.host_sleeps);
            })
        };
        assert_eq!(page.wait(), Wait::Published(TURN_CALL));
        serve(&page);
        caller.join().unwrap();
        nuisance.join().unwrap();
    });
}

/// Whatever a guest writes to the page, the monitor's thread hears of its death.
#[test]
fn a_hostile_caller_cannot_keep_the_server_from_hearing_of_its_death() {
    check(3, || {
        let page = Arc::new(Page::new());
        let hostile = {
            let page = page.clone();
            thread::spawn(move || {
                Model::store(&page.host_sleeps, 0);
                Model::store(&page.turn, TURN_TRAP);
                Model::store(&page.host_sleeps, 1);
                Model::store(&page.turn, TURN_GUEST);
            })
        };
        let reaper = {
            let page = page.clone();
            thread::spawn(move || {
                hostile.join().unwrap(); // the kernel tells of a death after it
                page.interrupt();
            })
        };
        loop {
            match page.wait() {
                Wait::Interrupted => break,
                Wait::Published(_) if page.interrupted.load(Ordering::Acquire) != 0 => break,
                // An answer to something that was never asked. A real one would be a trap or a call.
                Wait::Published(_) => Server(page.words()).answer(),
                Wait::TimedOut => unreachable!("the model has no time"),
            }
        }
        reaper.join().unwrap();
    });
}

/// The way back from `hv_stub_block` at its deadline, upcalls unmasked: either the vCPU sees the event at
/// `hv_stub_finish`, or the host sees that it runs, and signals it.
#[test]
fn an_event_is_never_lost_beside_the_end_of_a_block() {
    check(4, || {
        let page = Arc::new((Word::new(0), AtomicU32::new(run_state::BLOCKED)));
        let host = {
            let page = page.clone();
            thread::spawn(move || {
                page.0.value.fetch_or(upcall::PENDING, Ordering::SeqCst);
                Model::fence();
                page.1.load(Ordering::SeqCst) != run_state::BLOCKED
            })
        };
        page.1.swap(run_state::RUNNING, Ordering::SeqCst);
        Model::fence();
        let seen = Model::load(&page.0) & upcall::PENDING != 0;
        let signalled = host.join().unwrap();
        assert!(seen || signalled, "the event is lost");
    });
}

/// `hv_stub_block` against `Events::raise` and the engine's `notify`: the vCPU says that it is blocked, then looks
/// for events; the host stores the event, then looks whether the vCPU is blocked.
#[test]
fn an_event_is_never_lost_beside_a_block() {
    check(4, || {
        let page = Arc::new((Word::new(upcall::MASKED), AtomicU32::new(run_state::RUNNING)));
        let host = {
            let page = page.clone();
            thread::spawn(move || {
                let (word, state) = &*page;
                word.value.fetch_or(upcall::PENDING, Ordering::SeqCst);
                Model::fence();
                if state.load(Ordering::SeqCst) == run_state::BLOCKED {
                    Model::wake(word);
                }
            })
        };
        let (word, state) = &*page;
        state.swap(run_state::BLOCKED, Ordering::SeqCst);
        Model::fence();
        loop {
            let seen = Model::load(word);
            if seen & upcall::PENDING != 0 {
                break;
            }
            Model::sleep(word, seen, None);
        }
        host.join().unwrap();
    });
}

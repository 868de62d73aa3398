//! The scheduler: which thread runs where.
//!
//! There is one queue of ready threads, from which every vCPU takes ([`Scheduler::take`]), so none is idle while a thread is
//! ready. A vCPU prefers a thread that it ran last, whose extended state it has; but each thread is passed over only once.
//!
//! A thread that has to wait is put aside with a note of what it waits for; whoever makes that come true calls
//! [`Scheduler::wake`], and the thread makes its system call again. With so few threads, looking through all of them is
//! simpler than a queue for everything, and fast enough.
//!
//! # Idle vCPUs
//!
//! A vCPU that finds nothing to do says so ([`Scheduler::rest`]) and blocks; it is sent an event when there is something
//! ([`Scheduler::rouse`]). One of the idle vCPUs, the *keeper*, also waits for the first moment for which a thread sleeps, so
//! that not all of them wake up for it. When it has something to do, another one takes its place.

use crate::thread::{Doing, Thread, Turn, Wait};
use alloc::collections::{BTreeMap, VecDeque};
use guest_sdk::events::Channel;
use guest_sdk::hv_abi::address::MAX_VCPUS;
use guest_sdk::hv_abi::call::NEVER;
use guest_sdk::time::{Duration, Instant};
use minios_abi::Error;

/// Threads that there can be.
pub const MOST_THREADS: usize = 256;

/// All threads, and the vCPUs that run them.
#[derive(Debug)]
pub struct Scheduler {
    /// All threads, by their numbers.
    pub threads: BTreeMap<u32, Thread>,
    /// Those that are ready, in the order of their turns.
    ready: VecDeque<u32>,
    /// Each vCPU's channel for being woken, once it takes part.
    kicks: [Option<Channel>; MAX_VCPUS as usize],
    /// vCPUs that block, or are about to, one bit each.
    idle: u64,
    /// vCPUs that blocked, and were woken for what is ready.
    roused: u64,
    /// The idle vCPU that waits for a moment, and that moment, in nanoseconds.
    keeper: Option<(u32, u64)>,
}

impl Scheduler {
    /// One without threads and vCPUs.
    pub fn new() -> Self {
        Self {
            threads: BTreeMap::new(),
            ready: VecDeque::new(),
            kicks: [None; _],
            idle: 0,
            roused: 0,
            keeper: None,
        }
    }

    /// A vCPU is to take part; an event of `kick` wakes it.
    pub fn join(&mut self, vcpu: u32, kick: Channel) {
        self.kicks[vcpu as usize] = Some(kick);
    }

    /// Adds a thread that is ready.
    ///
    /// # Errors
    ///
    /// There are as many as there can be.
    pub fn add(&mut self, thread: Thread) -> Result<(), Error> {
        if self.threads.len() >= MOST_THREADS {
            return Err(Error::TooManyThreads);
        }
        self.ready.push_back(thread.id);
        self.threads.insert(thread.id, thread);
        Ok(())
    }

    /// The thread that a vCPU is to run.
    pub fn take(&mut self, vcpu: u32) -> Option<Turn> {
        self.arrive(vcpu);
        let own = self.ready.iter().position(|id| self.threads[id].vcpu == vcpu).unwrap_or(0);
        let first = self.threads.get_mut(self.ready.front()?)?;
        let place = match first.doing {
            Doing::Ready(false) if own > 0 => {
                first.doing = Doing::Ready(true);
                own
            }
            _ => 0,
        };
        let thread = self.threads.get_mut(&self.ready.remove(place)?)?;
        (thread.doing, thread.vcpu) = (Doing::Runs, vcpu);
        let turn = thread.turn.take();
        if self.keeper.is_some_and(|(keeper, _)| keeper == vcpu) {
            self.keeper = None;
            self.replace_keeper();
        }
        turn
    }

    /// A thread has come back from a vCPU, where it ran for so long, and does something else now.
    pub fn put_back(&mut self, turn: Turn, doing: Doing, run: Duration) {
        let Some(thread) = self.threads.get_mut(&turn.thread) else { return };
        if matches!(doing, Doing::Ready(_)) {
            self.ready.push_back(thread.id);
        }
        (thread.turn, thread.doing) = (Some(turn), doing);
        thread.run += run;
    }

    /// Makes those ready for whom `may_go_on` says so. They make their system calls again.
    pub fn wake(&mut self, may_go_on: impl Fn(&Thread, Wait) -> bool) {
        for thread in self.threads.values_mut() {
            let Doing::Waits(wait) = thread.doing else { continue };
            if may_go_on(thread, wait) {
                thread.doing = Doing::Ready(false);
                thread.turn.iter_mut().for_each(|turn| turn.again = true);
                self.ready.push_back(thread.id);
            }
        }
    }

    /// Makes ready at most `count` threads of a process that wait at that address: their calls succeed. Gives how many.
    pub fn wake_futex(&mut self, process: u32, word: u64, count: u64) -> u64 {
        let mut woken = 0;
        for thread in self.threads.values_mut() {
            if woken < count && thread.process == process && thread.doing == Doing::Waits(Wait::Futex(word)) {
                thread.doing = Doing::Ready(false);
                thread.turn.iter_mut().for_each(|turn| turn.task.set_result(0));
                self.ready.push_back(thread.id);
                woken += 1;
            }
        }
        woken
    }

    /// Makes those ready whose moment has come.
    pub fn wake_sleepers(&mut self) {
        if self.first_moment() != NEVER {
            let now = Instant::now();
            self.wake(|_, wait| matches!(wait, Wait::Until(moment) if moment <= now));
        }
    }

    /// Removes the threads of a process that no vCPU runs, and has those that run come back. Gives how many it removed.
    pub fn end(&mut self, process: u32) -> usize {
        let before = self.threads.len();
        self.threads.retain(|_, thread| thread.process != process || thread.doing == Doing::Runs);
        self.ready.retain(|id| self.threads.contains_key(id));
        for thread in self.threads.values().filter(|thread| thread.process == process) {
            self.kick(thread.vcpu);
        }
        before - self.threads.len()
    }

    /// Wakes idle vCPUs, as many as there are threads ready for them; before those, the ones that ran them last. The caller
    /// takes one thread itself if it has none (`takes`).
    pub fn rouse(&mut self, takes: bool) {
        let coming = self.roused.count_ones() as usize + usize::from(takes);
        let mut spare = self.ready.len().saturating_sub(coming);
        while spare > 0 && self.idle != 0 {
            let last = self.ready.get(coming + spare - 1).map_or(0, |id| self.threads[id].vcpu);
            let vcpu = if self.idle & 1 << last != 0 { last } else { self.idle.trailing_zeros() };
            self.roused |= 1 << vcpu;
            self.idle &= !(1 << vcpu);
            self.kick(vcpu);
            spare -= 1;
        }
    }

    /// A vCPU has nothing to do, and blocks. If it is to wait for a moment, gives that.
    pub fn rest(&mut self, vcpu: u32) -> Option<u64> {
        self.idle |= 1 << vcpu;
        let first = self.first_moment();
        if self.keeper.is_some_and(|(keeper, moment)| keeper != vcpu && moment <= first) {
            return None;
        }
        self.keeper = Some((vcpu, first));
        Some(first)
    }

    /// A vCPU does not block any more.
    fn arrive(&mut self, vcpu: u32) {
        self.idle &= !(1 << vcpu);
        self.roused &= !(1 << vcpu);
    }

    /// Has an idle vCPU look for how long it may block, if somebody sleeps.
    fn replace_keeper(&mut self) {
        if self.idle != 0 && self.first_moment() != NEVER {
            self.kick(self.idle.trailing_zeros());
        }
    }

    /// The first moment for which somebody sleeps, in nanoseconds.
    fn first_moment(&self) -> u64 {
        let moments = self.threads.values().filter_map(|thread| match thread.doing {
            Doing::Waits(Wait::Until(moment)) => Some(moment.as_nanos()),
            _ => None,
        });
        moments.min().unwrap_or(NEVER)
    }

    fn kick(&self, vcpu: u32) {
        if let Some(kick) = self.kicks[vcpu as usize] {
            kick.send().expect("it is never closed");
        }
    }
}

impl Default for Scheduler {
    fn default() -> Self {
        Self::new()
    }
}

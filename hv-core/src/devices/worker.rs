//! A device's thread: it waits for doorbells and for what the device waits for on the host, and has the device work.
//!
//! A worker that has just worked looks again for a bounded time before it sleeps, if there is a processor to spare; how long is
//! learnt from the last waits. While it looks no doorbell is wanted, so the guest need not cross.
//!
//! Start at [`Worker::run`].

use super::line::Line;
use super::ring::Ring;
use super::{Broken, Device, Interest};
use crossbeam_channel::{Receiver, Sender};
use hv_abi::device::interrupt;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The longest look for more work before a sleep: what it costs to be woken, and as much again for a guest that was to be woken, too.
const LOOK: Duration = Duration::from_micros(200);
/// While it looks at rings, it looks at the host's descriptors as often as this.
const LOOK_AT_SOURCES: Duration = Duration::from_micros(2);

/// What a worker is told. Those with a sender are answered once they are done.
pub(super) enum Order {
    /// The driver is ready, with these features and rings.
    Activate(u64, Vec<Option<Ring>>),
    /// The device forgets its driver, and touches no guest memory any more.
    Reset(Sender<()>),
    /// A ring is not used any more.
    StopQueue(u16, Sender<()>),
    /// The driver has written to the configuration space.
    Config(usize, u32, Sender<()>),
    /// Touches no guest memory until it is to resume.
    Pause(Sender<()>),
    Resume,
    End,
}

/// Wakes a worker, or whoever waits for its descriptor.
#[derive(Clone, Debug)]
pub(crate) struct Bell(Arc<OwnedFd>);

impl Bell {
    /// A new one, silent.
    ///
    /// # Errors
    ///
    /// The host's.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Wakes whoever waits, or will wait next.
    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&*self.0, &1_u64.to_ne_bytes()); // full: it rings already
    }

    /// Silences it. Whether it rang.
    pub(crate) fn silence(&self) -> bool {
        rustix::io::read(&*self.0, &mut [0; 8]).is_ok()
    }

    /// What to wait on: readable when it rings.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How long to look for more work.
struct Patience {
    /// It is zero where there is no processor to spare.
    most: Duration,
    now: Duration,
}

impl Patience {
    fn new() -> Self {
        let spare = rustix::thread::sched_getaffinity(None).is_ok_and(|allowed| allowed.count() > 1);
        let most = if spare { LOOK } else { Duration::ZERO };
        Self { most, now: most }
    }

    /// Work came after a wait of `waited`: a look that would have caught it is worth it, one that would not is halved.
    fn learn(&mut self, waited: Duration) {
        self.now =
            if waited <= self.most { self.most } else { (self.now / 2).max(LOOK_AT_SOURCES.min(self.most)) };
    }
}

/// A device and what its thread works with.
pub(super) struct Worker {
    pub device: Box<dyn Device>,
    pub line: Arc<Line>,
    pub bell: Bell,
    pub orders: Receiver<Order>,
}

/// What a worker knows from one turn to the next.
struct State {
    /// Empty while no driver is ready.
    rings: Vec<Option<Ring>>,
    active: bool,
    paused: bool,
}

impl Worker {
    /// Works until it is told to end.
    pub(super) fn run(mut self) {
        let mut state = State { rings: Vec::new(), active: false, paused: false };
        let mut patience = Patience::new();
        let mut idle_since = None;
        // Whether the host's descriptors are worth a look, and when they were looked at.
        let (mut look, mut looked) = (true, Instant::now());
        loop {
            while let Ok(order) = self.orders.try_recv() {
                if self.obey(order, &mut state).is_none() {
                    return;
                }
            }
            if !state.active || state.paused {
                self.sleep(&[]);
                look = true;
                continue;
            }
            match self.work(&mut state, look) {
                Ok(true) => {
                    if let Some(since) = idle_since.take() {
                        patience.learn(Instant::elapsed(&since));
                    }
                    look = true;
                    continue;
                }
                Ok(false) => {}
                Err(Broken(why)) => {
                    self.give_up(why, &mut state);
                    continue;
                }
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() < patience.now {
                look = looked.elapsed() >= LOOK_AT_SOURCES;
                if look {
                    looked = Instant::now();
                }
                core::hint::spin_loop();
                continue;
            }
            self.rest(&mut state);
            look = true;
        }
    }

    /// `None`: it is to end.
    fn obey(&mut self, order: Order, state: &mut State) -> Option<()> {
        match order {
            Order::Activate(features, rings) => {
                *state = State { rings, active: true, paused: state.paused };
                state.rings.iter_mut().flatten().for_each(Ring::want_no_doorbell);
                self.device.activate(features);
            }
            Order::Reset(done) => {
                if state.active {
                    self.device.reset();
                }
                *state = State { rings: Vec::new(), active: false, paused: state.paused };
                let _ = done.send(()); // whoever waited may have gone
            }
            Order::StopQueue(queue, done) => {
                if let Some(ring) = state.rings.get_mut(usize::from(queue))
                    && ring.take().is_some_and(|ring| ring.in_flight() > 0)
                {
                    self.device.stop_queue(queue.into());
                }
                let _ = done.send(());
            }
            Order::Config(offset, value, done) => {
                self.device.write_config(offset, value, &self.line);
                let _ = done.send(());
            }
            Order::Pause(done) => {
                if state.active && !state.paused {
                    self.device.quiesce(&mut state.rings);
                    self.tell(&mut state.rings);
                }
                state.paused = true;
                let _ = done.send(());
            }
            Order::Resume => state.paused = false,
            Order::End => return None,
        }
        Some(())
    }

    /// Has the device do what there is to do. Whether there was something.
    fn work(&mut self, state: &mut State, look: bool) -> Result<bool, Broken> {
        let worked = self.device.process(&mut state.rings, &self.line, look);
        self.tell(&mut state.rings);
        worked
    }

    /// Tells the guest of chains that were given back.
    fn tell(&self, rings: &mut [Option<Ring>]) {
        let mut wanted = false;
        for ring in rings.iter_mut().flatten() {
            ring.publish();
            let completed = ring.take_completed();
            if completed.chains > 0 {
                self.line.requests.fetch_add(completed.chains, Relaxed);
                self.line.from_guest.fetch_add(completed.taken, Relaxed);
                self.line.to_guest.fetch_add(completed.written, Relaxed);
                wanted |= ring.wants_interrupt();
            }
        }
        if wanted {
            self.line.interrupt(interrupt::USED_BUFFER);
        }
    }

    /// The driver broke a rule.
    fn give_up(&mut self, why: &'static str, state: &mut State) {
        tracing::warn!(
            kind = self.device.kind(),
            why,
            "a driver broke the rules of virtio, and must reset its device"
        );
        self.device.reset();
        (state.rings, state.active) = (Vec::new(), false);
        self.line.needs_reset();
    }

    /// Sleeps until a doorbell, or one of the device's sources.
    fn rest(&mut self, state: &mut State) {
        let mut more = false;
        for (queue, ring) in state.rings.iter_mut().enumerate() {
            if let Some(ring) = ring.as_mut().filter(|_| self.device.waits_for(queue)) {
                more |= ring.ask_for_doorbell();
            }
        }
        if !more {
            self.sleep(&self.device.sources());
        }
        state.rings.iter_mut().flatten().for_each(Ring::want_no_doorbell);
    }

    fn sleep(&self, sources: &[(BorrowedFd<'_>, Interest)]) {
        self.line.sleeps.fetch_add(1, Relaxed);
        let bell = PollFd::from_borrowed_fd(self.bell.descriptor(), PollFlags::IN);
        let sources = sources.iter();
        let sources = sources.map(|(source, wait)| PollFd::from_borrowed_fd(*source, wait.flags()));
        let mut all: Vec<PollFd<'_>> = std::iter::once(bell).chain(sources).collect();
        let _ = poll(&mut all, None); // a signal: it is looked, and slept again
        self.bell.silence();
    }
}

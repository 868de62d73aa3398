//! The memory balloon as a device: pages that the guest gives up because the host asks for them (`hv balloon`), and free pages
//! that it tells of.
//!
//! `guest_sdk::balloon` and `guest_sdk::frames::report_free` do the same by hypercalls, and better: there a page that was given up
//! is known to be absent. This is for guests that are to run with any virtio balloon. A guest uses one or the other.
//!
//! Start at [`Balloon::follow`].

#![expect(unsafe_code, reason = "free pages, as buffers")]

use crate::buffers::Outbound;
use crate::queue::{Buffers, PARTS_MAX, Parts, Queue, Token};
use crate::registered::{Registered, Wakers};
use crate::{Error, Transport};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::task::Waker;
use guest_sdk::events::Channel;
use guest_sdk::frames::{self, Frame};
use guest_sdk::memory::in_direct_map;
use guest_sdk::sync::{Guard, Lock};
use guest_sdk::task::Source;
use hv_abi::device::kind;
use hv_abi::pages::PageRun;
use hv_abi::{PAGE_SIZE, Status};

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const REPORT: u16 = 4;
const SIZE: usize = 8;

/// Where the driver says how many pages it holds.
const ACTUAL: usize = 4;

/// Pages that the balloon leaves to the rest of the guest.
const LEFT: u64 = 256;
/// Pages that go into the balloon, or out of it, at once.
const STEP: u64 = 256;

mod feature {
    pub(super) const PAGE_REPORTING: u64 = 1 << 5;
}

/// Free pages.
struct Free(Vec<PageRun>);

impl Buffers for Free {
    fn parts<'a>(&'a mut self, parts: &mut Parts<'a>) {
        for run in &self.0 {
            let (start, length) = (in_direct_map(run.start), (run.count * PAGE_SIZE) as usize);
            // SAFETY: a slice needs memory that is mapped, initialised, and nobody else's. The pages are in the direct map, and
            // any bytes are good ones; they are taken out of the pool of free pages until the device has given them back
            // (`Balloon::report_free`).
            parts.write(unsafe { core::slice::from_raw_parts_mut(start, length) });
        }
    }
}

/// The balloon.
pub struct Balloon(Registered<Device>);

struct Device(Lock<State>);

struct State {
    inflate: Queue<Outbound, SIZE>,
    deflate: Queue<Outbound, SIZE>,
    report: Option<Queue<Free, SIZE>>,
    /// What is in the balloon, in pieces: a list that grew as one would want much memory when there is least of it.
    held: Vec<Vec<Frame>>,
    /// What was asked for when it was followed last.
    followed: u64,
    generation: u32,
    wakers: Wakers,
    /// Behind the queues, which are to be gone before it.
    transport: Transport,
}

impl Balloon {
    /// The VM's.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if it has none, or another driver has it.
    pub fn find() -> Result<Self, Error> {
        use virtio_drivers::transport::Transport as _;
        let mut transport = Transport::find(kind::BALLOON)?;
        let features = transport.negotiate(feature::PAGE_REPORTING)?;
        let inflate = Queue::new(&mut transport, INFLATE)?;
        let deflate = Queue::new(&mut transport, DEFLATE)?;
        let reports = features & feature::PAGE_REPORTING != 0;
        let report = reports.then(|| Queue::new(&mut transport, REPORT)).transpose()?;
        let generation = transport.read_config_generation();
        transport.finish_init();
        let (held, wakers) = (Vec::new(), Wakers::default());
        let state = State { inflate, deflate, report, held, followed: 0, generation, wakers, transport };
        Ok(Self(Registered::new(Device(Lock::new(state)))))
    }

    /// Pages that the host asks for.
    pub fn target(&self) -> u64 {
        self.0.state().target()
    }

    /// Pages that the balloon holds.
    pub fn held(&self) -> u64 {
        self.0.state().held()
    }

    /// Makes the balloon hold what the host asks for, as far as there are so many free pages. The vCPU sleeps until the host has
    /// taken them.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub fn follow(&self) -> Result<(), Error> {
        loop {
            let (held, target) = (self.held(), self.target());
            self.0.state().followed = target;
            let moved =
                if held < target { self.inflate(target - held)? } else { self.deflate(held - target)? };
            if moved == 0 {
                return Ok(());
            }
        }
    }

    /// Waits until the host asks for another number of pages than when it was [followed](Self::follow) last.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub async fn changed(&self) -> Result<(), Error> {
        self.0.ready(|device, waker| device.state().try_changed(waker)).await
    }

    /// As [`changed`](Self::changed); the vCPU sleeps meanwhile.
    ///
    /// # Errors
    ///
    /// As [`changed`](Self::changed).
    pub fn changed_blocking(&self) -> Result<(), Error> {
        self.0.wait(|device| device.state().try_changed(None))
    }

    fn inflate(&self, pages: u64) -> Result<u64, Error> {
        let mut frames = Vec::with_capacity(STEP as usize);
        let pages = pages.min(STEP).min(frames::available().saturating_sub(LEFT));
        frames.extend((0..pages).map_while(|_| frames::allocate(0).ok()));
        if frames.is_empty() {
            return Ok(0);
        }
        let token = submit(&mut self.0.state().inflate, &frames)?;
        self.wait_for(&token, |state| &mut state.inflate)?;
        let moved = frames.len() as u64;
        let state = &mut *self.0.state();
        state.held.push(frames);
        state.tell_held();
        Ok(moved)
    }

    /// The host is told before anybody can use the pages.
    fn deflate(&self, pages: u64) -> Result<u64, Error> {
        let (frames, token) = {
            let state = &mut *self.0.state();
            let mut frames = state.held.pop().unwrap_or_default();
            if frames.len() as u64 > pages {
                let rest = frames.split_off(pages as usize);
                state.held.push(rest);
            }
            if frames.is_empty() {
                return Ok(0);
            }
            let token = submit(&mut state.deflate, &frames)?;
            (frames, token)
        };
        self.wait_for(&token, |state| &mut state.deflate)?;
        self.0.state().tell_held();
        Ok(frames.len() as u64)
    }

    fn wait_for<B: Buffers>(
        &self,
        token: &Token,
        queue: impl Fn(&mut State) -> &mut Queue<B, SIZE>,
    ) -> Result<(), Error> {
        self.0.wait(|device| queue(&mut device.state()).take(token)).map(drop)
    }

    /// Tells the host of free pages that are in use for nothing: it takes their memory, and they are zero. Gives how many; 0 if
    /// there are none. The vCPU sleeps until it has.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the device has no use for that; [`Error::Broken`].
    pub fn report_free(&self) -> Result<u64, Error> {
        if self.0.state().report.is_none() {
            return Err(Error::Unsupported);
        }
        let (mut all, mut outcome) = (0, Ok(()));
        loop {
            let pages = frames::clear_by(|runs| {
                outcome = runs.chunks(PARTS_MAX).try_for_each(|runs| self.report(runs));
                outcome.map_err(|_| Status::NOT_FOUND)
            });
            if pages == 0 {
                return outcome.map(|()| all);
            }
            all += pages;
        }
    }

    fn report(&self, runs: &[PageRun]) -> Result<(), Error> {
        fn queue(state: &mut State) -> &mut Queue<Free, SIZE> {
            state.report.as_mut().expect("it is there")
        }
        let token = {
            let mut state = self.0.state();
            let queue = queue(&mut state);
            let token = queue.submit(Box::new(Free(runs.to_vec()))).map_err(|_| Error::Broken)?;
            queue.ring();
            token
        };
        self.wait_for(&token, queue)
    }
}

/// Tells the device the numbers of pages.
fn submit(queue: &mut Queue<Outbound, SIZE>, frames: &[Frame]) -> Result<Token, Error> {
    let number = |frame: &Frame| ((frame.phys().0 / PAGE_SIZE) as u32).to_le_bytes();
    let numbers = Box::new(Outbound(frames.iter().flat_map(number).collect()));
    let token = queue.submit(numbers).map_err(|_| Error::Broken)?;
    queue.ring();
    Ok(token)
}

impl State {
    fn target(&self) -> u64 {
        self.transport.config::<u32>(0).map_or(0, u64::from)
    }

    fn held(&self) -> u64 {
        self.held.iter().map(|frames| frames.len() as u64).sum()
    }

    fn tell_held(&mut self) {
        use virtio_drivers::transport::Transport as _;
        let held = self.held() as u32;
        self.transport.write_config_space(ACTUAL, held).expect("every balloon has this word");
    }

    fn is_broken(&self) -> bool {
        let report = self.report.as_ref().is_some_and(Queue::is_broken);
        self.inflate.is_broken() || self.deflate.is_broken() || report
    }

    fn try_changed(&mut self, waker: Option<&Waker>) -> Option<Result<(), Error>> {
        if self.is_broken() {
            return Some(Err(Error::Broken));
        }
        if self.target() != self.followed { Some(Ok(())) } else { self.wakers.add(waker) }
    }
}

impl Device {
    fn state(&self) -> Guard<'_, State> {
        self.0.lock()
    }
}

impl Source for Device {
    fn channel(&self) -> Channel {
        self.state().transport.channel()
    }

    fn look(&self) -> bool {
        use virtio_drivers::transport::Transport as _;
        let state = &mut *self.state();
        let report = state.report.as_mut().is_some_and(Queue::look);
        let generation = state.transport.read_config_generation();
        let changed = core::mem::replace(&mut state.generation, generation) != generation;
        let happened = state.inflate.look() | state.deflate.look() | report | changed;
        if happened {
            state.wakers.wake();
        }
        happened
    }

    fn arm(&self) -> bool {
        use virtio_drivers::transport::Transport as _;
        let state = &mut *self.state();
        let report = state.report.as_mut().is_some_and(Queue::arm);
        let changed = state.transport.read_config_generation() != state.generation;
        state.inflate.arm() | state.deflate.arm() | report | changed
    }
}

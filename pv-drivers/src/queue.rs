//! A virtqueue whose requests own their buffers.
//!
//! A request is a [`Buffers`] in a box. From [`Queue::submit`] until the device has given it back it is nobody's but the device's;
//! whoever asked has a [`Token`] meanwhile, and may forget it. What the device says it has used is checked against what it was
//! given: one that lies is reset at once, and all its requests have failed.
//!
//! Doorbells and interrupts are by index (`EVENT_IDX`), and both are ruled here: the device is told only if it wants to be, and it
//! tells the guest only after [`arm`](Queue::arm), which is for those who are about to sleep.
//!
//! Start at [`Queue::submit`], or at [`Shared`], by which requests are futures.

#![expect(unsafe_code, reason = "buffers that a device fills, and the indices beside the rings")]

use crate::hal::GuestHal;
use crate::{Error, Transport};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;
use core::sync::atomic::{AtomicU16, Ordering, fence};
use core::task::{Context, Poll, Waker};
use guest_sdk::events::Channel;
use guest_sdk::hypercall;
use guest_sdk::memory::in_direct_map;
use guest_sdk::sync::Lock;
use guest_sdk::task::{self, Source};
use hv_abi::GuestPhys;
use hv_abi::device::register;
use virtio_drivers::queue::VirtQueue;

/// The most buffers that a request has for reading by the device, and as many for writing.
pub const PARTS_MAX: usize = 4;

/// What a request hands to the device.
pub struct Parts<'a> {
    readable: [&'a [u8]; PARTS_MAX],
    writable: [&'a mut [u8]; PARTS_MAX],
    counts: (usize, usize),
}

impl<'a> Parts<'a> {
    fn new() -> Self {
        Self { readable: Default::default(), writable: Default::default(), counts: (0, 0) }
    }

    /// Adds a buffer for the device to read, unless it is empty.
    ///
    /// # Panics
    ///
    /// Panics if there are [`PARTS_MAX`] already.
    pub fn read(&mut self, bytes: &'a [u8]) {
        if !bytes.is_empty() {
            self.readable[self.counts.0] = bytes;
            self.counts.0 += 1;
        }
    }

    /// Adds a buffer for the device to write to, unless it is empty.
    ///
    /// # Panics
    ///
    /// Panics if there are [`PARTS_MAX`] already.
    pub fn write(&mut self, bytes: &'a mut [u8]) {
        if !bytes.is_empty() {
            self.writable[self.counts.1] = bytes;
            self.counts.1 += 1;
        }
    }

    fn room(&self) -> u64 {
        self.writable[..self.counts.1].iter().map(|part| part.len() as u64).sum()
    }
}

/// A request's buffers. They are memory of its own, or that outlives everything.
pub trait Buffers: Send + 'static {
    /// Names them, in the order in which the device sees them: the same ones each time.
    fn parts<'a>(&'a mut self, parts: &mut Parts<'a>);
}

/// A request that was submitted.
#[derive(Debug, PartialEq, Eq)]
pub struct Token {
    /// The device's name for it, which is another request's when this one has come back.
    head: u16,
    ticket: u64,
}

/// A request that is the device's.
struct InFlight<B> {
    ticket: u64,
    buffers: Box<B>,
    /// Nobody wants to hear of it.
    forgotten: bool,
    waker: Option<Waker>,
}

/// A request that has come back, with so many bytes written, or will not.
type Outcome<B> = Result<(Box<B>, u32), Error>;

/// A virtqueue with room for `SIZE` buffers.
pub struct Queue<B: Buffers, const SIZE: usize> {
    queue: Box<VirtQueue<GuestHal, SIZE>>,
    device: u32,
    number: u16,
    /// Up to which request the device wants no doorbell: it writes this.
    available_event: &'static AtomicU16,
    /// Up to which request the driver wants no interrupt: it writes this.
    used_event: &'static AtomicU16,
    /// By their heads.
    requests: Vec<Option<InFlight<B>>>,
    /// By their tickets, in the order in which they came back: what nobody has taken yet.
    done: VecDeque<(u64, Outcome<B>)>,
    next_ticket: u64,
    /// Requests submitted, and those for which the doorbell was seen to; modulo 2^16, as the rings count.
    submitted: u16,
    rung: u16,
    /// Requests that came back.
    returned: u16,
    in_flight: usize,
    /// Who waits for room.
    waiting: VecDeque<Waker>,
    broken: bool,
}

impl<B: Buffers, const SIZE: usize> Queue<B, SIZE> {
    /// Sets up queue `number` of a device with which features were negotiated, and that is not ready yet.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the device's queue is smaller, or not there; [`Error::NoMemory`].
    pub fn new(transport: &mut Transport, number: u16) -> Result<Self, Error> {
        use virtio_drivers::transport::Transport as _;
        if (transport.max_queue_size(number) as usize) < SIZE {
            return Err(Error::Unsupported);
        }
        // What is said by index is said here: the crate's own rule loses a doorbell when the index wraps.
        let queue = Box::new(VirtQueue::new(transport, number, false, false)?);
        let rings = transport.rings(number);
        Ok(Self {
            queue,
            device: transport.device(),
            number,
            available_event: event(rings.device_area + 4 + 8 * SIZE as u64),
            used_event: event(rings.driver_area + 4 + 2 * SIZE as u64),
            requests: (0..SIZE).map(|_| None).collect(),
            done: VecDeque::new(),
            next_ticket: 0,
            submitted: 0,
            rung: 0,
            returned: 0,
            in_flight: 0,
            waiting: VecDeque::new(),
            broken: false,
        })
    }

    /// Hands a request to the device, which is not told before [`ring`](Self::ring).
    ///
    /// # Errors
    ///
    /// Gives it back if there is no room, or the device is broken.
    pub fn submit(&mut self, mut buffers: Box<B>) -> Result<Token, Box<B>> {
        if self.broken {
            return Err(buffers);
        }
        let mut parts = Parts::new();
        buffers.parts(&mut parts);
        let (readable, writable) = parts.counts;
        // SAFETY: the buffers must be valid and used by nobody until `pop_used`. They are `buffers`' own memory or outlive
        // everything (`Buffers`), and it is put away in its box, where nobody reaches it, until then, or until the device is
        // reset.
        let added = unsafe { self.queue.add(&parts.readable[..readable], &mut parts.writable[..writable]) };
        let Ok(head) = added else { return Err(buffers) };
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let request = InFlight { ticket, buffers, forgotten: false, waker: None };
        self.requests[usize::from(head)] = Some(request);
        self.submitted = self.submitted.wrapping_add(1);
        self.in_flight += 1;
        Ok(Token { head, ticket })
    }

    /// Tells the device of what was submitted, if it wants to be told.
    pub fn ring(&mut self) {
        // The index that the device looks at is stored before its wish is looked at; it does so the other way round.
        fence(Ordering::SeqCst);
        let wanted = self.available_event.load(Ordering::Relaxed);
        let (new, old) = (self.submitted, core::mem::replace(&mut self.rung, self.submitted));
        if new.wrapping_sub(wanted).wrapping_sub(1) < new.wrapping_sub(old) {
            // It fails for a queue that the device does not have.
            let _ = hypercall::device_notify(self.device, self.number.into());
        }
    }

    /// Takes back what the device has used, and wakes who waits for it. Whether there was something.
    pub fn look(&mut self) -> bool {
        let mut happened = false;
        while let Some(head) = self.queue.peek_used() {
            happened = true;
            if self.take_back(head).is_none() {
                self.give_up();
                break;
            }
        }
        if happened {
            // In the past: no interrupt is wanted.
            self.used_event.store(self.returned.wrapping_sub(1), Ordering::Relaxed);
            while self.queue.available_desc() > 0
                && let Some(waker) = self.waiting.pop_front()
            {
                waker.wake();
            }
        }
        happened
    }

    /// The device says that it has used the request at `head`. `None`: it was not given that one, or says that it wrote more
    /// than there was room for.
    fn take_back(&mut self, head: u16) -> Option<()> {
        let InFlight { ticket, mut buffers, forgotten, waker } =
            self.requests.get_mut(usize::from(head))?.take()?;
        let mut parts = Parts::new();
        buffers.parts(&mut parts);
        let (room, (readable, writable)) = (parts.room(), parts.counts);
        // SAFETY: these are the buffers that were added with this head: the same box, which names the same ones each time.
        let used = unsafe {
            self.queue.pop_used(head, &parts.readable[..readable], &mut parts.writable[..writable])
        };
        let written = used.ok().filter(|written| u64::from(*written) <= room);
        self.returned = self.returned.wrapping_add(1);
        self.in_flight -= 1;
        if !forgotten {
            self.done.push_back((ticket, written.map(|written| (buffers, written)).ok_or(Error::Broken)));
        }
        waker.into_iter().for_each(Waker::wake);
        written.map(drop)
    }

    /// The device broke the rules: it is reset, and touches no buffer any more.
    fn give_up(&mut self) {
        self.reset();
        self.broken = true;
        self.in_flight = 0;
        for request in self.requests.iter_mut().filter_map(Option::take) {
            if !request.forgotten {
                self.done.push_back((request.ticket, Err(Error::Broken)));
            }
            request.waker.into_iter().for_each(Waker::wake);
        }
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn reset(&self) {
        // SAFETY: a reset tells no address.
        let _ = unsafe { hypercall::device_write(self.device, register::STATUS, 0) };
    }

    /// A request that has come back, and how many bytes the device has written. `None`: it has not.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`]: the request is gone.
    pub fn take(&mut self, token: &Token) -> Option<Result<(Box<B>, u32), Error>> {
        let at = self.done.iter().position(|(ticket, _)| *ticket == token.ticket)?;
        Some(self.done.remove(at)?.1)
    }

    /// Whether there is something to take.
    pub fn has_done(&self) -> bool {
        !self.done.is_empty()
    }

    /// The next request that has come back, in the order in which they did.
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    pub fn take_next(&mut self) -> Option<Result<(Box<B>, u32), Error>> {
        Some(self.done.pop_front()?.1)
    }

    /// Hands over a request that nobody waits for.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn submit_and_forget(&mut self, buffers: Box<B>) -> Result<(), Box<B>> {
        let token = self.submit(buffers)?;
        self.forget(&token);
        Ok(())
    }

    fn in_flight_mut(&mut self, token: &Token) -> Option<&mut InFlight<B>> {
        let request = self.requests[usize::from(token.head)].as_mut();
        request.filter(|request| request.ticket == token.ticket)
    }

    /// Whoever has the token wants to hear of it no more.
    pub fn forget(&mut self, token: &Token) {
        match self.in_flight_mut(token) {
            Some(request) => request.forgotten = true,
            None => drop(self.take(token)),
        }
    }

    /// Asks for an interrupt for the next request that comes back. Whether one has already.
    pub fn arm(&mut self) -> bool {
        self.used_event.store(self.returned, Ordering::Relaxed);
        // The wish is stored before the ring is looked at; the device does so the other way round.
        fence(Ordering::SeqCst);
        self.queue.can_pop()
    }

    /// Requests that are the device's.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the device broke the rules, and was reset.
    pub fn is_broken(&self) -> bool {
        self.broken
    }
}

impl<B: Buffers, const SIZE: usize> Drop for Queue<B, SIZE> {
    /// The device must not write to what is free afterwards.
    fn drop(&mut self) {
        self.reset();
    }
}

/// An index beside a ring, at P `at`.
fn event(at: u64) -> &'static AtomicU16 {
    // SAFETY: a reference to an atomic needs memory that is mapped, aligned, and changed by atomics only. It is in the queue's
    // rings, behind their entries, and thus even; they live longer than this reference is used, since it is private to
    // `Queue`, which owns them. Neither side uses it but so.
    unsafe { AtomicU16::from_ptr(in_direct_map(GuestPhys(at)).cast()) }
}

/// A queue that tasks share.
pub struct Shared<B: Buffers, const SIZE: usize>(Lock<Queue<B, SIZE>>);

impl<B: Buffers, const SIZE: usize> Shared<B, SIZE> {
    /// Shares a queue.
    pub fn new(queue: Queue<B, SIZE>) -> Self {
        Self(Lock::new(queue))
    }

    /// Makes a request, and waits for it: gives its buffers, and how many bytes the device has written.
    pub fn request(&self, buffers: Box<B>) -> Request<'_, B, SIZE> {
        Request { queue: self, buffers: Some(buffers), token: None }
    }

    /// As [`request`](Self::request); the vCPU sleeps until it is done. `source` is what looks at this queue.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub fn request_blocking(&self, source: &dyn Source, buffers: Box<B>) -> Result<(Box<B>, u32), Error> {
        let mut buffers = Some(buffers);
        let mut token = None;
        let submit_and_take = || {
            let mut queue = self.0.lock();
            if queue.is_broken() && token.is_none() {
                return Some(Err(Error::Broken));
            }
            if let Some(request) = buffers.take() {
                match queue.submit(request) {
                    Ok(submitted) => {
                        token = Some(submitted);
                        queue.ring();
                    }
                    Err(request) => buffers = Some(request),
                }
            }
            queue.take(token.as_ref()?)
        };
        task::wait(source, None, submit_and_take).expect("there is no deadline")
    }

    /// The queue, for what is not here.
    pub fn lock(&self) -> guest_sdk::sync::Guard<'_, Queue<B, SIZE>> {
        self.0.lock()
    }
}

/// A request to a device. Dropping it does not take it back.
#[must_use = "a request is made when it is waited for"]
pub struct Request<'a, B: Buffers, const SIZE: usize> {
    queue: &'a Shared<B, SIZE>,
    /// Until it is submitted.
    buffers: Option<Box<B>>,
    token: Option<Token>,
}

impl<B: Buffers, const SIZE: usize> Future for Request<'_, B, SIZE> {
    type Output = Result<(Box<B>, u32), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut queue = this.queue.0.lock();
        if let Some(buffers) = this.buffers.take() {
            if queue.is_broken() {
                return Poll::Ready(Err(Error::Broken));
            }
            match queue.submit(buffers) {
                Ok(token) => {
                    queue.ring();
                    this.token = Some(token);
                }
                Err(buffers) => {
                    this.buffers = Some(buffers);
                    queue.waiting.push_back(context.waker().clone());
                    return Poll::Pending;
                }
            }
        }
        let token = this.token.as_ref().expect("it was submitted, and is not polled after its end");
        if let Some(result) = queue.take(token) {
            this.token = None;
            return Poll::Ready(result);
        }
        if let Some(request) = queue.in_flight_mut(token) {
            request.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl<B: Buffers, const SIZE: usize> Drop for Request<'_, B, SIZE> {
    fn drop(&mut self) {
        if let Some(token) = &self.token {
            self.queue.0.lock().forget(token);
        }
    }
}

/// A device with one queue is a source of events.
pub struct Device<B: Buffers, const SIZE: usize> {
    /// Its queue, which is to be gone before its transport.
    pub queue: Shared<B, SIZE>,
    transport: Transport,
}

impl<B: Buffers, const SIZE: usize> Device<B, SIZE> {
    /// Makes it ready.
    pub fn new(mut transport: Transport, queue: Queue<B, SIZE>) -> Self {
        use virtio_drivers::transport::Transport as _;
        transport.finish_init();
        Self { queue: Shared::new(queue), transport }
    }

    /// How it is reached.
    pub fn transport(&self) -> &Transport {
        &self.transport
    }
}

impl<B: Buffers, const SIZE: usize> Source for Device<B, SIZE> {
    fn channel(&self) -> Channel {
        self.transport.channel()
    }

    fn look(&self) -> bool {
        self.queue.lock().look()
    }

    fn arm(&self) -> bool {
        self.queue.lock().arm()
    }
}

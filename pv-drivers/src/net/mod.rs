//! Network cards.
//!
//! Frames are received into buffers of the driver's, and sent from such: a [`Received`] frame's buffer goes back to the device when
//! it is dropped, an [`Outgoing`] one is filled in place. So no frame is copied here, and no memory is allocated for one.
//!
//! Start at [`Net::find`]; with TCP/IP, at `stack`.

#[cfg(feature = "smoltcp")]
pub mod stack;

use crate::queue::{Buffers, Parts, Queue};
use crate::registered::{Registered, Wakers};
use crate::{Error, Transport};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use core::task::Waker;
use guest_sdk::events::Channel;
use guest_sdk::sync::Lock;
use guest_sdk::task::Source;
use hv_abi::device::kind;

/// Frames that each queue has room for.
const SIZE: usize = 128;
/// Memory for the frames of a queue: fewer than there is room for, if they are long.
const MEMORY: usize = 2 << 20;
/// The least frames of a queue, however long.
const LEAST: usize = 8;
/// Bytes of the header before each frame: nothing in it is of use without features that are not asked for.
const HEADER: usize = 12;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

mod feature {
    pub(super) const MTU: u64 = 1 << 3;
    pub(super) const MAC: u64 = 1 << 5;
    pub(super) const STATUS: u64 = 1 << 16;
}

/// Where `struct virtio_net_config` has what.
mod config {
    pub(super) const MAC: usize = 0;
    pub(super) const STATUS: usize = 6;
    pub(super) const MTU: usize = 10;
}

/// A frame's buffer, with room for a header before it.
struct Frame {
    bytes: Vec<u8>,
    /// How many of them are the device's to read; 0: all are its to write.
    to_send: usize,
}

impl Buffers for Frame {
    fn parts<'a>(&'a mut self, parts: &mut Parts<'a>) {
        match self.to_send {
            0 => parts.write(&mut self.bytes),
            length => parts.read(&self.bytes[..length]),
        }
    }
}

/// Frames to send.
struct Transmit {
    queue: Queue<Frame, SIZE>,
    /// Buffers that are not in use, and how many may still be made.
    #[expect(clippy::vec_box, reason = "the queue takes them in their boxes")]
    free: Vec<Box<Frame>>,
    to_make: usize,
}

/// What the driver and its tasks share.
struct Card {
    receive: Lock<Queue<Frame, SIZE>>,
    transmit: Lock<Transmit>,
    transport: Transport,
    features: u64,
    frame_size: usize,
    /// The status of the link as it was last looked at.
    link: AtomicU16,
    /// Somebody waits until a frame was sent.
    wants_room: AtomicBool,
    waiting: Lock<Wakers>,
}

/// A network card.
pub struct Net {
    card: Registered<Card>,
    mac: [u8; 6],
    mtu: usize,
}

impl Net {
    /// The VM's first network card that has no driver yet.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if there is none.
    pub fn find() -> Result<Self, Error> {
        use virtio_drivers::transport::Transport as _;
        const USUAL_MTU: u16 = 1500;
        let mut transport = Transport::find(kind::NETWORK)?;
        let features = transport.negotiate(feature::MAC | feature::MTU | feature::STATUS)?;
        if features & feature::MAC == 0 {
            return Err(Error::Unsupported);
        }
        let receive = Queue::new(&mut transport, RECEIVE)?;
        let queue = Queue::new(&mut transport, TRANSMIT)?;
        let mac = transport.config(config::MAC)?;
        let has_mtu = features & feature::MTU != 0;
        let mtu = if has_mtu { transport.config(config::MTU)? } else { USUAL_MTU };
        let frame_size = ETHERNET + usize::from(mtu);
        let frames = (MEMORY / frame_size).clamp(LEAST, SIZE);
        transport.finish_init();
        let card = Registered::new(Card {
            receive: Lock::new(receive),
            transmit: Lock::new(Transmit { queue, free: Vec::new(), to_make: frames }),
            transport,
            features,
            frame_size,
            link: AtomicU16::new(0),
            wants_room: AtomicBool::new(false),
            waiting: Lock::new(Wakers::default()),
        });
        card.link.store(card.link_status(), Ordering::Relaxed);
        for _ in 0..frames {
            card.offer(card.frame());
        }
        Ok(Self { card, mac, mtu: mtu.into() })
    }

    /// Its address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// The longest IP packet that its frames can carry.
    pub fn mtu(&self) -> usize {
        self.mtu
    }

    /// Whether there is somebody at the other end.
    pub fn is_up(&self) -> bool {
        self.card.link_status() & 1 != 0
    }

    /// Whether the device broke the rules, and was reset.
    pub fn is_broken(&self) -> bool {
        self.card.receive.lock().is_broken() || self.card.transmit.lock().queue.is_broken()
    }

    /// A frame that has come. `None`: there is none yet.
    pub fn try_receive(&self) -> Option<Received<'_>> {
        self.card.received()
    }

    /// The next frame that comes.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub async fn receive(&self) -> Result<Received<'_>, Error> {
        self.wait_for(|| self.try_receive()).await
    }

    /// As [`receive`](Self::receive); the vCPU sleeps until there is one.
    ///
    /// # Errors
    ///
    /// As [`receive`](Self::receive).
    pub fn receive_blocking(&self) -> Result<Received<'_>, Error> {
        self.card.wait(|_| self.unless_broken(self.try_receive()))
    }

    /// A buffer to send from. `None`: all are the device's.
    pub fn try_outgoing(&self) -> Option<Outgoing<'_>> {
        self.card.outgoing()
    }

    /// A buffer to send from.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub async fn outgoing(&self) -> Result<Outgoing<'_>, Error> {
        self.wait_for(|| self.try_outgoing()).await
    }

    /// As [`outgoing`](Self::outgoing); the vCPU sleeps until there is one.
    ///
    /// # Errors
    ///
    /// As [`outgoing`](Self::outgoing).
    pub fn outgoing_blocking(&self) -> Result<Outgoing<'_>, Error> {
        self.card.wait(|_| self.unless_broken(self.try_outgoing()))
    }

    /// Whether all frames that were sent are the other end's, or lost. If not, [`wake_at_change`](Self::wake_at_change) tells
    /// when it is worth another look.
    pub fn is_flushed(&self) -> bool {
        self.card.is_flushed()
    }

    /// Waits until all frames that were sent are the other end's, or lost.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub fn flush_blocking(&self) -> Result<(), Error> {
        self.card.wait(|card| self.unless_broken(card.is_flushed().then_some(())))
    }

    /// Wakes `waker` once, when a frame has come, a buffer to send from is free after there was none, or the link has changed.
    pub fn wake_at_change(&self, waker: &Waker) {
        self.card.waiting.lock().add::<()>(Some(waker));
    }

    /// Waits until the link is up, or is not.
    pub async fn link(&self, up: bool) {
        let is_so = |card: &Card, waker: Option<&Waker>| {
            (self.is_up() == up).then_some(()).or_else(|| card.waiting.lock().add(waker))
        };
        self.card.ready(is_so).await;
    }

    fn unless_broken<T>(&self, value: Option<T>) -> Option<Result<T, Error>> {
        value.map(Ok).or_else(|| self.is_broken().then_some(Err(Error::Broken)))
    }

    async fn wait_for<T>(&self, mut value: impl FnMut() -> Option<T>) -> Result<T, Error> {
        let attempt = |card: &Card, waker: Option<&Waker>| {
            self.unless_broken(value()).or_else(|| card.waiting.lock().add(waker))
        };
        self.card.ready(attempt).await
    }
}

impl Card {
    fn link_status(&self) -> u16 {
        const UP: u16 = 1;
        let has_status = self.features & feature::STATUS != 0;
        if has_status { self.transport.config(config::STATUS).unwrap_or(0) } else { UP }
    }

    fn frame(&self) -> Box<Frame> {
        Box::new(Frame { bytes: vec![0; HEADER + self.frame_size], to_send: 0 })
    }

    /// Gives the device a buffer for a frame.
    fn offer(&self, frame: Box<Frame>) {
        let mut receive = self.receive.lock();
        // A device that was reset gets no buffer.
        if receive.submit(frame).is_ok() {
            receive.ring();
        }
    }

    fn received(&self) -> Option<Received<'_>> {
        let mut receive = self.receive.lock();
        if !receive.has_done() {
            receive.look();
        }
        loop {
            let (frame, written) = receive.take_next()?.ok()?;
            if let Some(length) = (written as usize).checked_sub(HEADER) {
                return Some(Received { card: self, frame: Some(frame), length });
            }
            // Less than a header is no frame.
            let _ = receive.submit(frame);
        }
    }

    #[cfg(feature = "smoltcp")]
    fn has_received(&self) -> bool {
        let mut receive = self.receive.lock();
        receive.has_done() || receive.look()
    }

    fn outgoing(&self) -> Option<Outgoing<'_>> {
        let transmit = &mut *self.transmit.lock();
        let frame = transmit.free.pop().or_else(|| {
            transmit.take_back();
            if transmit.queue.is_broken() {
                return None;
            }
            let made = || {
                transmit.to_make = transmit.to_make.checked_sub(1)?;
                Some(self.frame())
            };
            transmit.free.pop().or_else(made)
        });
        self.want_room(frame.is_none());
        Some(Outgoing { card: self, frame: Some(frame?) })
    }

    fn is_flushed(&self) -> bool {
        let mut transmit = self.transmit.lock();
        transmit.take_back();
        let flushed = transmit.queue.in_flight() == 0;
        self.want_room(!flushed);
        flushed
    }

    /// Asks to be told when a frame was sent, if `wanted`.
    fn want_room(&self, wanted: bool) {
        if wanted {
            self.wants_room.store(true, Ordering::Relaxed);
        }
    }
}

impl Transmit {
    /// Takes back buffers of frames that were sent.
    fn take_back(&mut self) {
        self.queue.look();
        while let Some(sent) = self.queue.take_next() {
            self.free.extend(sent.ok().map(|(frame, _)| frame));
        }
    }
}

impl Source for Card {
    fn channel(&self) -> Channel {
        self.transport.channel()
    }

    fn look(&self) -> bool {
        let link = self.link_status();
        let mut happened = self.link.swap(link, Ordering::Relaxed) != link;
        happened |= self.receive.lock().look();
        if self.wants_room.load(Ordering::Relaxed) && self.transmit.lock().queue.look() {
            self.wants_room.store(false, Ordering::Relaxed);
            happened = true;
        }
        if happened {
            self.waiting.lock().wake();
        }
        happened
    }

    fn arm(&self) -> bool {
        let wants_room = self.wants_room.load(Ordering::Relaxed);
        let has_room = wants_room && self.transmit.lock().queue.arm();
        self.receive.lock().arm() || has_room || self.link.load(Ordering::Relaxed) != self.link_status()
    }
}

/// A frame that has come.
pub struct Received<'a> {
    card: &'a Card,
    /// There until it is dropped.
    frame: Option<Box<Frame>>,
    length: usize,
}

impl Deref for Received<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let frame = self.frame.as_ref().expect("it was not dropped");
        &frame.bytes[HEADER..HEADER + self.length]
    }
}

impl Drop for Received<'_> {
    fn drop(&mut self) {
        self.frame.take().into_iter().for_each(|frame| self.card.offer(frame));
    }
}

/// A buffer to send a frame from.
pub struct Outgoing<'a> {
    card: &'a Card,
    /// There until it is sent or dropped.
    frame: Option<Box<Frame>>,
}

impl Outgoing<'_> {
    /// Sends the first `length` bytes as a frame.
    ///
    /// # Panics
    ///
    /// Panics if the buffer is shorter.
    pub fn send(mut self, length: usize) {
        let Some(mut frame) = self.frame.take() else { return };
        assert!(length <= frame.bytes.len() - HEADER, "a frame of {length} bytes is longer than its buffer");
        frame.to_send = HEADER + length;
        let transmit = &mut *self.card.transmit.lock();
        // A device that was reset sends nothing, and what is not sent is lost, as on any network.
        if transmit.queue.submit(frame).is_ok() {
            transmit.queue.ring();
        }
    }
}

impl Deref for Outgoing<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.frame.as_ref().expect("it was not sent").bytes[HEADER..]
    }
}

impl DerefMut for Outgoing<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.frame.as_mut().expect("it was not sent").bytes[HEADER..]
    }
}

impl Drop for Outgoing<'_> {
    fn drop(&mut self) {
        self.card.transmit.lock().free.extend(self.frame.take());
    }
}

//! Event channels: how the host, a timer or another vCPU tells the guest that something happened.
//!
//! A channel with a handler, once unmasked, interrupts the guest kernel wherever it is; the handler runs with
//! upcalls masked and may use the whole SDK, but should be short. A channel without one is looked at with
//! [`Channel::take`] or waited for with [`Channel::wait`].

#![expect(unsafe_code, reason = "handlers are stored as pointers")]

use crate::raw;
use crate::upcall::Masked;
use core::sync::atomic::Ordering;
use core::sync::atomic::{AtomicPtr, AtomicU8};
use hv_abi::Status;
use hv_abi::vcpu::{
    BALLOON_CHANNEL, CONSOLE_CHANNEL, EVENT_CHANNELS, EVENT_WORDS, TIMER_CHANNEL, VcpuPage, upcall,
};

/// What is called when a channel fires.
pub type Handler = fn(Channel);

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
static HANDLERS: [AtomicPtr<()>; EVENT_CHANNELS as usize] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; EVENT_CHANNELS as usize];
#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
static HANDLERS: crate::fake::Handlers = crate::fake::Handlers;

/// Each vCPU's own, for its timer.
#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
static TIMER_HANDLERS: crate::smp::PerVcpu<AtomicPtr<()>> =
    crate::smp::PerVcpu::new([const { AtomicPtr::new(core::ptr::null_mut()) }; _]);

/// Which vCPU each channel was last bound to; those of devices are bound to vCPU 0 at first.
static BOUND: [AtomicU8; EVENT_CHANNELS as usize] = [const { AtomicU8::new(0) }; EVENT_CHANNELS as usize];

/// Where the handler of a channel is kept.
fn handler(channel: Channel) -> &'static AtomicPtr<()> {
    #[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
    if channel == Channel::TIMER {
        return &TIMER_HANDLERS;
    }
    &HANDLERS[channel.0 as usize]
}

/// An event channel. Masking, taking and waiting are for the vCPU that it is bound to, and that one's to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Channel(u32);

impl Channel {
    /// This vCPU's timer; set it with [`timer`](crate::time::timer).
    pub const TIMER: Self = Self(TIMER_CHANNEL);

    /// A change of what the host asks the balloon to hold; see [`balloon`](crate::balloon).
    pub const BALLOON: Self = Self(BALLOON_CHANNEL);

    /// The console's input; see [`console::read`](crate::console::read).
    pub const CONSOLE: Self = Self(CONSOLE_CHANNEL);

    /// Takes a free channel for this vCPU; masked, not pending.
    ///
    /// # Errors
    ///
    /// `NO_SPACE` if all are taken: close one first.
    pub fn allocate() -> Result<Self, Status> {
        Self::allocate_for(crate::smp::current())
    }

    /// Takes a free channel for another vCPU, by which that can be sent events; masked, not pending.
    ///
    /// # Errors
    ///
    /// As [`allocate`](Self::allocate), and `NOT_FOUND` if there is no such vCPU.
    pub fn allocate_for(vcpu: u32) -> Result<Self, Status> {
        let channel = crate::hypercall::event_allocate(vcpu).map(Self)?;
        BOUND[channel.0 as usize].store(vcpu as u8, Ordering::Relaxed);
        Ok(channel)
    }

    /// The channel of that number, which somebody has taken.
    pub fn from_number(number: u32) -> Self {
        assert!(number < EVENT_CHANNELS, "there are {EVENT_CHANNELS} channels, and {number} is none of them");
        Self(number)
    }

    /// Binds it to another vCPU, masked or not as that has it; a pending event goes with it.
    ///
    /// # Errors
    ///
    /// `NOT_FOUND` if it is not allocated, or there is no such vCPU.
    pub fn bind(self, vcpu: u32) -> Result<(), Status> {
        crate::hypercall::event_bind(self.0, vcpu)?;
        BOUND[self.0 as usize].store(vcpu as u8, Ordering::Relaxed);
        Ok(())
    }

    /// Binds it to `vcpu` if it is not.
    pub(crate) fn ensure_bound(self, vcpu: u32) {
        if u32::from(BOUND[self.0 as usize].load(Ordering::Relaxed)) != vcpu {
            self.bind(vcpu).expect("a channel that is waited for is open");
        }
    }

    /// Its number, for telling others.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Makes `handler` run whenever the channel fires while unmasked, and unmasks it.
    pub fn on_event(self, handler: Handler) {
        self::handler(self).store(handler as *mut (), Ordering::Release);
        self.unmask();
    }

    /// When it fires it stays pending until it is taken.
    pub(crate) fn without_handler(self) {
        handler(self).store(core::ptr::null_mut(), Ordering::Release);
    }

    /// Fires the channel.
    ///
    /// # Errors
    ///
    /// `NOT_FOUND` if it is not allocated.
    pub fn send(self) -> Result<(), Status> {
        crate::hypercall::event_send(self.0)
    }

    /// Gives the channel back; its handler is forgotten.
    ///
    /// # Errors
    ///
    /// `NOT_FOUND` if it is not allocated.
    pub fn close(self) -> Result<(), Status> {
        // Masked, so that no handler takes the channel again before its old handler is forgotten.
        without_upcalls(|| {
            crate::hypercall::event_close(self.0)?;
            self.without_handler();
            Ok(())
        })
    }

    /// Keeps the channel from interrupting and from ending a `block`. It still becomes pending.
    pub fn mask(self) {
        let (word, bit) = self.place();
        raw::vcpu_page().masked[word].fetch_or(bit, Ordering::SeqCst);
    }

    /// Lets the channel interrupt again; if it is pending, at once.
    pub fn unmask(self) {
        let (word, bit) = self.place();
        let page = raw::vcpu_page();
        page.masked[word].fetch_and(!bit, Ordering::SeqCst);
        if page.pending[word].load(Ordering::SeqCst) & bit != 0 {
            let was_masked = Masked::set();
            page.upcall.fetch_or(upcall::PENDING, Ordering::SeqCst);
            Masked::restore(was_masked);
        }
    }

    /// Whether the channel has fired since the last time; clears that.
    pub fn take(self) -> bool {
        let (word, bit) = self.place();
        raw::vcpu_page().pending[word].fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// Whether the channel has fired and nobody has taken that.
    pub fn is_pending(self) -> bool {
        let (word, bit) = self.place();
        raw::vcpu_page().pending[word].load(Ordering::Relaxed) & bit != 0
    }

    /// Gives the CPU back until the channel fires; unmasks it. For a channel without a handler: one with a handler is
    /// served by that. Handlers of other channels run meanwhile.
    pub fn wait(self) {
        self.unmask();
        // Masked, so that nothing is taken between the look and the sleep.
        let was_masked = Masked::set();
        while !self.take() {
            crate::hypercall::block(hv_abi::call::NEVER);
            crate::upcall::take_events();
        }
        Masked::restore(was_masked);
    }

    fn place(self) -> (usize, u64) {
        (self.0 as usize / 64, 1 << (self.0 % 64))
    }
}

/// Waits until one of these channels, which are bound to this vCPU, has fired, until `deadline`, or until an upcall is pending;
/// gives the lowest that has. It stays pending, and need not be unmasked: nobody is interrupted by the others.
pub fn poll(channels: &[Channel], deadline: crate::time::Instant) -> Option<Channel> {
    let mut set = [0; EVENT_WORDS];
    for (word, bit) in channels.iter().map(|channel| channel.place()) {
        set[word] |= bit;
    }
    crate::hypercall::poll(&set, deadline.as_nanos()).map(Channel)
}

/// This vCPU's page, for what the rest of this module does not cover.
pub fn vcpu_page() -> &'static VcpuPage {
    raw::vcpu_page()
}

/// Runs `section` with upcalls masked; events that come meanwhile are handled after it.
pub fn without_upcalls<T>(section: impl FnOnce() -> T) -> T {
    let was_masked = Masked::set();
    let result = section();
    Masked::restore(was_masked);
    result
}

/// Runs the handlers of pending, unmasked channels of a vCPU. One without a handler stays pending.
pub(crate) fn run_pending(page: &VcpuPage) {
    for (word, (pending, masked)) in page.pending.iter().zip(&page.masked).enumerate() {
        let mut ready = pending.load(Ordering::SeqCst) & !masked.load(Ordering::SeqCst);
        while ready != 0 {
            let bit = ready & ready.wrapping_neg();
            ready &= !bit;
            let channel = Channel(word as u32 * 64 + bit.trailing_zeros());
            let handler = handler(channel).load(Ordering::Acquire);
            // A handler before this one may have masked or taken this channel.
            let unmasked = masked.load(Ordering::SeqCst) & bit == 0;
            if !handler.is_null() && unmasked && pending.fetch_and(!bit, Ordering::SeqCst) & bit != 0 {
                // SAFETY: only `on_event` stores there, and only a `Handler`; function and data pointers are alike.
                let handler = unsafe { core::mem::transmute::<*mut (), Handler>(handler) };
                handler(channel);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use crate::hypercall::block;
    use core::cell::RefCell;
    use core::time::Duration;
    use hv_abi::vcpu::FIRST_DYNAMIC_CHANNEL;
    use std::vec::Vec;

    std::thread_local!(static SEEN: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) });

    fn note(channel: Channel) {
        SEEN.with_borrow_mut(|seen| seen.push(channel.number()));
    }

    /// Numbers of the channels that [`note`] has handled since this was last asked.
    fn seen() -> Vec<u32> {
        SEEN.take()
    }

    fn channel() -> Channel {
        Channel::allocate().unwrap()
    }

    #[test]
    fn a_handler_runs_before_a_send_to_oneself_returns() {
        let channel = channel();
        channel.on_event(note);
        channel.send().unwrap();
        assert_eq!(seen(), [channel.number()]);
        assert!(!channel.take());
    }

    #[test]
    fn waiting_ends_when_the_channel_fires_and_not_before() {
        let (waited, other) = (channel(), channel());
        other.on_event(note);
        fake::raise_after(Duration::from_secs(1), other);
        fake::raise_after(Duration::from_secs(2), waited);
        let start = crate::time::Instant::now();
        waited.wait();
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        assert_eq!(seen(), [other.number()]);
        assert!(!waited.take());
    }

    #[test]
    fn a_masked_channel_becomes_pending_and_is_handled_when_unmasked() {
        let channel = channel();
        channel.on_event(note);
        channel.mask();
        fake::raise(channel);
        fake::raise(channel);
        assert!(seen().is_empty());
        channel.unmask();
        assert_eq!(seen(), [channel.number()], "a channel does not count");
    }

    #[test]
    fn a_handler_that_comes_late_finds_what_was_pending() {
        let channel = channel();
        channel.unmask();
        fake::raise(channel);
        channel.on_event(note);
        assert_eq!(seen(), [channel.number()]);
    }

    #[test]
    fn a_channel_without_a_handler_is_polled() {
        let channel = channel();
        assert!(!channel.take());
        fake::raise(channel);
        assert!(channel.take());
        assert!(!channel.take());
    }

    #[test]
    fn without_upcalls_nests_and_handles_everything_at_its_outer_end() {
        let (first, second) = (channel(), channel());
        first.on_event(note);
        second.on_event(note);
        let result = without_upcalls(|| {
            second.send().unwrap();
            without_upcalls(|| fake::raise(first));
            assert!(seen().is_empty());
            first.unmask(); // pending, and still not handled here
            assert!(seen().is_empty());
            7
        });
        assert_eq!((result, seen()), (7, [first.number(), second.number()].into()));
        fake::finish();
    }

    #[test]
    fn an_event_that_a_handler_raises_is_handled_after_it() {
        std::thread_local!(static OTHER: RefCell<Option<Channel>> = const { RefCell::new(None) });
        fn chain(channel: Channel) {
            OTHER.take().unwrap().send().unwrap();
            note(channel);
        }
        let (first, second) = (channel(), channel());
        OTHER.set(Some(first));
        first.on_event(note);
        second.on_event(chain);
        second.send().unwrap();
        assert_eq!(seen(), [second.number(), first.number()]);
        fake::finish();
    }

    #[test]
    fn a_handler_that_fires_its_own_channel_runs_again() {
        fn twice(channel: Channel) {
            note(channel);
            if SEEN.with_borrow(Vec::len) < 3 {
                channel.send().unwrap();
            }
        }
        let channel = channel();
        channel.on_event(twice);
        channel.send().unwrap();
        assert_eq!(seen().len(), 3);
    }

    #[test]
    fn a_handler_can_mask_or_take_a_channel_that_is_pending_with_it() {
        fn mask_and_take(channel: Channel) {
            note(channel);
            Channel(channel.0 + 1).mask();
            assert!(Channel(channel.0 + 2).take());
        }
        let (first, masked, taken) = (channel(), channel(), channel());
        first.on_event(mask_and_take);
        masked.on_event(note);
        taken.on_event(note);
        without_upcalls(|| [first, masked, taken].map(fake::raise));
        assert_eq!(seen(), [first.number()]);
        masked.unmask();
        assert_eq!(seen(), [masked.number()], "what was masked is still pending");
    }

    #[test]
    fn handlers_run_with_upcalls_masked_and_may_use_the_whole_sdk() {
        fn busy(channel: Channel) {
            assert_ne!(raw::vcpu_page().upcall.load(Ordering::SeqCst) & upcall::MASKED, 0);
            crate::println!("from {}", channel.number());
            crate::time::sleep(Duration::from_millis(1));
            without_upcalls(|| note(channel));
        }
        let channel = channel();
        channel.on_event(busy);
        fake::raise(channel);
        assert_eq!((fake::console().as_str(), seen().len()), ("from 16\n", 1));
        without_upcalls(|| fake::raise(channel)); // handled when the SDK unmasks
        assert_eq!((fake::console().as_str(), seen().len()), ("from 16\n", 1));
        fake::finish();
    }

    #[test]
    fn channels_run_out_and_come_back() {
        let all: Vec<Channel> = std::iter::from_fn(|| Channel::allocate().ok()).collect();
        let numbers: Vec<u32> = all.iter().map(|channel| channel.number()).collect();
        assert_eq!(numbers, (FIRST_DYNAMIC_CHANNEL..512).collect::<Vec<_>>());
        assert_eq!(Channel::allocate(), Err(Status::NO_SPACE));
        all[400].close().unwrap();
        assert_eq!(Channel::allocate(), Ok(all[400]));
        assert_eq!(Channel::allocate(), Err(Status::NO_SPACE));
        all[495].on_event(note);
        all[495].send().unwrap();
        assert_eq!(seen(), [511], "the last bit of the last word");
    }

    #[test]
    fn a_closed_channel_comes_back_masked_without_its_handler() {
        let old = channel();
        old.on_event(note);
        without_upcalls(|| {
            fake::raise(old);
            old.close().unwrap();
        });
        let new = channel();
        assert_eq!(new, old);
        assert!(!new.take());
        new.unmask();
        fake::raise(new);
        assert!(seen().is_empty());
    }

    #[test]
    fn an_upcall_at_the_end_of_a_close_may_take_the_channel() {
        fn take_again(_: Channel) {
            Channel::allocate().unwrap().on_event(note);
        }
        let (closed, other) = (channel(), channel());
        other.on_event(take_again);
        fake::raise_after(Duration::ZERO, other);
        closed.close().unwrap();
        fake::raise(closed); // by now open again
        assert_eq!(seen(), [closed.number()], "the handler of the new owner is forgotten");
    }

    #[test]
    fn a_waiter_that_looks_and_blocks_with_upcalls_masked_loses_nothing() {
        let channel = channel();
        channel.unmask();
        fake::raise_after(Duration::from_millis(2), channel);
        fake::wake_early();
        let mut blocks = 0;
        while !without_upcalls(|| {
            let fired = channel.take();
            if !fired {
                blocks += 1;
                assert!(!block(hv_abi::call::NEVER));
            }
            fired
        }) {}
        assert_eq!((blocks, crate::time::Instant::now().as_nanos()), (2, 2_000_000));
        fake::finish();
    }

    #[test]
    fn a_failed_close_keeps_the_handler() {
        let channel = channel();
        channel.on_event(note);
        fake::fail_next(hv_abi::Call::EVENT_CLOSE, Status::BUSY);
        assert_eq!(channel.close(), Err(Status::BUSY));
        channel.send().unwrap();
        assert_eq!(seen(), [16]);
    }
}

//! Event channels: how the host, a timer or another vCPU tells the guest that something happened.
//!
//! A channel with a handler, once unmasked, interrupts the guest kernel wherever it is; the handler runs with
//! upcalls masked and may use the whole SDK, but should be short. A channel without one is polled with
//! [`Channel::take`], and an unmasked one ends a [`block`](crate::hypercall::block).

#![expect(unsafe_code, reason = "handlers are stored as pointers")]

use crate::raw;
use crate::upcall::Masked;
#[cfg(not(any(test, feature = "fake-host")))]
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;
use hv_abi::Status;
#[cfg(not(any(test, feature = "fake-host")))]
use hv_abi::vcpu::EVENT_CHANNELS;
use hv_abi::vcpu::{TIMER_CHANNEL, VcpuPage, upcall};

/// What is called when a channel fires.
pub type Handler = fn(Channel);

#[cfg(not(any(test, feature = "fake-host")))]
static HANDLERS: [AtomicPtr<()>; EVENT_CHANNELS as usize] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; EVENT_CHANNELS as usize];
#[cfg(any(test, feature = "fake-host"))]
static HANDLERS: crate::fake::Handlers = crate::fake::Handlers;

/// An event channel of this vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Channel(u32);

impl Channel {
    /// This vCPU's timer; set it with [`timer`](crate::time::timer).
    pub const TIMER: Self = Self(TIMER_CHANNEL);

    /// Takes a free channel; masked, not pending.
    ///
    /// # Errors
    ///
    /// `NO_SPACE` if all are taken: close one first.
    pub fn allocate() -> Result<Self, Status> {
        crate::hypercall::event_allocate(raw::vcpu_page().vcpu.load(Ordering::Relaxed)).map(Self)
    }

    /// Its number, for telling others.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Makes `handler` run whenever the channel fires while unmasked, and unmasks it.
    pub fn on_event(self, handler: Handler) {
        HANDLERS[self.0 as usize].store(handler as *mut (), Ordering::Release);
        self.unmask();
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
            HANDLERS[self.0 as usize].store(core::ptr::null_mut(), Ordering::Release);
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

    fn place(self) -> (usize, u64) {
        (self.0 as usize / 64, 1 << (self.0 % 64))
    }
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
            let handler = HANDLERS[channel.0 as usize].load(Ordering::Acquire);
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

//! Time: reading it makes no hypercall.

use crate::events::{Channel, Handler, without_upcalls};
use crate::hypercall;
use crate::raw;
use core::ops::{Add, Sub};
use core::sync::atomic::{Ordering, fence};
pub use core::time::Duration;
use hv_abi::call::NEVER;

/// A moment on the guest's clock, which is monotonic and began with the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The moment at which the VM was started.
    pub const START: Self = Self(0);

    /// Now.
    pub fn now() -> Self {
        Self(read_clock())
    }

    /// How long ago this was; zero if it is yet to come.
    pub fn elapsed(self) -> Duration {
        Self::now() - self
    }

    /// Nanoseconds since the VM was started.
    pub fn as_nanos(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates at the end of time.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(NEVER)))
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// Zero if `earlier` is later.
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Reads the clock page as `hv_abi::clock` says.
fn read_clock() -> u64 {
    let page = raw::clock_page();
    loop {
        let sequence = page.sequence.load(Ordering::Acquire);
        let ticks = raw::tsc().saturating_sub(page.tsc_base.load(Ordering::Relaxed));
        let scaled = (u128::from(ticks) * u128::from(page.scale.load(Ordering::Relaxed))) >> 32;
        let now = page.ns_base.load(Ordering::Relaxed) + scaled as u64;
        fence(Ordering::Acquire);
        if sequence & 1 == 0 && page.sequence.load(Ordering::Relaxed) == sequence {
            return now;
        }
        core::hint::spin_loop();
    }
}

/// Time since 1970-01-01 00:00:00 UTC.
pub fn since_epoch() -> Duration {
    let base = raw::clock_page().wall_base.load(Ordering::Relaxed);
    Duration::from_nanos(base) + (Instant::now() - Instant::START)
}

/// Gives the CPU back for at least `duration`. Handlers of events run meanwhile.
pub fn sleep(duration: Duration) {
    sleep_until(Instant::now() + duration);
}

/// Gives the CPU back until `deadline`.
pub fn sleep_until(deadline: Instant) {
    while Instant::now() < deadline {
        hypercall::block(deadline.0);
    }
}

/// This vCPU's timer: calls a handler once, at a moment.
pub mod timer {
    use super::*;

    /// Makes `handler` run once `deadline` has come. A timer that was set before is forgotten.
    pub fn set(deadline: Instant, handler: Handler) {
        without_upcalls(|| {
            hypercall::timer_set(deadline.0);
            // Pending: the timer before has fired unseen, or this one has already. Which, cannot be told, so both are
            // forgotten; if it was this one, it fires again at once.
            if Channel::TIMER.take() {
                hypercall::timer_set(NEVER);
                Channel::TIMER.take();
                hypercall::timer_set(deadline.0);
            }
            Channel::TIMER.on_event(handler);
        });
    }

    /// Forgets the timer.
    pub fn clear() {
        hypercall::timer_set(NEVER);
        Channel::TIMER.take();
    }
}

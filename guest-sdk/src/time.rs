//! Time: reading it makes no hypercall.

use crate::events::{Channel, Handler, vcpu_page, without_upcalls};
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

/// Time for which this vCPU wanted to run and the host did not let it, since the VM was started: what to take off the time
/// that something seems to have used. The host brings it up to date when a timer fires, and need not be exact.
pub fn stolen() -> Duration {
    Duration::from_nanos(vcpu_page().steal_ns.load(Ordering::Relaxed))
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
            begin(deadline);
            Channel::TIMER.on_event(handler);
        });
    }

    /// What [`arm`] has set the timer to, in nanoseconds; `NEVER` if it has not.
    #[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
    static ARMED: crate::smp::PerVcpu<core::sync::atomic::AtomicU64> =
        crate::smp::PerVcpu::new([const { core::sync::atomic::AtomicU64::new(NEVER) }; _]);
    #[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
    static ARMED: crate::fake::Armed = crate::fake::Armed;

    /// Sees to it that the timer fires at `deadline`, or before, without a handler: [`has_come`] tells.
    pub(crate) fn arm(deadline: Instant) {
        if Channel::TIMER.is_pending() || ARMED.load(Ordering::Relaxed) > deadline.0 {
            begin_armed(deadline);
        }
    }

    /// Whether `deadline`, which was armed, has come. If the timer has fired for an earlier one, it is armed anew.
    pub(crate) fn has_come(deadline: Instant) -> bool {
        let fired = Channel::TIMER.is_pending();
        let come = fired && Instant::now() >= deadline;
        if fired && !come {
            begin_armed(deadline);
        }
        come
    }

    fn begin_armed(deadline: Instant) {
        without_upcalls(|| {
            Channel::TIMER.without_handler();
            begin(deadline);
            ARMED.store(deadline.0, Ordering::Relaxed);
            Channel::TIMER.unmask();
        });
    }

    /// With upcalls masked.
    fn begin(deadline: Instant) {
        ARMED.store(NEVER, Ordering::Relaxed);
        hypercall::timer_set(deadline.0);
        // Pending: the timer before has fired unseen, or this one has already. Which, cannot be told, so both are
        // forgotten; if it was this one, it fires again at once.
        if Channel::TIMER.take() {
            hypercall::timer_set(NEVER);
            Channel::TIMER.take();
            hypercall::timer_set(deadline.0);
        }
    }

    /// Forgets the timer.
    pub fn clear() {
        ARMED.store(NEVER, Ordering::Relaxed);
        hypercall::timer_set(NEVER);
        Channel::TIMER.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use crate::hypercall::timer_set;
    use core::cell::{Cell, RefCell};
    use hv_abi::Call;
    use std::vec::Vec;

    const MS: Duration = Duration::from_millis(1);

    std::thread_local!(static FIRED: RefCell<Vec<(char, u64)>> = const { RefCell::new(Vec::new()) });

    fn a(channel: Channel) {
        assert_eq!(channel, Channel::TIMER);
        FIRED.with_borrow_mut(|fired| fired.push(('a', Instant::now().as_nanos())));
    }

    fn b(_: Channel) {
        FIRED.with_borrow_mut(|fired| fired.push(('b', Instant::now().as_nanos())));
    }

    fn fired() -> Vec<(char, u64)> {
        FIRED.take()
    }

    #[test]
    fn the_clock_begins_with_the_vm_and_is_read_without_a_call() {
        assert_eq!(Instant::now(), Instant::START);
        fake::advance(5 * MS);
        assert_eq!(Instant::START.elapsed(), 5 * MS);
        assert_eq!(Instant::now().as_nanos(), 5_000_000);
        assert_eq!(since_epoch(), Duration::from_secs(1_735_689_600) + 5 * MS);
        assert!(fake::calls().is_empty());
    }

    #[test]
    fn the_clock_follows_its_page() {
        let page = raw::clock_page();
        page.tsc_base.store(1_000, Ordering::Relaxed);
        page.ns_base.store(70, Ordering::Relaxed);
        page.scale.store(3 << 31, Ordering::Relaxed); // one and a half
        assert_eq!(Instant::now().as_nanos(), 70, "a counter below its base is no time");
        fake::advance(Duration::from_nanos(1_010));
        assert_eq!(Instant::now().as_nanos(), 85);
    }

    #[test]
    fn instants_saturate_at_both_ends() {
        assert_eq!(Instant::START - (Instant::START + MS), Duration::ZERO);
        let end = Instant::START + Duration::MAX;
        assert_eq!(end.as_nanos(), NEVER);
        assert_eq!(end + MS, end);
    }

    #[test]
    fn sleep_lasts_as_long_as_it_says_even_if_blocks_end_early() {
        fake::wake_early();
        sleep(3 * MS);
        assert_eq!(Instant::START.elapsed(), 3 * MS);
        sleep(Duration::ZERO);
        sleep_until(Instant::START + MS);
        assert_eq!(Instant::START.elapsed(), 3 * MS);
    }

    #[test]
    fn handlers_run_while_the_guest_sleeps() {
        timer::set(Instant::START + MS, a);
        sleep(3 * MS);
        assert_eq!(fired(), [('a', 1_000_000)]);
        assert_eq!(Instant::START.elapsed(), 3 * MS);
    }

    #[test]
    fn a_timer_fires_once_and_not_before_its_time() {
        timer::set(Instant::START + 2 * MS, a);
        fake::advance(2 * MS - Duration::from_nanos(1));
        assert!(fired().is_empty());
        fake::advance(Duration::from_nanos(1));
        assert_eq!(fired(), [('a', 2_000_000)]);
        fake::advance(10 * MS);
        assert!(fired().is_empty());
    }

    #[test]
    fn a_timer_whose_time_has_passed_fires_at_once() {
        fake::advance(MS);
        timer::set(Instant::START, a);
        assert_eq!(fired(), [('a', 1_000_000)]);
    }

    #[test]
    fn a_new_timer_replaces_the_old_one() {
        timer::set(Instant::START + MS, a);
        timer::set(Instant::START + 2 * MS, b);
        assert_eq!(fake::calls().len(), 2);
        fake::advance(5 * MS);
        assert_eq!(fired(), [('b', 2_000_000)]);
    }

    #[test]
    fn a_timer_that_fired_unseen_is_replaced_too() {
        timer::set(Instant::START + MS, a);
        without_upcalls(|| {
            fake::advance(MS);
            timer::set(Instant::START + 2 * MS, b);
        });
        assert!(fired().is_empty(), "the firing of the old timer was taken for the new one's");
        fake::advance(MS);
        assert_eq!(fired(), [('b', 2_000_000)]);
    }

    #[test]
    fn a_replaced_timer_still_fires_at_once_if_its_time_has_passed() {
        timer::set(Instant::START + MS, a);
        without_upcalls(|| {
            fake::advance(3 * MS);
            timer::set(Instant::START + 2 * MS, b);
        });
        assert_eq!(fired(), [('b', 3_000_000)]);
    }

    #[test]
    fn a_cleared_timer_does_not_fire_even_if_its_time_had_come() {
        timer::set(Instant::START + MS, a);
        timer::clear();
        fake::advance(2 * MS);
        timer::set(Instant::START + 3 * MS, a);
        without_upcalls(|| {
            fake::advance(MS);
            timer::clear();
        });
        assert!(fired().is_empty());
    }

    #[test]
    fn a_handler_may_set_the_timer_again() {
        std::thread_local!(static TICKS: Cell<u64> = const { Cell::new(0) });
        fn tick(_: Channel) {
            TICKS.set(TICKS.get() + 1);
            timer::set(Instant::START + MS * (TICKS.get() as u32 + 1), tick);
        }
        timer::set(Instant::START + MS, tick);
        fake::advance(5 * MS);
        assert_eq!(TICKS.get(), 5);
    }

    #[test]
    fn a_masked_timer_does_not_end_a_block_but_stays_pending() {
        timer_set(1_000_000);
        sleep(3 * MS);
        assert!(Channel::TIMER.take());
        assert_eq!(fake::calls(), [(Call::TIMER_SET, [1_000_000, 0, 0, 0, 0])]);
    }
}

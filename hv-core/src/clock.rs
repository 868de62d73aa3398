//! The guest clock: nanoseconds since the VM was started, read from the time-stamp counter.
//!
//! The rate of the counter is measured against the host's monotonic clock. A good rate needs a long
//! measurement, and a VM should start in a fraction of a millisecond, so the first rate is what the process
//! has learnt so far, and the clock page is corrected later: after a tenth of a second, a second, and then
//! once a minute. A correction never makes the clock jump, it bends its rate so that it meets the host's at the
//! next one.

#![expect(unsafe_code, reason = "the RDTSC intrinsic")]

use hv_abi::clock::ClockPage;
use std::sync::Mutex;
use std::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst, fence};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds on the host's monotonic clock.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The time-stamp counter now.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 processor; a kernel that forbids it to processes cannot run `hv`.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// The time-stamp counter now, give or take the instructions around: for looking whether it is late.
pub(crate) fn tsc_now() -> u64 {
    // SAFETY: as in `tsc`.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// What a clock page shows now, read as guests read it.
pub(crate) fn read(page: &ClockPage) -> u64 {
    loop {
        let sequence = page.sequence.load(SeqCst);
        let ticks = tsc().saturating_sub(page.tsc_base.load(Relaxed));
        let scaled = (u128::from(ticks) * u128::from(page.scale.load(Relaxed))) >> 32;
        let now = page.ns_base.load(Relaxed) + scaled as u64;
        fence(SeqCst);
        if sequence.is_multiple_of(2) && page.sequence.load(Relaxed) == sequence {
            return now;
        }
        core::hint::spin_loop();
    }
}

/// The counter and the monotonic clock at one moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    tsc: u64,
    ns: u64,
}

impl Sample {
    /// The tightest of a few readings.
    fn now() -> Self {
        let reading = || {
            let before = tsc();
            let ns = monotonic_ns();
            let after = tsc();
            (after.wrapping_sub(before), Self { tsc: before + (after.wrapping_sub(before)) / 2, ns })
        };
        let (_, best) = (0..5).map(|_| reading()).min_by_key(|(width, _)| *width).expect("five readings");
        best
    }
}

/// What is known of the counter's rate.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// Where the measurement began: the longer ago, the better the rate.
    first: Sample,
    /// Nanoseconds per tick times 2^32; 0 until there is one.
    scale: u64,
}

static RATE: Mutex<Option<Rate>> = Mutex::new(None);

/// Shortest time over which a rate is measured, in nanoseconds.
const SHORTEST: u64 = 300_000;

/// A rate that was measured for this long is believed, in nanoseconds...
const BELIEVED: u64 = 100_000_000;

/// ... and then one that differs by more than this part is not: the host was suspended, and one of the two clocks was not.
const IMPLAUSIBLE: u64 = 256;

/// Notes the time, so that a later VM start finds a rate measured over the time since. Cheap; call it early.
pub fn prepare() {
    let mut rate = RATE.lock().expect("no thread panics with the lock held");
    rate.get_or_insert_with(|| Rate { first: Sample::now(), scale: 0 });
}

/// Nanoseconds per tick times 2^32, and the sample that it was measured up to.
fn rate() -> (u64, Sample) {
    let mut rate = RATE.lock().expect("no thread panics with the lock held");
    let rate = rate.get_or_insert_with(|| Rate { first: Sample::now(), scale: 0 });
    loop {
        let now = Sample::now();
        if let Some(scale) = measured(rate, now) {
            rate.scale = scale;
            return (scale, now);
        }
        if rate.scale != 0 {
            rate.first = now;
            return (rate.scale, now);
        }
        core::hint::spin_loop();
    }
}

/// The rate between the first sample and this one, if that is long enough and plausible.
fn measured(rate: &Rate, now: Sample) -> Option<u64> {
    let ns = now.ns.checked_sub(rate.first.ns).filter(|ns| *ns >= SHORTEST)?;
    let ticks = now.tsc.checked_sub(rate.first.tsc).filter(|ticks| *ticks > 0)?;
    let scale = u64::try_from((u128::from(ns) << 32) / u128::from(ticks)).ok().filter(|scale| *scale > 0)?;
    let believed = rate.scale != 0 && ns >= BELIEVED;
    (!believed || scale.abs_diff(rate.scale) <= rate.scale / IMPLAUSIBLE).then_some(scale)
}

/// The frequency of the time-stamp counter, as well as it is known by now.
pub fn tsc_hz() -> u64 {
    ((1_000_000_000_u128 << 32) / u128::from(rate().0)) as u64
}

/// Corrections after the start, then every minute.
const CORRECTIONS: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(60)];

/// A VM's clock: the monitor's copy of what the clock page says.
#[derive(Debug)]
pub(crate) struct GuestClock {
    /// Host monotonic time at which the clock showed 0.
    start: u64,
    tsc_base: u64,
    ns_base: u64,
    scale: u64,
    corrections: usize,
    /// Host monotonic time of the next correction.
    next: u64,
}

impl GuestClock {
    /// Starts the clock at 0, now.
    pub(crate) fn start(page: &ClockPage) -> Self {
        let (scale, now) = rate();
        let next = now.ns + CORRECTIONS[0].as_nanos() as u64;
        let mut clock = Self { start: now.ns, tsc_base: now.tsc, ns_base: 0, scale, corrections: 0, next };
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        page.wall_base.store(wall.as_nanos() as u64, Relaxed);
        clock.publish(page, None);
        clock
    }

    /// Host monotonic time of the next correction.
    pub(crate) fn next_correction(&self) -> u64 {
        self.next
    }

    /// Bends the clock towards the host's.
    pub(crate) fn correct(&mut self, page: &ClockPage) {
        let (true_scale, now) = rate();
        let behind = now.ns.wrapping_sub(self.start) as i64 - self.at(now.tsc) as i64;
        self.corrections = (self.corrections + 1).min(CORRECTIONS.len() - 1);
        let interval = CORRECTIONS[self.corrections].as_nanos() as i64;
        // At most a thousandth faster or slower, so that short measurements stay right.
        let bend = behind.clamp(-interval / 1000, interval / 1000);
        let scale = (i128::from(true_scale) * i128::from(interval + bend) / i128::from(interval)) as u64;
        self.next = now.ns + interval as u64;
        self.publish(page, Some(scale));
        tracing::debug!(behind_ns = behind, "clock corrected");
    }

    /// What the clock shows at a value of the counter.
    fn at(&self, tsc: u64) -> u64 {
        let ticks = tsc.saturating_sub(self.tsc_base);
        self.ns_base + ((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64
    }

    /// What the clock shows now.
    pub(crate) fn now(&self) -> u64 {
        self.at(tsc())
    }

    /// Value of the counter at which the clock will show `guest_ns`.
    pub(crate) fn to_tsc(&self, guest_ns: u64) -> u64 {
        let left = u128::from(guest_ns.saturating_sub(self.ns_base)) << 32;
        let ticks = left / u128::from(self.scale.max(1));
        self.tsc_base.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
    }

    /// Host monotonic time at which the clock will show `guest_ns`.
    pub(crate) fn to_monotonic(&self, guest_ns: u64) -> u64 {
        let left = guest_ns.saturating_sub(self.now());
        monotonic_ns().saturating_add(left)
    }

    /// Writes the clock page; with a new scale, from the moment on at which readers begin to wait for it, so that the
    /// clock neither jumps nor steps back however long this takes.
    fn publish(&mut self, page: &ClockPage, scale: Option<u64>) {
        let sequence = page.sequence.load(Relaxed);
        page.sequence.store(sequence.wrapping_add(1) | 1, Relaxed);
        fence(SeqCst);
        if let Some(scale) = scale {
            let now = tsc();
            (self.ns_base, self.tsc_base, self.scale) = (self.at(now), now, scale);
        }
        page.tsc_base.store(self.tsc_base, Relaxed);
        page.ns_base.store(self.ns_base, Relaxed);
        page.scale.store(self.scale, Relaxed);
        fence(SeqCst);
        page.sequence.store((sequence | 1).wrapping_add(1), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_correction_never_steps_back_and_meets_the_hosts_clock() {
        let page = ClockPage::default();
        let mut clock = GuestClock::start(&page);
        let mut last = 0;
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(2));
            let before = clock.now();
            clock.correct(&page);
            let after = clock.now();
            assert!(last <= before && before <= after, "{last} {before} {after}");
            last = after;
        }
        assert_eq!(page.sequence.load(Relaxed) % 2, 0, "the counter is even when nothing is being written");
    }

    #[test]
    fn a_rate_that_a_suspended_host_would_give_is_not_believed() {
        let second = 1_000_000_000;
        let rate = Rate { first: Sample { tsc: 0, ns: 0 }, scale: 1 << 31 }; // 2 GHz
        let at = |tsc, ns| measured(&rate, Sample { tsc, ns });
        assert_eq!(at(2 * second, second), Some(1 << 31));
        assert_eq!(at(20 * second, second), None, "the counter ran on while the clock stood still");
        assert_eq!(
            measured(
                &Rate { first: Sample { tsc: 9 * second, ns: 0 }, ..rate },
                Sample { tsc: 5, ns: second }
            ),
            None
        );
    }

    #[test]
    fn the_bend_makes_up_for_what_the_clock_is_behind() {
        let page = ClockPage::default();
        let mut clock = GuestClock::start(&page);
        clock.start -= 50_000; // the clock is now 50 us behind the host
        clock.correct(&page);
        let (true_scale, _) = rate();
        let gain = i128::from(clock.scale) * 1_000_000 / i128::from(true_scale) - 1_000_000;
        // 50 us over the next second: 50 millionths; the rate itself is only known to some.
        assert!((20..200).contains(&gain), "{gain} ppm");
    }
}

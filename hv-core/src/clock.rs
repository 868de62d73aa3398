//! The guest clock: nanoseconds since the VM was started, read from the time-stamp counter.
//!
//! The rate of the counter is measured against the host's monotonic clock. A good rate needs a long
//! measurement, and a VM should start in a fraction of a millisecond, so the first rate is what the process
//! has learnt so far, and the clock page is corrected later: after a tenth of a second, a second, and then
//! once a minute. A correction never makes the clock jump, it bends its rate so that it meets the host's at the
//! next one.

#![expect(unsafe_code, reason = "the RDTSC intrinsic")]

use hv_abi::clock::ClockPage;
use std::sync::OnceLock;
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

/// First sample of this process: the longer ago it is, the better the rate.
static FIRST: OnceLock<Sample> = OnceLock::new();

/// Shortest time over which a rate is measured.
const SHORTEST: Duration = Duration::from_micros(300);

/// Notes the time, so that a later VM start finds a rate measured over the time since. Cheap; call it early.
pub fn prepare() {
    FIRST.get_or_init(Sample::now);
}

/// Nanoseconds per tick times 2^32, and the sample that it was measured up to.
fn rate() -> (u64, Sample) {
    let first = *FIRST.get_or_init(Sample::now);
    loop {
        let now = Sample::now();
        let (ns, ticks) = (now.ns - first.ns, now.tsc.wrapping_sub(first.tsc));
        if ns >= SHORTEST.as_nanos() as u64 && ticks > 0 {
            return (((u128::from(ns) << 32) / u128::from(ticks)) as u64, now);
        }
        core::hint::spin_loop();
    }
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
        let clock = Self { start: now.ns, tsc_base: now.tsc, ns_base: 0, scale, corrections: 0, next };
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        page.wall_base.store(wall.as_nanos() as u64, Relaxed);
        clock.publish(page);
        clock
    }

    /// Host monotonic time of the next correction.
    pub(crate) fn next_correction(&self) -> u64 {
        self.next
    }

    /// Bends the clock towards the host's.
    pub(crate) fn correct(&mut self, page: &ClockPage) {
        let (true_scale, now) = rate();
        let shown = self.at(now.tsc);
        let behind = (now.ns - self.start) as i64 - shown as i64;
        self.corrections = (self.corrections + 1).min(CORRECTIONS.len() - 1);
        let interval = CORRECTIONS[self.corrections].as_nanos() as i64;
        // At most a thousandth faster or slower, so that short measurements stay right.
        let bend = behind.clamp(-interval / 1000, interval / 1000);
        self.scale = (i128::from(true_scale) * i128::from(interval + bend) / i128::from(interval)) as u64;
        (self.tsc_base, self.ns_base) = (now.tsc, shown);
        self.next = now.ns + interval as u64;
        self.publish(page);
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

    /// Host monotonic time at which the clock will show `guest_ns`.
    pub(crate) fn to_monotonic(&self, guest_ns: u64) -> u64 {
        let left = guest_ns.saturating_sub(self.now());
        monotonic_ns().saturating_add(left)
    }

    fn publish(&self, page: &ClockPage) {
        let sequence = page.sequence.load(Relaxed);
        page.sequence.store(sequence.wrapping_add(1) | 1, Relaxed);
        fence(SeqCst);
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

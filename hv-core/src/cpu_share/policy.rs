//! When to hold a VM back, and for how long: arithmetic on figures, without threads or clocks.
//!
//! A [`Cap`] is a bucket of processor time: it fills at the cap's rate, up to a little, and is emptied by what the VM uses.
//! What is used beyond it is a debt, and paid before the VM runs again; so the cap holds over any longer time, however
//! late the look at the clocks was.
//!
//! A [`Rivalry`] is with another VM that wants the same processors: how far this one is ahead of its share, counted only
//! while the other is held up. Whoever is ahead waits until the other has caught up, or no longer wants to. So nothing
//! is lost when one of them has nothing to do: it does not wait, and nobody waits for it.

use std::time::Duration;

/// What the guest may use at once after it was idle, as a time at the cap's rate: the longer, the fewer the pauses, and the
/// longer each.
const BURST: Duration = Duration::from_millis(30);
/// How often to look, at the most.
const SHORTEST: Duration = Duration::from_millis(1);
/// How seldom, when nothing happens. What a guest uses in this time that wakes, it pays for afterwards.
pub(super) const LONGEST: Duration = Duration::from_millis(100);
/// How often rivals look, and tell each other: who waits for one that has just gone idle waits in vain for so long.
const RIVALRY_LOOK: Duration = Duration::from_millis(10);

/// What to do until the next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Run(Duration),
    Pause(Duration),
}

impl Step {
    /// Both: who is to pause pauses, and the sooner look counts unless both are to.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Run(a), Self::Run(b)) => Self::Run(a.min(b)),
            (Self::Pause(a), Self::Pause(b)) => Self::Pause(a.max(b)),
            (pause @ Self::Pause(_), Self::Run(_)) | (Self::Run(_), pause @ Self::Pause(_)) => pause,
        }
    }
}

fn nanos(time: Duration) -> i64 {
    time.as_nanos() as i64
}

/// At most so many percent of one processor.
#[derive(Debug)]
pub(super) struct Cap {
    percent: u32,
    /// Nanoseconds that may be used; negative: a debt.
    credit: i64,
    /// Until the next look, if nothing happens.
    patience: Duration,
}

impl Cap {
    pub(super) fn new(percent: u32) -> Self {
        let mut cap = Self { percent, credit: 0, patience: SHORTEST };
        cap.credit = cap.burst();
        cap
    }

    fn burst(&self) -> i64 {
        nanos(BURST) * i64::from(self.percent) / 100
    }

    /// `elapsed` is over, in which the VM used `used`.
    pub(super) fn look(&mut self, elapsed: Duration, used: Duration) -> Step {
        let earned = nanos(elapsed).saturating_mul(self.percent.into()) / 100;
        self.credit = self.credit.saturating_add(earned).saturating_sub(nanos(used)).min(self.burst());
        let percent = i64::from(self.percent);
        if self.credit <= 0 {
            // Until the bucket is full, so that the next run is a whole one.
            let missing = (self.burst() - self.credit) as u64;
            return Step::Pause(Duration::from_nanos(missing.saturating_mul(100) / u64::from(self.percent)));
        }
        // It may empty the bucket as fast as it did, or by one processor if that is faster. What it does beyond is a debt.
        let rate = (nanos(used) * 100 / nanos(elapsed).max(1)).max(100);
        let empty = match rate - percent {
            drain @ 1.. => Duration::from_nanos((self.credit * 100 / drain) as u64),
            _ => LONGEST,
        };
        let idle = used < elapsed / 100;
        self.patience = if idle { (self.patience * 2).min(LONGEST) } else { SHORTEST };
        Step::Run(empty.max(self.patience).clamp(SHORTEST, LONGEST))
    }
}

/// What a VM's monitor says of it at one moment: sums since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Figures {
    /// When, on the host's monotonic clock, in nanoseconds.
    pub at: u64,
    pub weight: u32,
    /// Processor time, in nanoseconds.
    pub used: u64,
    /// Nanoseconds for which its vCPUs were ready to run and had no processor.
    pub delayed: u64,
}

/// This VM against another that may run on the same processors.
#[derive(Debug)]
pub(super) struct Rivalry {
    last: Figures,
    /// The other wants more than it gets.
    wants: bool,
    /// This VM was held back when the other's last figures were made, or for a part of the time before.
    held_back: bool,
    /// What this VM has used since the other's last figures, in nanoseconds.
    used: u64,
    /// Processor time that this VM had had beyond its share when those were made, in nanoseconds; negative: that it lacked.
    ahead: i64,
}

/// How far ahead a VM may get before it waits: as its own processor time.
const AHEAD: i64 = 5_000_000;
/// A longer lead is forgiven, and so is an arrears.
const MOST: i64 = 1_000_000_000;

impl Rivalry {
    pub(super) fn new(first: Figures) -> Self {
        Self { last: first, wants: false, held_back: false, used: 0, ahead: 0 }
    }

    /// This VM, of `own.weight`, has used `used` since the last look; `held_back`: it was kept from using more.
    pub(super) fn look(&mut self, own: Figures, used: Duration, other: Figures, held_back: bool) -> Step {
        self.held_back |= held_back;
        self.used += used.as_nanos() as u64;
        if other.at > self.last.at {
            self.hear(own, other);
            self.held_back = held_back;
        }
        if !self.wants {
            // One that is busy may be waited for: the others are to hear soon when it no longer is.
            return Step::Run(if used > RIVALRY_LOOK / 10 { RIVALRY_LOOK } else { LONGEST });
        }
        let far = if held_back { 0 } else { AHEAD };
        if self.ahead > far { Step::Pause(RIVALRY_LOOK) } else { Step::Run(RIVALRY_LOOK) }
    }

    /// The other has new figures.
    fn hear(&mut self, own: Figures, now: Figures) {
        // What this one had used by then, if it used it evenly: to compare what belongs together.
        let (part, whole) = (now.at - self.last.at, own.at.saturating_sub(self.last.at).max(1));
        let used = (u128::from(self.used) * u128::from(part.min(whole)) / u128::from(whole)) as u64;
        self.used -= used;
        let elapsed = now.at - self.last.at;
        let its = now.used.saturating_sub(self.last.used);
        let delayed = now.delayed.saturating_sub(self.last.delayed);
        self.last = now;
        self.wants = match self.held_back {
            // It takes what was left to it, or somebody else does.
            true => its.saturating_add(delayed) >= elapsed / 4,
            false => delayed >= elapsed / 20,
        };
        let due = i128::from(its) * i128::from(own.weight) / i128::from(now.weight.max(1));
        let ahead = i128::from(self.ahead) + i128::from(used) - due;
        self.ahead = if self.wants { ahead.clamp(-i128::from(MOST), MOST.into()) as i64 } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Share that a guest gets which uses `appetite` processors whenever it may, if each look is late by `late`.
    fn share(percent: u32, appetite: f64, late: Duration, whole: Duration) -> f64 {
        let mut cap = Cap::new(percent);
        let (mut now, mut all) = (Duration::ZERO, Duration::ZERO);
        let mut step = cap.look(MS, Duration::ZERO);
        while now < whole {
            let (elapsed, used) = match step {
                Step::Run(time) => (time + late, (time + late).mul_f64(appetite)),
                Step::Pause(time) => (time + late, Duration::ZERO),
            };
            now += elapsed;
            all += used;
            step = cap.look(elapsed, used);
        }
        all.as_secs_f64() / now.as_secs_f64() * 100.0
    }

    #[test]
    fn a_cap_holds_over_ten_seconds_within_two_points() {
        for percent in [1, 5, 25, 50, 90, 150, 250] {
            for appetite in [1.0, 2.0, 4.0] {
                for late in [0, 1, 7] {
                    let share = share(percent, appetite, MS * late, Duration::from_secs(10));
                    let expected = f64::from(percent).min(appetite * 100.0);
                    let what = format!("{percent} % of {appetite}, {late} ms late: {share}");
                    assert!(share < expected + 2.0, "{what}");
                    // A pause that is over late is time that nobody gets.
                    assert!(late > 0 || share > expected - 2.0, "{what}");
                }
            }
        }
    }

    #[test]
    fn an_idle_vm_is_looked_at_ever_less() {
        let mut cap = Cap::new(25);
        let looks = (0..).scan(MS, |elapsed, _| match cap.look(*elapsed, Duration::ZERO) {
            Step::Run(time) => {
                *elapsed = time;
                Some(time)
            }
            Step::Pause(_) => None,
        });
        assert!(looks.take(20).skip(10).all(|time| time == LONGEST));
    }

    #[test]
    fn what_was_used_unseen_is_paid_for() {
        let mut cap = Cap::new(25);
        let Step::Pause(time) = cap.look(MS * 100, MS * 100) else { panic!("it used 100 % of a long time") };
        assert!(time >= MS * 300, "{time:?}");
        assert_eq!(cap.look(time, Duration::ZERO), Step::Run(MS * 10), "7.5 ms at 75 % beyond its rate");
    }

    struct Vm {
        figures: Figures,
        /// What the others know.
        published: Figures,
        step: Step,
        left: Duration,
        rivals: Vec<Rivalry>,
        busy: bool,
    }

    /// Processor time of VMs with these weights that are busy in turn with the host's processors, millisecond by
    /// millisecond.
    fn compete(
        weights: &[u32],
        processors: usize,
        whole: u64,
        busy: impl Fn(usize, u64) -> bool,
    ) -> Vec<u64> {
        let figures = |weight: &u32| Figures { weight: *weight, ..Figures::default() };
        let mut vms: Vec<Vm> = weights
            .iter()
            .map(|weight| Vm {
                figures: figures(weight),
                published: figures(weight),
                step: Step::Run(RIVALRY_LOOK),
                left: RIVALRY_LOOK,
                rivals: weights.iter().map(|other| Rivalry::new(figures(other))).collect(),
                busy: true,
            })
            .collect();
        let mut seen = vec![0; vms.len()];
        for ms in 0..whole {
            vms.iter_mut().enumerate().for_each(|(i, vm)| vm.busy = busy(i, ms));
            let ready: Vec<_> = (0..vms.len())
                .map(|i| (i + ms as usize) % vms.len()) // a fair scheduler's turns
                .filter(|i| vms[*i].busy && matches!(vms[*i].step, Step::Run(_)))
                .collect();
            for (turn, i) in ready.into_iter().enumerate() {
                let figures = &mut vms[i].figures;
                if turn < processors { figures.used += 1_000_000 } else { figures.delayed += 1_000_000 }
            }
            for (i, seen) in seen.iter_mut().enumerate() {
                vms[i].left = vms[i].left.saturating_sub(MS);
                if vms[i].left > Duration::ZERO {
                    continue;
                }
                let figures = Figures { at: (ms + 1) * 1_000_000, ..vms[i].figures };
                vms[i].published = figures;
                let held_back = matches!(vms[i].step, Step::Pause(_));
                let used = Duration::from_nanos(figures.used - *seen);
                *seen = figures.used;
                let peers: Vec<_> = vms.iter().map(|vm| vm.published).collect();
                let rivals = vms[i].rivals.iter_mut().zip(peers).enumerate().filter(|(j, _)| *j != i);
                let steps = rivals.map(|(_, (rival, peer))| rival.look(figures, used, peer, held_back));
                let step = steps.reduce(Step::and).expect("there are others");
                let (Step::Run(time) | Step::Pause(time)) = step;
                (vms[i].step, vms[i].left) = (step, time);
            }
        }
        vms.iter().map(|vm| vm.figures.used / 1_000_000).collect()
    }

    fn percentages(used: &[u64]) -> Vec<u64> {
        let all: u64 = used.iter().sum();
        used.iter().map(|used| (used * 100 + all / 2) / all).collect()
    }

    #[test]
    fn busy_vms_on_one_processor_get_what_their_weights_say() {
        for (weights, expected) in
            [(&[100, 300][..], &[25, 75][..]), (&[100, 100], &[50, 50]), (&[100, 100, 200], &[25, 25, 50])]
        {
            let used = compete(weights, 1, 10_000, |_, _| true);
            let shares = percentages(&used);
            assert!(shares.iter().zip(expected).all(|(a, b)| a.abs_diff(*b) <= 4), "{weights:?}: {shares:?}");
            assert!(used.iter().sum::<u64>() > 9_800, "the processor is not left idle: {used:?}");
        }
    }

    #[test]
    fn nobody_waits_where_there_is_a_processor_for_each() {
        assert_eq!(compete(&[100, 300], 2, 10_000, |_, _| true), [10_000, 10_000]);
    }

    #[test]
    fn what_one_does_not_want_the_other_gets() {
        let used = compete(&[100, 300], 1, 10_000, |vm, _| vm == 0);
        assert_eq!(used, [10_000, 0]);
        // The heavy one works for a second, and rests for one.
        let used = compete(&[100, 300], 1, 10_000, |vm, ms| vm == 0 || ms / 1000 % 2 == 0);
        assert!((5_900..6_400).contains(&used[0]), "{used:?}");
        assert!(used.iter().sum::<u64>() > 9_500, "{used:?}");
    }
}

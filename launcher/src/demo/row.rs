//! One thing that was measured of a pair, in both ways, and what the difference is worth.

use crate::bench::figure::Figure;
use crate::demo::pairs::{Better, Measure, Pair};
use serde::Serialize;

/// The part by which two medians must differ to be called different, however steady they are.
const LEAST: f64 = 0.05;

/// One measured row.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub pair: &'static str,
    pub about: &'static str,
    pub gap: &'static str,
    pub measured: &'static str,
    pub better: Better,
    /// The way in which the guest keeps what it knows to itself.
    pub alone: Figure,
    /// That in which it tells the host, or asks it; compared with the other.
    pub told: Figure,
    /// How many times better that is, by the medians. None if nothing is left to divide by.
    pub times_better: Option<f64>,
    pub verdict: Verdict,
}

/// What the difference is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    Gain,
    /// It is lost in the noise: the middle halves of both sides' samples overlap, or the medians are next to each other.
    NoGain,
    Loss,
}

impl Row {
    pub(super) fn new(pair: &Pair, measure: &Measure, [alone, told]: [Vec<f64>; 2]) -> Self {
        let apart = are_apart(middle_half(&alone), middle_half(&told));
        let figure = |way: usize, samples| Figure::new(pair.ways[way], measure.unit, pair.phase, samples);
        let alone = figure(0, alone);
        let told = figure(1, told).against(&alone);
        let (good, bad) = match measure.better {
            Better::Less => (alone.median, told.median),
            Better::More => (told.median, alone.median),
        };
        let verdict = if !apart || (good - bad).abs() <= LEAST * good.max(bad) {
            Verdict::NoGain
        } else if good > bad {
            Verdict::Gain
        } else {
            Verdict::Loss
        };
        Self {
            pair: pair.name,
            about: pair.about,
            gap: pair.gap,
            measured: measure.name,
            better: measure.better,
            alone,
            told,
            times_better: (bad > 0.0).then(|| good / bad),
            verdict,
        }
    }

    /// The verdict in words.
    pub(super) fn verdict(&self) -> String {
        let [better, worse] = match self.better {
            Better::Less => ["less", "more"],
            Better::More => ["more", "less"],
        };
        match (self.verdict, self.times_better) {
            (Verdict::NoGain, _) => "no gain here".into(),
            (Verdict::Gain, Some(times)) => format!("{} times {better}", rounded(times)),
            (Verdict::Loss, Some(times)) if times > 0.0 => {
                format!("a loss: {} times {worse}", rounded(1.0 / times))
            }
            (Verdict::Gain, None) => "down to nothing".into(),
            (Verdict::Loss, _) => "a loss".into(),
        }
    }
}

fn rounded(times: f64) -> String {
    if times < 10.0 { format!("{times:.1}") } else { format!("{times:.0}") }
}

/// Between which values the middle half of the samples is.
fn middle_half(samples: &[f64]) -> [f64; 2] {
    let mut samples = samples.to_vec();
    samples.sort_by(f64::total_cmp);
    [samples[samples.len() / 4], samples[samples.len() * 3 / 4]]
}

fn are_apart(one: [f64; 2], other: [f64; 2]) -> bool {
    one[1] < other[0] || other[1] < one[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::pairs::PAIRS;

    fn row(better: Better, alone: &[f64], told: &[f64]) -> Row {
        let measure = Measure { name: "measured", unit: "ns", better };
        Row::new(&PAIRS[0], &measure, [alone.to_vec(), told.to_vec()])
    }

    #[test]
    fn a_gain_is_told_with_how_large_it_is() {
        let less = row(Better::Less, &[100.0, 90.0, 110.0], &[10.0, 9.0, 11.0]);
        assert_eq!((less.verdict, less.times_better), (Verdict::Gain, Some(10.0)));
        assert_eq!(less.verdict(), "10 times less");
        assert_eq!(row(Better::More, &[2.0], &[3.0]).verdict(), "1.5 times more");
        let all = row(Better::Less, &[16.0], &[0.0]);
        assert_eq!((all.times_better, all.verdict()), (None, "down to nothing".into()));
    }

    #[test]
    fn what_is_worse_is_told_as_well() {
        let less = row(Better::Less, &[10.0], &[20.0]);
        assert_eq!((less.verdict, less.verdict()), (Verdict::Loss, "a loss: 2.0 times more".into()));
        assert_eq!(row(Better::More, &[10.0], &[5.0]).verdict(), "a loss: 2.0 times less");
        assert_eq!(row(Better::Less, &[0.0], &[5.0]).verdict(), "a loss");
        assert_eq!(row(Better::More, &[5.0], &[0.0]).verdict(), "a loss");
    }

    #[test]
    fn a_difference_within_the_noise_is_none() {
        let overlapping = row(Better::Less, &[100.0, 150.0, 200.0, 250.0], &[50.0, 90.0, 160.0, 170.0]);
        assert_eq!(overlapping.verdict(), "no gain here");
        assert_eq!(row(Better::Less, &[100.0], &[96.0]).verdict(), "no gain here");
        assert_eq!(row(Better::Less, &[0.0], &[0.0]).verdict(), "no gain here");
        let outlier =
            row(Better::Less, &[100.0, 101.0, 102.0, 103.0, 104.0], &[9.0, 10.0, 11.0, 12.0, 500.0]);
        assert_eq!(outlier.verdict, Verdict::Gain, "what is far out does not count");
    }
}

//! One measured row: what its samples come to, what it is compared with, and whether it is as it should be.

use crate::bench::Phase;
use serde::{Deserialize, Serialize};

/// The part of the median by which the middle half of the samples may be apart, before the row is called noisy.
const NOISE: f64 = 0.25;

/// One measured row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub name: String,
    /// On what it was measured, in a comparison of several: `host`, or one that would be used in place of hv. Rows of one name
    /// are the same work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    pub unit: String,
    pub phase: Phase,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub samples: usize,
    /// Whether the samples are so far apart that the median says little.
    pub noisy: bool,
    /// The row of the same phase that it is compared with.
    pub compared_with: Option<String>,
    /// Its median over that row's.
    pub ratio: Option<f64>,
    pub aim: Option<Aim>,
    /// Whether the aim is met, if there is one.
    pub met: Option<bool>,
}

/// The most that a row should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Aim {
    /// Its median, over that of the row that it is compared with.
    Ratio(f64),
    /// Its median.
    Median(f64),
}

impl Figure {
    /// A row from its samples.
    ///
    /// # Panics
    ///
    /// Panics without samples, or with one that is no number: a benchmark that measured nothing is a defect of the benchmark.
    pub(crate) fn new(name: &str, unit: &str, phase: Phase, mut samples: Vec<f64>) -> Self {
        assert!(!samples.is_empty(), "{name} measured nothing");
        assert!(samples.iter().all(|sample| sample.is_finite()), "{name} measured {samples:?}");
        samples.sort_by(f64::total_cmp);
        let median = samples[samples.len() / 2];
        let middle_half = samples[samples.len() * 3 / 4] - samples[samples.len() / 4];
        Self {
            name: name.into(),
            peer: None,
            unit: unit.into(),
            phase,
            median,
            min: samples[0],
            max: samples[samples.len() - 1],
            samples: samples.len(),
            noisy: middle_half > median * NOISE,
            compared_with: None,
            ratio: None,
            aim: None,
            met: None,
        }
    }

    /// Compared with another row. There is no ratio to one that could not be told from nothing.
    pub(crate) fn against(mut self, other: &Self) -> Self {
        self.compared_with = Some(other.name.clone());
        self.ratio = (other.median > 0.0).then(|| self.median / other.median);
        self
    }

    /// Its name, and on what it was measured where that is not said elsewhere.
    pub(crate) fn title(&self) -> String {
        match &self.peer {
            Some(peer) => format!("{}, {peer}", self.name),
            None => self.name.clone(),
        }
    }

    /// The ratio should be at most this.
    pub(crate) fn ratio_at_most(mut self, aim: f64) -> Self {
        self.aim = Some(Aim::Ratio(aim));
        self.met = self.ratio.map(|ratio| ratio <= aim);
        self
    }

    /// The median should be at most this.
    pub(crate) fn at_most(mut self, aim: f64) -> Self {
        self.aim = Some(Aim::Median(aim));
        self.met = Some(self.median <= aim);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(samples: &[f64]) -> Figure {
        Figure::new("row", "ns", Phase::Pinned, samples.to_vec())
    }

    #[test]
    fn a_row_is_its_median_between_the_least_and_the_most() {
        let row = figure(&[5.0, 1.0, 100.0, 3.0, 4.0]);
        assert_eq!((row.median, row.min, row.max, row.samples), (4.0, 1.0, 100.0, 5));
    }

    #[test]
    fn a_row_is_noisy_by_the_middle_half_of_its_samples() {
        assert!(!figure(&[1.0]).noisy);
        assert!(!figure(&[1.0, 100.0, 101.0, 102.0, 9000.0]).noisy, "what is far out does not count");
        assert!(figure(&[70.0, 80.0, 100.0, 120.0, 130.0]).noisy);
    }

    #[test]
    fn an_aim_is_met_or_missed() {
        let host = figure(&[10.0]);
        let compared = figure(&[12.0]).against(&host);
        assert_eq!((compared.ratio, compared.met), (Some(1.2), None));
        assert_eq!(compared.clone().ratio_at_most(1.2).met, Some(true));
        assert_eq!(compared.clone().ratio_at_most(1.1).met, Some(false));
        assert_eq!(compared.clone().at_most(12.0).met, Some(true));
        assert_eq!(compared.at_most(11.0).met, Some(false));
        let nothing = figure(&[12.0]).against(&figure(&[0.0])).ratio_at_most(1.0);
        assert_eq!((nothing.ratio, nothing.met), (None, None));
    }

    #[test]
    #[should_panic(expected = "row measured nothing")]
    fn no_samples_are_a_defect() {
        figure(&[]);
    }
}

//! `hv bench`: what crossings cost here, each figure beside the host's own of the same run.
//!
//! A benchmark runs in child processes of its own, one for each [`Phase`], so that "pinned to one core" holds for
//! everything in it from its first thread on, and so that one phase's threads do not disturb the other's.
//!
//! Start at [`crossing::run`]; [`guest`] measures guests, [`host`] the host, [`process`] whole processes.

mod crossing;
mod guest;
mod host;
mod host_signal;
mod process;

use crate::cli::{BenchOptions, Suite};
use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Runs a benchmark; gives the exit code.
///
/// # Errors
///
/// What could not be measured.
pub(crate) fn run(options: &BenchOptions) -> Result<u8, Failure> {
    match (options.suite, options.phase) {
        (Suite::Crossing, None) => crossing::run(options.json),
        (Suite::Crossing, Some(phase)) => crossing::run_phase(phase),
    }
}

/// On which cores a benchmark runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// All that this process may use: there is one to spin on.
    Spare,
    /// One.
    Pinned,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Spare => "with a spare core",
            Self::Pinned => "pinned to one core",
        })
    }
}

/// One measured row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub name: String,
    pub unit: String,
    pub phase: Phase,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub samples: usize,
    /// The row of the same phase that it is compared with.
    pub compared_with: Option<String>,
    /// Its median over that row's.
    pub ratio: Option<f64>,
    /// The most that the ratio, or without one the median, should be.
    pub aim: Option<f64>,
}

impl Figure {
    /// A row from its samples.
    ///
    /// # Panics
    ///
    /// Panics without samples: a benchmark that measured nothing is a defect of the benchmark.
    pub(crate) fn new(name: &str, unit: &str, phase: Phase, mut samples: Vec<f64>) -> Self {
        assert!(!samples.is_empty(), "{name} measured nothing");
        samples.sort_by(f64::total_cmp);
        Self {
            name: name.into(),
            unit: unit.into(),
            phase,
            median: samples[samples.len() / 2],
            min: samples[0],
            max: samples[samples.len() - 1],
            samples: samples.len(),
            compared_with: None,
            ratio: None,
            aim: None,
        }
    }

    /// Compared with another row.
    pub(crate) fn against(mut self, other: &Self, aim: Option<f64>) -> Self {
        self.compared_with = Some(other.name.clone());
        self.ratio = Some(self.median / other.median);
        self.aim = aim;
        self
    }

    /// Not compared; the median itself should be at most `aim`.
    pub(crate) fn at_most(mut self, aim: f64) -> Self {
        self.aim = Some(aim);
        self
    }

    /// Whether the aim is met, if there is one.
    pub(crate) fn met(&self) -> Option<bool> {
        self.aim.map(|aim| self.ratio.unwrap_or(self.median) <= aim)
    }
}

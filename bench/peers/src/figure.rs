//! A measured row, in the format of `hv bench`, which reads it.

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use serde::Serialize;
use std::fmt;
use std::io;

/// The part of the median by which the middle half of the samples may be apart, before the row is called noisy.
const NOISE: f64 = 0.25;

/// On which cores something is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// All that this process may use.
    Spare,
    /// One.
    Pinned,
}

impl Phase {
    pub(crate) const ALL: [Self; 2] = [Self::Spare, Self::Pinned];

    /// Runs something so, and all processes that it starts.
    ///
    /// # Errors
    ///
    /// The host does not let processes be pinned.
    pub(crate) fn during<T>(self, what: impl FnOnce() -> T) -> io::Result<T> {
        let all = sched_getaffinity(None)?;
        if self == Self::Pinned {
            let mut one = CpuSet::new();
            one.set(sched_getcpu());
            sched_setaffinity(None, &one)?;
        }
        let result = what();
        sched_setaffinity(None, &all)?;
        Ok(result)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Spare => "with a spare core",
            Self::Pinned => "pinned to one core",
        })
    }
}

/// A measured row.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    /// What was measured.
    pub name: String,
    /// On what: rows of one name are the same work.
    pub peer: &'static str,
    pub unit: &'static str,
    pub phase: Phase,
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub samples: usize,
    /// Whether the samples are so far apart that the median says little.
    pub noisy: bool,
    /// The host's row has the same name, and nothing here.
    pub compared_with: Option<String>,
    /// Its median over that row's.
    pub ratio: Option<f64>,
}

impl Figure {
    /// A row from its samples, of which there is at least one.
    pub(crate) fn new(
        name: &str,
        peer: &'static str,
        unit: &'static str,
        phase: Phase,
        mut samples: Vec<f64>,
    ) -> Self {
        samples.sort_by(f64::total_cmp);
        let median = samples[samples.len() / 2];
        let middle_half = samples[samples.len() * 3 / 4] - samples[samples.len() / 4];
        Self {
            name: name.into(),
            peer,
            unit,
            phase,
            median,
            min: samples[0],
            max: samples[samples.len() - 1],
            samples: samples.len(),
            noisy: middle_half > median * NOISE,
            compared_with: None,
            ratio: None,
        }
    }

    /// Compared with the host's. There is no ratio where one of the two could not be told from nothing.
    pub(crate) fn against(&mut self, host: &Self) {
        self.compared_with = Some(host.name.clone());
        self.ratio = (host.median > 0.0 && self.median > 0.0).then(|| self.median / host.median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_compared_with_the_hosts_of_the_same_work() {
        let figure = |peer, samples: &[f64]| Figure::new("fork", peer, "ns", Phase::Spare, samples.to_vec());
        let mut row = figure("hv", &[30.0, 20.0, 400.0]);
        row.against(&figure("host", &[10.0]));
        assert_eq!((row.median, row.min, row.max, row.noisy), (30.0, 20.0, 400.0, true));
        assert_eq!((row.ratio, row.compared_with.as_deref()), (Some(3.0), Some("fork")));
        row.against(&figure("host", &[0.0]));
        assert_eq!(row.ratio, None);
    }

    #[test]
    fn pinned_is_one_core_and_for_as_long_as_it_is_said() {
        let cores = || sched_getaffinity(None).unwrap().count();
        let before = cores();
        assert_eq!(Phase::Pinned.during(cores).unwrap(), 1);
        assert_eq!(Phase::Spare.during(cores).unwrap(), before);
    }
}

//! `hv bench`: what things cost here, each figure beside the host's own of the same run.
//!
//! A suite is measured in two [`Phase`]s ([`phases`]). Its rows are [`Figure`]s, shown by [`table`]. What is common to the suites:
//! [`guest`] measures guests, [`host`], [`host_signal`], [`host_memory`] and [`host_disk`] the host, [`command`] the program `hv` as a whole,
//! [`idle`] VMs that do nothing.
//!
//! Start at a suite: [`crossing`], [`mmu`], [`programs`], [`density`], [`device`].

mod command;
mod crossing;
mod density;
mod device;
pub(crate) mod figure;
pub(crate) mod guest;
mod host;
mod host_disk;
mod host_memory;
mod host_signal;
mod idle;
mod mmu;
mod network;
mod phases;
mod programs;
mod store;
pub(crate) mod table;

use crate::cli::{BenchOptions, Suite};
use crate::exit_code::Cause;
use crate::failure::Failure;
use figure::Figure;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Runs a benchmark; gives the exit code.
///
/// # Errors
///
/// What could not be measured.
pub(crate) fn run(options: &BenchOptions) -> Result<u8, Failure> {
    if options.quick && options.suite == Suite::Crossing {
        return Err(Failure::new(
            Cause::CannotStart,
            "the suite `crossing` has no quick form: leave out `--quick`",
        ));
    }
    match options.phase {
        None => phases::run(options),
        Some(phase) => phases::run_one(options.suite, phase, options.quick),
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

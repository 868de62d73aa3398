//! `hv bench`: what things cost here, each figure beside the host's own of the same run.
//!
//! A [`Suite`] is measured in two [`Phase`]s, each in a process of its own ([`child`]). Its rows are [`Figure`]s, shown by [`table`]. All
//! suites together ([`all`]) become a [`report`].
//! What is common to the suites: [`guest`] measures guests, [`host`], [`host_signal`], [`host_memory`] and [`host_disk`] the host, [`command`]
//! the program `hv` as a whole, [`idle`] VMs that do nothing.
//!
//! Start at a suite: [`crossing`], [`mmu`], [`programs`], [`density`], [`device`]; or at [`all`].

mod all;
mod child;
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
mod options;
mod programs;
mod progress;
mod report;
mod store;
mod suite;
pub(crate) mod table;

use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output;
use child::{Runner, Stop};
use figure::Figure;
pub(crate) use options::BenchOptions;
use options::{Bench, SuiteOptions};
use progress::Bar;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;
use suite::Suite;

/// Runs a benchmark; gives the exit code.
///
/// # Errors
///
/// What could not be measured.
pub(crate) fn run(options: &BenchOptions) -> Result<u8, Failure> {
    match &options.bench {
        Bench::All(options) => all::run(options),
        Bench::Report(options) => all::draw_again(options),
        Bench::Crossing(options) => run_suite(Suite::Crossing, options),
        Bench::Mmu(options) => run_suite(Suite::Mmu, options),
        Bench::Process(options) => run_suite(Suite::Process, options),
        Bench::Device(options) => run_suite(Suite::Device, options),
        Bench::Density(options) => run_suite(Suite::Density, options),
    }
}

/// Runs a suite in all phases that there can be, and prints its table, or JSON.
fn run_suite(suite: Suite, options: &SuiteOptions) -> Result<u8, Failure> {
    /// One suite has all the time that it needs, as long as it goes on.
    const TIME: Duration = Duration::from_secs(3600);
    if options.quick && !suite.has_quick_form() {
        let message = format!("the suite `{}` has no quick form: leave out `--quick`", suite.name());
        return Err(Failure::new(Cause::CannotStart, message));
    }
    guest::use_engine(options.engine);
    if let Some(phase) = options.phase {
        return child::measure_here(suite, phase, options.quick);
    }
    let phases = Phase::possible();
    if !phases.contains(&Phase::Spare) {
        output::tell("only one core may be used here: the figures with a spare core are left out\n");
    }
    let runner = Runner::new()?;
    let expected = suite.expected_seconds(options.quick);
    let mut bar = Bar::new(expected * phases.len() as f64);
    let mut figures = Vec::new();
    for phase in phases {
        bar.part(phase.to_string(), expected);
        match runner.measure((suite, *phase, options.quick), TIME, &mut bar) {
            Ok(measured) => figures.extend(measured),
            Err(Stop::Signal(cause)) => return Ok(cause.code()),
            Err(Stop::Failed(reason)) => {
                return Err(Failure::cannot(format!("the benchmark {phase} failed"), reason));
            }
        }
    }
    drop(bar);
    output::print(&if options.json {
        serde_json::to_string_pretty(&figures).expect("texts and numbers are JSON") + "\n"
    } else {
        table::table(&figures) + table::LEGEND
    })?;
    Ok(0)
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

impl Phase {
    const ALL: [Self; 2] = [Self::Spare, Self::Pinned];

    /// Those that there can be here.
    fn possible() -> &'static [Self] {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if cores > 1 { &Self::ALL } else { &Self::ALL[1..] }
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

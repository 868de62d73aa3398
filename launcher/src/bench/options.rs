//! The command line of `hv bench`.

use crate::bench::{Phase, Suite};
use crate::cli::Engine;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `hv bench`
#[derive(Args, Debug)]
#[command(
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "\
Examples:
  hv bench all --output results     everything, with a report of it, in a quarter of an hour at most
  hv bench crossing                 one suite: a table, in half a minute
  hv bench mmu --quick              a rough one, in a few seconds
  hv bench crossing --json | jq -r '.[] | [.name, .phase, .median, .unit] | @tsv'

Everything is measured twice, with a spare core and pinned to one, each beside the host's own figure of the same run.
Other work on the machine spoils the figures: compare ratios, not times."
)]
pub(crate) struct BenchOptions {
    #[command(subcommand)]
    pub(crate) bench: Bench,
}

/// What `hv bench` can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Every suite, and a report of them: report.json, and report.html with plots
    All(AllOptions),
    /// Draw a report's page again, or print its tables, without measuring
    Report(ReportOptions),
    /// Hypercalls, traps, upcalls, wake-ups, starts, and what an idle VM costs
    Crossing(SuiteOptions),
    /// Page tables: changes of entries, faults, protection, mapping
    Mmu(SuiteOptions),
    /// Programs: system calls, processes, pipes, switches, fresh memory
    Process(SuiteOptions),
    /// Many idle VMs: their start, memory, host CPU, and stop
    Density(SuiteOptions),
    /// Devices: disks and shared folders beside their files, networks, kv beside redis-server
    Device(SuiteOptions),
}

impl BenchOptions {
    /// Whether JSON is to be printed.
    pub(crate) fn json(&self) -> bool {
        match &self.bench {
            Bench::All(options) => options.json,
            Bench::Report(_) => false,
            Bench::Crossing(options) | Bench::Mmu(options) | Bench::Process(options) => options.json,
            Bench::Density(options) | Bench::Device(options) => options.json,
        }
    }
}

/// `hv bench SUITE`
#[derive(Args, Debug)]
pub(crate) struct SuiteOptions {
    /// Print a JSON array
    #[arg(long)]
    pub(crate) json: bool,
    /// Take few samples: rough figures, in a few seconds. Not for `crossing`
    #[arg(long)]
    pub(crate) quick: bool,
    /// Which engine runs the guests
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    pub(crate) engine: Engine,
    /// One phase, in this process, as lines of JSON: how the benchmark runs itself.
    #[arg(long, hide = true)]
    pub(crate) phase: Option<Phase>,
}

/// `hv bench all`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv bench all                          report.json and report.html in this directory
  hv bench all --output results         the same in `results`, which is made if it is not there
  hv bench all --quick --only mmu,process
  hv bench all --add peers.json         with the rows of another report in it
  jq -r '.sections[].figures[] | select(.met == false) | .name' report.json

It ends within 15 minutes: what did not fit is named in the report, as is a suite that failed. Ctrl-C ends it, and keeps
what is measured by then. It exits with 0 if all that was asked for is measured, with 125 if something is not.
Let nothing else run on the machine.")]
pub(crate) struct AllOptions {
    /// Directory for report.json and report.html; those of an earlier run are replaced
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) output: PathBuf,
    /// Print the report as JSON, in place of its tables
    #[arg(long)]
    pub(crate) json: bool,
    /// Take few samples: rough figures, in two or three minutes
    #[arg(long)]
    pub(crate) quick: bool,
    /// Run these suites alone
    #[arg(long, value_name = "SUITE", value_delimiter = ',')]
    pub(crate) only: Vec<Suite>,
    /// Take the rows of another report, too; may be given more than once
    #[arg(long, value_name = "FILE")]
    pub(crate) add: Vec<PathBuf>,
}

/// `hv bench report`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv bench report report.json                    writes report.html beside it
  hv bench report report.json --add peers.json   the same with the rows of another report
  hv bench report report.json --markdown         prints its tables, for a page such as docs/performance.md")]
pub(crate) struct ReportOptions {
    /// A report.json, as `hv bench all` writes it
    pub(crate) report: PathBuf,
    /// The page to write [default: the report's name, with `.html`]
    #[arg(long, value_name = "FILE", conflicts_with = "markdown")]
    pub(crate) output: Option<PathBuf>,
    /// Take the rows of another report, too; may be given more than once
    #[arg(long, value_name = "FILE")]
    pub(crate) add: Vec<PathBuf>,
    /// Print the tables as Markdown, and write no page
    #[arg(long)]
    pub(crate) markdown: bool,
}

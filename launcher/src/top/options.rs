//! What `hv top` can be asked for.

use crate::units;
use clap::{Args, ValueEnum};
use std::time::Duration;

/// `hv top`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv top
  hv top --interval 5s --sort traps
  hv top --batch 3                  three tables, for scripts and mails
  hv top --batch 1 --json | jq '.vms[] | {name, cpu: .rates.cpu_percent}'

Keys: arrows select a VM, Enter shows its vCPUs and devices, p pauses it or lets it run on, c h t s m d n sort, r turns
the order round, q ends. CPU, STEAL and SPIN are in percent of one processor; a figure that is not known is a dash.
docs/observing.md says what each figure is.")]
pub(crate) struct TopOptions {
    /// Time from one look to the next, such as 500ms or 5s
    #[arg(long, short, value_name = "TIME", default_value = "1s", value_parser = units::parse_duration)]
    pub(crate) interval: Duration,
    /// What to sort by
    #[arg(long, short, value_name = "COLUMN", default_value = "cpu")]
    pub(crate) sort: SortBy,
    /// Print so many tables, and end
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) batch: Option<u64>,
    /// Print one line of JSON for each interval, until Ctrl-C or as many as --batch says
    #[arg(long)]
    pub(crate) json: bool,
}

/// What VMs are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SortBy {
    /// Processor time
    Cpu,
    /// Hypercalls
    Hypercalls,
    /// Traps
    Traps,
    /// Time spent waiting for a processor
    Steal,
    /// Memory that the host holds
    Memory,
    /// Requests of devices
    Devices,
    /// Name
    Name,
}

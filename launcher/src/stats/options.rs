//! What `hv stats` can be asked for.

use clap::Args;
use std::net::SocketAddr;

/// `hv stats`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv stats                          all running VMs
  hv stats shell                    one of them
  hv stats shell --json | jq .counters.hypercalls
  hv stats --serve                  at http://127.0.0.1:9464/metrics, for a Prometheus to scrape
  hv stats --prometheus >hv.prom    once, for the textfile collector

Counters are of the whole time since the VM's start, and of what came to its monitor; `hv top` shows rates.
docs/observing.md says what each figure is.")]
pub(crate) struct StatsOptions {
    /// The VM's name, as `hv ps` shows it, or the beginning of it [default: all]
    pub(crate) name: Option<String>,
    /// Print a JSON object, or an array of them for all
    #[arg(long)]
    pub(crate) json: bool,
    /// Print metrics in Prometheus's text format
    #[arg(long, conflicts_with = "json")]
    pub(crate) prometheus: bool,
    /// Serve these metrics over HTTP, of all VMs that run when it is asked, until Ctrl-C
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "127.0.0.1:9464")]
    #[arg(conflicts_with_all = ["name", "json", "prometheus"])]
    pub(crate) serve: Option<SocketAddr>,
}

//! What `hv trace` can be asked for.

use crate::units;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// `hv trace`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv trace shell                    until Ctrl-C, or the end of the VM; then a table, and shell.trace.json
  hv trace shell --for 2s --output boot.json
  hv trace shell --for 1s --summary-only
  hv trace shell --for 1s --summary-only --json | jq '.rows[] | select(.seen_by == \"monitor\")'
  hv run hello --trace hello.json   from the first instruction on

Open the file with https://ui.perfetto.dev (it stays on your machine) or chrome://tracing.
A guest adds marks of its own with guest_sdk::trace!(\"name\") and guest_sdk::trace_span!(\"name\").
docs/observing.md says what is seen and what is not. A VM is traced by one at a time.")]
pub(crate) struct TraceOptions {
    /// The VM's name, as `hv ps` shows it, or the beginning of it
    pub(crate) name: String,
    /// The file to write [default: NAME.trace.json]
    #[arg(long, short, value_name = "FILE", conflicts_with = "summary_only")]
    output: Option<PathBuf>,
    /// How long, such as 500ms, 10s, 2m or 1h [default: until Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) time: Option<Duration>,
    /// Write no file: a table is enough
    #[arg(long)]
    pub(crate) summary_only: bool,
    /// Print the summary as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl TraceOptions {
    /// The file to write, for the VM of this name.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.output.clone().unwrap_or_else(|| format!("{name}.trace.json").into())
    }
}

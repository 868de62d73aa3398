//! What `hv profile` can be asked for.

use super::HIGHEST_FREQUENCY;
use crate::units;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

/// `hv profile`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hv profile shell --for 10s        the hottest functions, and shell.profile.svg, a flame graph
  hv profile shell                  until Ctrl-C, or the end of the VM
  hv profile shell --for 5s --symbols my-program
  hv profile shell --for 5s --json | jq '.functions[0]'

It samples stacks of the guest kernel and of its user programs, by frame pointers: guests are to be built with
-Cforce-frame-pointers=yes, as `hv new` does. A vCPU that sleeps is idle and not disturbed.
Programs are found by themselves in the kernel's image, or by --symbols. docs/observing.md says more.")]
pub(crate) struct ProfileOptions {
    /// The VM's name, as `hv ps` shows it, or the beginning of it
    pub(crate) name: String,
    /// How long, such as 500ms, 10s, 2m or 1h [default: until Ctrl-C]
    #[arg(long = "for", value_name = "TIME", value_parser = units::parse_duration)]
    pub(crate) time: Option<Duration>,
    /// Samples a second of each vCPU, 1 to 5000
    #[arg(long, value_name = "HZ", default_value_t = 99, value_parser = clap::value_parser!(u32).range(1..=HIGHEST_FREQUENCY as i64))]
    pub(crate) frequency: u32,
    /// The flame graph [default: NAME.profile.svg]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also write the stacks, one a line with how often it was found, for other tools
    #[arg(long, value_name = "FILE")]
    pub(crate) folded: Option<PathBuf>,
    /// A user program's ELF file, to name its functions; can be given several times
    #[arg(long, value_name = "FILE")]
    pub(crate) symbols: Vec<PathBuf>,
    /// Where the guest kernel's image is [default: where `hv run` had it]
    #[arg(long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// Tell the vCPUs apart in the flame graph
    #[arg(long)]
    pub(crate) vcpus: bool,
    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

impl ProfileOptions {
    /// The file to write, for the VM of this name.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.output.clone().unwrap_or_else(|| format!("{name}.profile.svg").into())
    }
}

//! Runs one benchmark program, `lat`, on the host, in hv, and in what would be used in its place: User-mode Linux, gVisor,
//! QEMU's emulation. What is not there is left out, and named with the command that would bring it.
//!
//! - [`peer`]: what the program is run on, and how each is started
//! - [`run`]: one run of it, and the processes that belong to that
//! - [`measure`]: what is measured of each, in two phases, with a spare core and pinned to one
//! - [`figure`], [`report`]: the results, in the format of `hv bench`
//! - [`table`]: the results for people
//!
//! Start at [`measure::all`].

mod figure;
mod measure;
mod peer;
mod processes;
mod report;
mod run;
mod stage;
mod table;

use clap::Parser;
use peer::{Found, PeerName};
use report::{Report, Section};
use run::{Interrupt, RunError};
use rustix::process::{getpid, set_child_subreaper};
use stage::Stage;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Runs one benchmark program on the host, in hv, and in what people use today
#[derive(Parser, Debug)]
#[command(
    version,
    after_help = "\
Examples:
  cargo build --release && cargo run --release -p peers
  peers --quick                         few samples, in a minute or two
  peers --only host,hv,gvisor           not the others
  peers --kernel boot/vmlinuz-6.1.0-40-cloud-amd64
  hv bench report report.json --add peers.json

Everything is measured twice, with a spare core and pinned to one. It takes about five minutes. What is not installed is left
out, and named with the command that would bring it; nothing is installed. Ctrl-C ends it, and keeps what is measured by then.
Let nothing else run on the machine: compare ratios, not times. The exit code is 0 if all that is there was measured."
)]
struct Options {
    /// Where the results go
    #[arg(long, value_name = "FILE", default_value = "peers.json")]
    output: PathBuf,
    /// Take few samples: rough figures
    #[arg(long)]
    quick: bool,
    /// Run these alone; the host is always among them
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    only: Vec<PeerName>,
    /// The program `hv` [default: the one beside this program, or on the path]
    #[arg(long, value_name = "FILE")]
    hv: Option<PathBuf>,
    /// The Linux kernel for QEMU [default: the newest /boot/vmlinuz-*-cloud-amd64]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Print the tables as Markdown, for a page such as docs/performance.md
    #[arg(long)]
    markdown: bool,
}

fn main() -> ExitCode {
    match compare(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the comparison, and writes and prints its results.
fn compare(options: &Options) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let begun = Instant::now();
    // What a peer leaves to itself becomes a child of this process: so all of a peer's processes are found, and ended.
    set_child_subreaper(Some(getpid()))?;
    let interrupt = Interrupt::listen()?;
    let stage = Stage::set()?;
    let mut section = Section::default();
    let mut peers = Vec::new();
    for found in peer::find(options, &stage, &interrupt)? {
        match found {
            Found::Peer(peer) => {
                section.notes.push(format!("{}: {}", peer.title, peer.version));
                peers.push(peer);
            }
            Found::Missing(missing) => {
                eprintln!("{missing}");
                section.notes.push(missing.to_string());
            }
        }
    }
    let ended = measure::all(options.quick, &peers, &stage, &interrupt, &mut section);
    let complete = !matches!(ended, Err(RunError::Interrupted));
    let report = Report::new(options, begun.elapsed(), complete, section);
    print!("{}", table::text(&report, &peers, options.markdown));
    std::fs::write(&options.output, report.json())?;
    eprintln!("The results are in {}.", options.output.display());
    ended?;
    Ok(if report.section().errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

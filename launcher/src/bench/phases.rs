//! A suite's two phases, each in a child process of its own, so that "pinned to one core" holds for everything in it from its
//! first thread on, and so that one phase's threads do not disturb the other's.
//!
//! Start at [`run`], which starts the children; [`run_one`] is what they do.

use crate::bench::figure::Figure;
use crate::bench::table::table;
use crate::bench::{Phase, crossing, density, device, mmu, programs};
use crate::cli::{BenchOptions, Suite};
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output;
use clap::ValueEnum;
use std::io::{IsTerminal, Write};
use std::process::{Command, Stdio};

/// Runs a suite in all phases that there can be, and prints its table, or JSON.
///
/// # Errors
///
/// What could not be measured.
pub(super) fn run(options: &BenchOptions) -> Result<u8, Failure> {
    let mut figures = Vec::new();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if cores > 1 {
        figures.extend(in_child(options, Phase::Spare)?);
    } else {
        eprintln!("only one core may be used here: the figures with a spare core are left out");
    }
    figures.extend(in_child(options, Phase::Pinned)?);
    let text = if options.json {
        serde_json::to_string_pretty(&figures).expect("texts and numbers are JSON") + "\n"
    } else {
        table(&figures)
    };
    output::print(&text)?;
    Ok(0)
}

/// Runs one phase in a child, which shows its progress on standard error.
fn in_child(options: &BenchOptions, phase: Phase) -> Result<Vec<Figure>, Failure> {
    let program = std::env::current_exe()
        .map_err(|error| Failure::cannot("this program's path is not known", error))?;
    let mut command = Command::new(program);
    command.arg("bench").arg(name(options.suite)).args(["--phase", &name(phase)]);
    if options.quick {
        command.arg("--quick");
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::cannot(format!("the benchmark {phase} could not be started"), error))?;
    if !output.status.success() {
        let message = format!("the benchmark {phase} failed ({}); what it said is above", output.status);
        return Err(Failure::new(Cause::CannotStart, message));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| {
        Failure::cannot(format!("what the benchmark {phase} measured is not readable"), error)
    })
}

/// How the command line names it.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is left out").get_name().to_owned()
}

/// Measures everything of one phase in this process, and prints it as JSON for the parent.
///
/// # Errors
///
/// What could not be measured.
pub(super) fn run_one(suite: Suite, phase: Phase, quick: bool) -> Result<u8, Failure> {
    if phase == Phase::Pinned {
        let mut one = rustix::thread::CpuSet::new();
        one.set(rustix::thread::sched_getcpu());
        rustix::thread::sched_setaffinity(None, &one)
            .map_err(|error| Failure::cannot("the benchmark could not be pinned to one core", error))?;
    }
    hv_core::prepare().map_err(|error| Failure::cannot("no sandbox can be started", error))?;
    let progress = |steps| Progress { phase, step: 0, steps };
    let figures = match suite {
        Suite::Crossing => crossing::measure(phase, &mut progress(crossing::STEPS)),
        Suite::Mmu => mmu::measure(phase, quick, &mut progress(mmu::STEPS)),
        Suite::Process => programs::measure(phase, quick, &mut progress(programs::steps(quick))),
        Suite::Device => device::measure(phase, quick, &mut progress(device::steps())),
        Suite::Density => density::measure(phase, quick, &mut progress(density::steps(quick))),
    };
    output::print(&serde_json::to_string(&figures).expect("texts and numbers are JSON"))?;
    Ok(0)
}

/// Tells how far the benchmark is, on a terminal.
pub(super) struct Progress {
    phase: Phase,
    step: u32,
    steps: u32,
}

impl Progress {
    pub(super) fn next(&mut self, what: &str) {
        self.step += 1;
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{}: {}/{} {what}", self.phase, self.step, self.steps);
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}

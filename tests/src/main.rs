//! `conformance`: runs the ABI's conformance suite.

use clap::{Parser, ValueEnum};
use conformance::{Hv, Options, Suite, coverage};
use hv_core::EngineKind;
use std::process::ExitCode;

/// Runs the conformance suite of the hv ABI, with fresh VMs for each test.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  cargo run --release -p conformance\n  \
    cargo run --release -p conformance -- --filter EVENT_\n  cargo run --release -p conformance -- --list"
)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Print which test is of which clause, as docs/conformance.md has it, and run none
    #[arg(long)]
    coverage: bool,
    /// Which engine to judge
    #[arg(long, default_value = "process")]
    engine: Engine,
    /// Compare live page tables with what MMU_UPDATE made them; the few tests that bypass it on purpose fail then
    #[arg(long)]
    check_tables: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    /// Deprivileged host processes
    Process,
    /// The processor's virtualisation
    Kvm,
}

impl From<Engine> for EngineKind {
    fn from(engine: Engine) -> Self {
        match engine {
            Engine::Process => Self::Process,
            Engine::Kvm => Self::Kvm,
        }
    }
}

fn main() -> ExitCode {
    match judge(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs what was asked for; tells whether everything passed.
fn judge(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let Arguments { options, coverage, engine, check_tables } = arguments;
    let suite = Suite::conformance()?;
    if *coverage {
        print!("{}", coverage::page(&suite.cases));
        return Ok(true);
    }
    let junit = options.open_junit()?;
    let hypervisor = Hv { engine: (*engine).into(), check_tables: *check_tables };
    Ok(options.run(&suite, &hypervisor, junit, &mut std::io::stdout().lock())?)
}

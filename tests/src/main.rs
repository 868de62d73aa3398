//! `conformance`: runs the ABI's conformance suite.

use clap::{Parser, ValueEnum};
use conformance::{Options, Process, Suite};
use std::process::ExitCode;

/// Runs the conformance suite of the hv ABI, a fresh VM for each test.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  cargo run --release -p conformance\n  \
    cargo run --release -p conformance -- --filter EVENT_\n  cargo run --release -p conformance -- --list"
)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// Which engine to judge
    #[arg(long, default_value = "process")]
    engine: Engine,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    /// Deprivileged host processes
    Process,
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
fn judge(
    Arguments { options, engine: Engine::Process }: &Arguments,
) -> Result<bool, Box<dyn std::error::Error>> {
    let image = sample_guests::find("conformance").ok_or("the suite's image is not built in")?.image;
    let suite = Suite::from_image(image)?;
    let junit = options.open_junit()?;
    Ok(options.run(&suite, &Process, junit, &mut std::io::stdout().lock())?)
}

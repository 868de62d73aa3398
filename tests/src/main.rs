//! `conformance`: runs the ABI's conformance suite.

use clap::{Parser, ValueEnum};
use conformance::{Case, Kind, Process, Suite, coverage, report, run};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Runs the conformance suite of the hv ABI, with fresh VMs for each test.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  cargo run --release -p conformance\n  \
    cargo run --release -p conformance -- --filter EVENT_\n  cargo run --release -p conformance -- --list"
)]
struct Options {
    /// Only tests whose name or clause ids contain this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// List the tests and run none
    #[arg(long)]
    list: bool,
    /// Print which test is of which clause, as docs/conformance.md has it, and run none
    #[arg(long)]
    coverage: bool,
    /// Which engine to judge
    #[arg(long, default_value = "process")]
    engine: Engine,
    /// Print verdicts as a JSON array
    #[arg(long)]
    json: bool,
    /// Also write a JUnit report to this file
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// How many VMs run at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    jobs: usize,
    /// Seconds that one test may take
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    limit: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    /// Deprivileged host processes
    Process,
}

fn main() -> ExitCode {
    match judge(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs what was asked for; tells whether everything passed.
fn judge(options: &Options) -> Result<bool, Box<dyn std::error::Error>> {
    let suite = Suite::conformance()?;
    if options.coverage {
        print!("{}", coverage::page(&suite.cases));
        return Ok(true);
    }
    let wanted = |case: &Case| {
        case.name.contains(&options.filter)
            || case.clauses.iter().any(|clause| clause.contains(&options.filter))
    };
    if options.list {
        for case in suite.cases.iter().filter(|case| wanted(case)) {
            let place = match case.kind {
                Kind::Guest { index } => index.to_string(),
                Kind::Scenario { .. } => "host".into(),
            };
            println!("{place:>4} {} {}", case.clauses.join(" "), case.name);
        }
        return Ok(true);
    }
    let Engine::Process = options.engine;
    let told = |verdict: &conformance::Verdict| {
        if !options.json {
            println!("{}", report::line(verdict));
        }
    };
    let verdicts = run(&suite, &Process, options.jobs, Duration::from_secs(options.limit), wanted, told);
    if verdicts.is_empty() {
        return Err(
            format!("no test has {:?} in its name or clauses; --list shows them", options.filter).into()
        );
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&verdicts)?);
    } else {
        println!("{}", report::summary(&verdicts));
    }
    if let Some(file) = &options.junit {
        std::fs::write(file, report::junit("process", &verdicts))?;
    }
    Ok(verdicts.iter().all(conformance::Verdict::passed))
}

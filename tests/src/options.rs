//! The options of whoever runs a test image, and the running: `conformance` and `hv test` share both.

use crate::{Case, Hypervisor, Kind, Suite, Verdict, report, run};
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Which tests to run, how, and how to tell what came of them.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only tests whose name or clause ids contain this
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub filter: String,
    /// Not these tests, by their whole names
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub except: Vec<String>,
    /// List the tests and run none
    #[arg(long)]
    pub list: bool,
    /// Print verdicts as a JSON array
    #[arg(long)]
    pub json: bool,
    /// Also write a JUnit report to this file
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// How many VMs run at once
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub jobs: usize,
    /// Seconds that one test may take
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub limit: u64,
}

/// Why the tests were not run, or not told.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nothing to run.
    #[error("no test has {0:?} in its name or clauses; --list shows them")]
    NoMatch(String),
    /// Verdicts could not be written.
    #[error("the verdicts could not be written")]
    Output(#[from] io::Error),
}

impl Options {
    /// Makes the file of `--junit`, so that one that cannot be is told before the tests are run and not after.
    ///
    /// # Errors
    ///
    /// What the host says.
    pub fn open_junit(&self) -> io::Result<Option<File>> {
        self.junit.as_ref().map(File::create).transpose()
    }

    /// Runs the tests that are wanted and tells verdicts to `out` as they come, and at the end to `junit`; gives
    /// whether all passed.
    ///
    /// # Errors
    ///
    /// [`RunError`] says what kept it from that.
    pub fn run(
        &self,
        suite: &Suite,
        hypervisor: &dyn Hypervisor,
        junit: Option<File>,
        out: &mut dyn Write,
    ) -> Result<bool, RunError> {
        let wanted = |case: &Case| {
            let named = case.name.contains(&self.filter)
                || case.clauses.iter().any(|clause| clause.contains(&self.filter));
            named && !self.except.contains(&case.name)
        };
        if !suite.cases.iter().any(wanted) {
            return Err(RunError::NoMatch(self.filter.clone()));
        }
        if self.list {
            for Case { kind, name, clauses } in suite.cases.iter().filter(|case| wanted(case)) {
                let place = match kind {
                    Kind::Guest { index } => index.to_string(),
                    Kind::Scenario { .. } => "host".into(),
                };
                writeln!(out, "{place:>4} {}", [clauses.join(" "), name.clone()].join(" ").trim())?;
            }
            return Ok(true);
        }
        let mut written = Ok(());
        let told = |verdict: &Verdict| {
            if !self.json && written.is_ok() {
                written = writeln!(out, "{}", report::line(verdict).trim_start());
            }
        };
        let verdicts = run(suite, hypervisor, self.jobs, Duration::from_secs(self.limit), wanted, told);
        written?;
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&verdicts).map_err(io::Error::from)?)?;
        } else {
            writeln!(out, "{}", report::summary(&verdicts))?;
        }
        if let Some(mut file) = junit {
            file.write_all(report::junit(hypervisor.name(), &verdicts).as_bytes())?;
        }
        Ok(verdicts.iter().all(Verdict::passed))
    }
}

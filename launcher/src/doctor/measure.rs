//! What a start and a hypercall cost here, by doing them.

use crate::failure::chain;
use hv_core::{Config, End, Image, Vm};
use serde::Serialize;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Starts that are measured after the first.
const RUNS: usize = 11;
/// Longest that one guest may take; they take milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nanoseconds; medians where there are several.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    /// From start to end of `hello`, the first time.
    pub(super) first_run_ns: u64,
    /// What `Vm::start` takes after that.
    pub(super) start_ns: u64,
    /// From start to end after that.
    pub(super) run_ns: u64,
    /// A hypercall that does nothing; `None` if it could not be measured.
    pub(super) hypercall_ns: Option<u64>,
}

/// Measures everything. An error says why no guest runs here.
pub(super) fn all() -> Result<Measured, String> {
    let first = guest("hello", &[])?;
    let mut runs = (0..RUNS).map(|_| guest("hello", &[])).collect::<Result<Vec<_>, _>>()?;
    runs.sort_by_key(|run| run.whole);
    let run = runs[RUNS / 2].whole;
    runs.sort_by_key(|run| run.start);
    let start = runs[RUNS / 2].start;
    let ns = |duration: Duration| duration.as_nanos() as u64;
    Ok(Measured {
        first_run_ns: ns(first.whole),
        start_ns: ns(start),
        run_ns: ns(run),
        hypercall_ns: hypercall(),
    })
}

/// The guest `bench null` prints what a hypercall took, in picoseconds, batch by batch.
fn hypercall() -> Option<u64> {
    let run = guest("bench", &["null", "5"]).ok()?;
    let mut batches = run.output.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
    batches.sort_unstable();
    Some(batches.get(batches.len() / 2)? / 1000)
}

/// What one guest took and said.
struct Run {
    start: Duration,
    whole: Duration,
    output: String,
}

/// Runs a built-in guest to its end, which must be a shutdown with code 0.
fn guest(name: &str, arguments: &[&str]) -> Result<Run, String> {
    let sample = sample_guests::find(name).ok_or_else(|| format!("the guest `{name}` is not built in"))?;
    let image = Image::parse(sample.image).map_err(|error| error.to_string())?;
    let console = Capture::default();
    let config = Config {
        command_line: arguments.iter().map(ToString::to_string).collect(),
        console: Box::new(console.clone()),
        ..Config::new(image)
    };
    let begin = Instant::now();
    let vm = Vm::start(config).map_err(|error| chain(&error).join(": "))?;
    let start = begin.elapsed();
    let report = vm.wait_timeout(PATIENCE).unwrap_or_else(Vm::stop);
    let whole = begin.elapsed();
    match report.end {
        End::Shutdown { code: 0 } => Ok(Run { start, whole, output: console.text() }),
        end => Err(format!("`{name}` did not end as it should: {end}")),
    }
}

/// A console that keeps what is written.
#[derive(Clone, Default)]
struct Capture(Arc<Mutex<Vec<u8>>>);

impl Capture {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no writer panics")).into_owned()
    }
}

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panics").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

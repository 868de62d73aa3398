//! `hv profile`: where a guest spends its time, as a flame graph and as a table.
//!
//! The monitor, which is locked down, only asks and passes samples on ([`stream`]), as addresses. This command names them
//! ([`programs`]), counts ([`tally`]) and draws.
//!
//! Start at [`watch`].

mod options;
mod programs;
mod tally;

pub(crate) use options::ProfileOptions;

use crate::control::{HEARTBEAT, Job, Lines, Next, Wanted, connect};
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output::{self, Style};
use crate::signals::Signals;
use hv_core::profile::{Asked, Profiler, Sample};
use inferno::flamegraph;
use programs::Programs;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tally::Tally;

/// Samples a second of each vCPU, at the most: beyond that, the guest would do little else.
pub(crate) const HIGHEST_FREQUENCY: u32 = 5000;

/// A line of the stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Line {
    /// The first. The image is a path, or the name of a built-in one.
    Begin {
        image: PathBuf,
    },
    Sample(Sample),
    /// Every second, and at the end: how often vCPUs were asked so far, and what they did.
    Asked(Asked),
    /// The last.
    End,
}

/// Asks vCPUs where they are, and tells it over a stream.
pub(crate) fn stream(profiler: Profiler, frequency: u32, image: PathBuf) -> Job {
    Box::new(move |stream| {
        stream.line(&Line::Begin { image })?;
        let period = Duration::from_secs(1) / frequency;
        let (mut tick, mut said) = (Instant::now(), Instant::now());
        let mut all = Asked::default();
        loop {
            tick = (tick + period).max(Instant::now()); // ticks that were missed are not made up for
            let next = stream.wait(tick.saturating_duration_since(Instant::now()));
            profiler.samples().try_for_each(|sample| stream.line(&Line::Sample(sample)))?;
            let asked = if next == Next::Finish { None } else { profiler.ask() };
            let Some(asked) = asked else {
                stream.line(&Line::Asked(all))?;
                return stream.line(&Line::End);
            };
            all.running += asked.running;
            all.idle += asked.idle;
            all.late += asked.late;
            if said.elapsed() >= HEARTBEAT / 2 {
                stream.line(&Line::Asked(all))?;
                said = Instant::now();
            }
        }
    })
}

/// `hv profile`; gives the exit code.
///
/// # Errors
///
/// There is no such VM, it is profiled already, or a file cannot be read or written.
pub(crate) fn watch(options: &ProfileOptions) -> Result<u8, Failure> {
    let connection = connect(&options.name)?;
    let name = connection.name.to_string();
    let mut programs = Programs::of_files(&options.symbols)?;
    let cannot_watch = |error| Failure::cannot("the host does not let hv wait for signals", error);
    let signals = Signals::catch().map_err(cannot_watch)?;
    let mut lines = connection.stream(Wanted::Profile { frequency: options.frequency })?;
    let enough = lines.enough().map_err(cannot_watch)?;
    let deadline = options.time.and_then(|time| Instant::now().checked_add(time));
    let until_then = move || {
        signals.wait(deadline);
        enough.tell();
        std::process::exit(signals.wait(None).code().into()) // a second time: at once
    };
    std::thread::Builder::new().name("hv-watch".into()).spawn(until_then).map_err(cannot_watch)?;
    let Collected { image, samples, asked, missing } = collect(&mut lines);
    programs.add_kernel(options.image.as_deref().or(image.as_deref()));
    let tally = Tally::new(samples, asked, options.frequency, options.vcpus, &programs);
    let path = options.file(&name);
    let drawn = draw(&tally, &name, &path)?;
    if let Some(path) = &options.folded {
        fs::write(path, tally.folded().join("")).map_err(|error| cannot_write(path, error))?;
    }
    output::print(&if options.json { tally.json() } else { tally.table(&Style::stdout()) })?;
    if drawn {
        output::tell(&format!("{} has the flame graph; a browser shows it\n", path.display()));
    }
    match missing {
        None => Ok(0),
        Some(error) => {
            Err(Failure::new(Cause::Died, format!("the end of the profile of `{name}` is missing: {error}"))
                .advise("what had come until then was kept"))
        }
    }
}

/// What came over the stream.
#[derive(Default)]
struct Collected {
    image: Option<PathBuf>,
    samples: Vec<Sample>,
    asked: Asked,
    /// Why the last line is missing, if it is.
    missing: Option<String>,
}

fn collect(lines: &mut Lines) -> Collected {
    let mut collected = Collected::default();
    loop {
        match lines.next() {
            Ok(Some(Line::Begin { image })) => collected.image = Some(image),
            Ok(Some(Line::Sample(sample))) => collected.samples.push(sample),
            Ok(Some(Line::Asked(asked))) => collected.asked = asked,
            Ok(Some(Line::End)) => return collected,
            Ok(None) => return Collected { missing: Some("it ended without a word".into()), ..collected },
            Err(error) => return Collected { missing: Some(error.to_string()), ..collected },
        }
    }
}

/// Writes the flame graph, if there is anything to show.
fn draw(tally: &Tally, name: &str, path: &Path) -> Result<bool, Failure> {
    let folded = tally.folded();
    if folded.is_empty() {
        return Ok(false);
    }
    let mut options = flamegraph::Options::default();
    options.title = format!("{name}: {}", tally.headline());
    options.count_name = "samples".into();
    options.hash = true;
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, folded.iter().map(|line| line.trim_end()), &mut svg)
        .and_then(|()| fs::write(path, svg))
        .map_err(|error| cannot_write(path, error))?;
    Ok(true)
}

fn cannot_write(path: &Path, error: io::Error) -> Failure {
    Failure::cannot(format!("{} could not be written", path.display()), error)
}

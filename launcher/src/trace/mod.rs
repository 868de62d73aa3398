//! `hv trace`, and `hv run --trace`: every crossing of a VM with its duration, as a file for a trace viewer and as a table.
//!
//! The monitor, which is locked down, only passes events on ([`stream`]); what becomes of them is this command's. So the
//! same [`Collector`] takes them, whether they come over the control socket ([`watch`]) or from the VM in this process ([`Recorder`]).
//!
//! `chrome` writes the file, `summary` counts.

mod chrome;
mod options;
mod recorder;
mod summary;

pub(crate) use options::TraceOptions;
pub(crate) use recorder::{Recorder, open};

use crate::control::{Job, Lines, Next, Wanted, connect};
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output::{self, Style};
use crate::signals::Signals;
use chrome::ChromeFile;
use hv_core::trace::{Batch, Head, Session};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::time::{Duration, Instant};
use summary::Summary;

/// How often what was recorded is taken. A vCPU that crosses all the time fills its ring in about so long.
const OFTEN: Duration = Duration::from_millis(5);

/// Rounds over all vCPUs before somebody who wants no more is listened to again.
const ROUNDS: usize = 16;

/// A line of the stream.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Line {
    /// The first.
    Begin(Head),
    Events(Batch),
    /// Nothing has happened for a while.
    Nothing,
    /// The last: whoever does not get it has not got all.
    End,
}

/// Tells what happens, over a stream.
pub(crate) fn stream(mut session: Session) -> Job {
    Box::new(move |stream| {
        stream.line(&Line::Begin(session.head()))?;
        let mut said = Instant::now();
        loop {
            let next = stream.wait(OFTEN);
            for _ in 0..ROUNDS {
                let batches = session.take();
                if batches.is_empty() {
                    break;
                }
                batches.into_iter().try_for_each(|batch| stream.line(&Line::Events(batch)))?;
                said = Instant::now();
            }
            if next == Next::Finish {
                break;
            }
            if said.elapsed() >= crate::control::HEARTBEAT {
                stream.line(&Line::Nothing)?;
                said = Instant::now();
            }
        }
        session.stop();
        rest(&mut session, |batch| stream.line(&Line::Events(batch)))?;
        stream.line(&Line::End)
    })
}

/// What there is yet of a session that has stopped.
fn rest(session: &mut Session, mut tell: impl FnMut(Batch) -> io::Result<()>) -> io::Result<()> {
    loop {
        let batches = session.take();
        if batches.is_empty() {
            return Ok(());
        }
        batches.into_iter().try_for_each(&mut tell)?;
    }
}

/// What becomes of events.
struct Collector {
    head: Head,
    file: Option<ChromeFile<BufWriter<File>>>,
    summary: Summary,
}

impl Collector {
    fn new(head: Head, name: &str, file: Option<File>) -> io::Result<Self> {
        let file = file.map(|file| ChromeFile::begin(BufWriter::new(file), name, &head)).transpose()?;
        Ok(Self { head, file, summary: Summary::new(head.ticks_per_second) })
    }

    fn take(&mut self, batch: &Batch) -> io::Result<()> {
        self.summary.add(batch);
        self.file.as_mut().map_or(Ok(()), |file| file.add(batch))
    }

    /// The file is whole afterwards. `complete`: nothing is missing at its end.
    fn end(self, complete: bool) -> io::Result<Summary> {
        let told = self.head.guest_tells;
        if let Some(file) = self.file {
            file.end(self.summary.dropped(), complete)?;
        }
        Ok(self.summary.finish(told, complete))
    }
}

/// `hv trace`; gives the exit code.
///
/// # Errors
///
/// There is no such VM, it is traced already, or the file cannot be written.
pub(crate) fn watch(options: &TraceOptions) -> Result<u8, Failure> {
    let connection = connect(&options.name)?;
    let name = connection.name.to_string();
    let path = (!options.summary_only).then(|| options.file(&name));
    let cannot_watch = |error| Failure::cannot("the host does not let hv wait for signals", error);
    let signals = Signals::catch().map_err(cannot_watch)?;
    let mut lines = connection.stream(Wanted::Trace)?;
    let file = path.as_deref().map(create).transpose()?;
    let enough = lines.enough().map_err(cannot_watch)?;
    let deadline = options.time.and_then(|time| Instant::now().checked_add(time));
    let until_then = move || {
        signals.wait(deadline);
        enough.tell();
        std::process::exit(signals.wait(None).code().into()) // a second time: at once
    };
    std::thread::Builder::new().name("hv-watch".into()).spawn(until_then).map_err(cannot_watch)?;
    let written = |error| cannot_write(path.as_deref(), error);
    let (summary, missing) = collect(&mut lines, &name, file).map_err(written)?;
    let told = if options.json { summary.json() } else { summary.table(&Style::stdout()) };
    output::print(&told)?;
    if let Some(path) = &path {
        output::tell(&format!(
            "{} has the trace; open it with https://ui.perfetto.dev or chrome://tracing\n",
            path.display()
        ));
    }
    match missing {
        None => Ok(0),
        Some(error) => {
            Err(Failure::new(Cause::Died, format!("the end of the trace of `{name}` is missing: {error}"))
                .advise("what had come until then was kept"))
        }
    }
}

/// Takes lines until there are no more. Gives why the last is missing, if it is.
fn collect(lines: &mut Lines, name: &str, file: Option<File>) -> io::Result<(Summary, Option<String>)> {
    let mut file = Some(file);
    let mut collector: Option<Collector> = None;
    let missing = loop {
        match (lines.next(), &mut collector) {
            (Ok(Some(Line::Begin(head))), None) => {
                collector = Some(Collector::new(head, name, file.take().flatten())?);
            }
            (Ok(Some(Line::Events(batch))), Some(collector)) => collector.take(&batch)?,
            (Ok(Some(Line::Nothing)), Some(_)) => {}
            (Ok(Some(Line::End)), Some(_)) => break None,
            (Ok(Some(_)), _) => break Some("it says something that this hv does not expect there".into()),
            (Ok(None), _) => break Some("it ended without a word".into()),
            (Err(error), _) => break Some(error.to_string()),
        }
    };
    let nothing = Head { vcpus: 0, ticks_per_second: 1, guest_tells: true };
    let collector = collector.map_or_else(|| Collector::new(nothing, name, file.take().flatten()), Ok)?;
    Ok((collector.end(missing.is_none())?, missing))
}

fn create(path: &Path) -> Result<File, Failure> {
    File::create(path)
        .map_err(|error| Failure::cannot(format!("{} cannot be written", path.display()), error))
}

fn cannot_write(path: Option<&Path>, error: io::Error) -> Failure {
    let file = path.map_or("the trace".into(), |path| path.display().to_string());
    Failure::cannot(format!("{file} could not be written to the end"), error)
}

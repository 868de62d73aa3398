//! `hv run --trace`: the trace of a VM of this very process, from its first instruction on. The file is opened before the
//! monitor is locked down.

use super::summary::Summary;
use super::{Collector, OFTEN, cannot_write, create, rest};
use crate::failure::Failure;
use crate::output::{self, Style};
use hv_core::trace::Session;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;

/// A file that is to hold a trace.
pub(crate) struct Opened {
    path: PathBuf,
    file: File,
}

/// Opens it.
///
/// # Errors
///
/// It cannot be made.
pub(crate) fn open(path: &Path) -> Result<Opened, Failure> {
    Ok(Opened { path: path.into(), file: create(path)? })
}

impl Opened {
    /// Writes down what is recorded, on a thread of its own.
    ///
    /// # Errors
    ///
    /// The host has no thread left.
    pub(crate) fn record(self, session: Session, vm: &str) -> Result<Recorder, Failure> {
        let Self { path, file } = self;
        let (end, ended) = channel();
        let goes_on = move || ended.recv_timeout(OFTEN) == Err(RecvTimeoutError::Timeout);
        let name = vm.to_owned();
        let record = move || record(session, &name, file, goes_on);
        let thread = std::thread::Builder::new().name("hv-trace".into()).spawn(record);
        let thread =
            thread.map_err(|error| Failure::cannot("the host does not let hv write a trace", error))?;
        Ok(Recorder { path, end, thread })
    }
}

/// A thread that takes what is recorded, and writes it down.
pub(crate) struct Recorder {
    path: PathBuf,
    /// Closed when the VM has ended.
    end: Sender<()>,
    thread: JoinHandle<io::Result<Summary>>,
}

impl Recorder {
    /// The VM has ended: writes the rest, and tells what there was.
    ///
    /// # Errors
    ///
    /// The file could not be written.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        drop(self.end);
        let recorded = self.thread.join().expect("it does not panic");
        let summary = recorded.map_err(|error| cannot_write(Some(&self.path), error))?;
        output::tell(&format!("{}{} has the trace\n", summary.table(&Style::stderr()), self.path.display()));
        Ok(())
    }
}

/// Writes down what is recorded, as long as `goes_on` says, which waits.
fn record(mut session: Session, name: &str, file: File, goes_on: impl Fn() -> bool) -> io::Result<Summary> {
    let mut collector = Collector::new(session.head(), name, Some(file))?;
    while goes_on() {
        session.take().iter().try_for_each(|batch| collector.take(batch))?;
    }
    session.stop();
    rest(&mut session, |batch| collector.take(&batch))?;
    collector.end(true)
}

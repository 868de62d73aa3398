//! A phase of a suite, in a child process of its own: so that "pinned to one core" holds for everything in it from its first
//! thread on, that one phase's threads do not disturb the other's, and that what it leaves behind can be cleared away.
//!
//! The child says on its standard output what it does and what it measured, a [`Message`] a line ([`measure_here`]). The parent
//! ([`Runner::measure`]) waits for that, for a signal that ends everything, and for the time that the child may take. Whatever
//! happens, the child's processes end, and its files, which are all in one directory, go.

use crate::bench::figure::Figure;
use crate::bench::progress::Bar;
use crate::bench::{Phase, Suite};
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output;
use crate::signals::Signals;
use clap::ValueEnum;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process_group, set_parent_process_death_signal, waitid,
};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// What a child says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Message {
    /// A step begins, one of so many.
    Step { step: u32, steps: u32, what: String },
    /// All that was measured. It is the last.
    Figures(Vec<Figure>),
}

impl Message {
    /// Says it. A parent that is gone does not hear it, and then this process is about to end.
    pub(super) fn tell(&self) {
        let line = serde_json::to_string(self).expect("texts and numbers are JSON") + "\n";
        let _ = output::print(&line);
    }
}

/// Measures everything of one phase in this process, for the parent.
///
/// # Errors
///
/// The host does not let it.
pub(super) fn measure_here(suite: Suite, phase: Phase, quick: bool) -> Result<u8, Failure> {
    let cannot = |error| Failure::cannot("the benchmark could not be tied to its parent", error);
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(cannot)?;
    if phase == Phase::Pinned {
        let mut one = rustix::thread::CpuSet::new();
        one.set(rustix::thread::sched_getcpu());
        rustix::thread::sched_setaffinity(None, &one)
            .map_err(|error| Failure::cannot("the benchmark could not be pinned to one core", error))?;
    }
    hv_core::prepare().map_err(|error| Failure::cannot("no sandbox can be started", error))?;
    Message::Figures(suite.measure(phase, quick)).tell();
    Ok(0)
}

/// What the parent waits for.
enum Event {
    Said(String),
    /// The child has closed its standard output.
    Silent,
    Signal(Cause),
}

/// Why there are no figures.
#[derive(Debug)]
pub(super) enum Stop {
    /// Something failed, of this phase alone.
    Failed(String),
    /// A signal asks for the end of everything.
    Signal(Cause),
}

/// Runs phases, one after the other.
pub(super) struct Runner {
    events: Receiver<Event>,
    sender: Sender<Event>,
}

impl Runner {
    /// From here on, signals end the phase that runs, and not this process.
    ///
    /// # Errors
    ///
    /// The host has no room for it.
    pub(super) fn new() -> Result<Self, Failure> {
        let cannot = |error| Failure::cannot("the host does not let hv wait for signals", error);
        let signals = Signals::catch().map_err(cannot)?;
        let (sender, events) = channel();
        let told = sender.clone();
        let watch = move || while told.send(Event::Signal(signals.wait(None))).is_ok() {};
        std::thread::Builder::new().name("hv-watch".into()).spawn(watch).map_err(cannot)?;
        Ok(Self { events, sender })
    }

    /// Measures a phase, which has so much time for it.
    ///
    /// # Errors
    ///
    /// See [`Stop`].
    pub(super) fn measure(
        &self,
        (suite, phase, quick): (Suite, Phase, bool),
        time: Duration,
        bar: &mut Bar,
    ) -> Result<Vec<Figure>, Stop> {
        let failed = |error: std::io::Error| Stop::Failed(format!("it could not be started: {error}"));
        let scratch = Scratch::new().map_err(failed)?;
        let mut group = Group::spawn(suite, phase, quick, &scratch.0).map_err(failed)?;
        self.listen_to(&mut group);
        let deadline = Instant::now() + time;
        let (mut figures, mut stop) = (None, None);
        loop {
            // It is silent soon after it was killed; until then there is nothing else to wait for.
            let tick = Duration::from_secs(1).min(deadline.saturating_duration_since(Instant::now()));
            match self.events.recv_timeout(if stop.is_none() { tick } else { Duration::MAX }) {
                Ok(Event::Said(line)) => match serde_json::from_str(&line) {
                    Ok(Message::Step { step, steps, what }) => bar.step(step, steps, &what),
                    Ok(Message::Figures(all)) => figures = Some(all),
                    Err(_) => stop = Some(Stop::Failed(format!("what it said is not readable: `{line}`"))),
                },
                Ok(Event::Signal(_)) if stop.is_some() => break, // somebody is impatient
                Ok(Event::Signal(cause)) => stop = Some(Stop::Signal(cause)),
                Ok(Event::Silent) => break,
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => bar.show(),
                Err(_) => {
                    let s = time.as_secs();
                    stop = Some(Stop::Failed(format!("it was not done after {s} s, and was ended")));
                }
            }
            if stop.is_some() {
                group.kill();
            }
        }
        let status = group.end().map_err(failed)?;
        match (stop, figures) {
            (Some(stop), _) => Err(stop),
            (None, Some(figures)) if status.success() => Ok(figures),
            (None, _) => Err(Stop::Failed(format!("it failed ({status}): {}", scratch.last_words()))),
        }
    }

    /// Has a thread pass on what the child says.
    fn listen_to(&self, group: &mut Group) {
        let stdout = group.leader.stdout.take().expect("it is piped");
        let sender = self.sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(Event::Said(line));
            }
            let _ = sender.send(Event::Silent);
        });
    }
}

/// A directory for all that a child writes; gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("hv-bench-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn errors(directory: &Path) -> PathBuf {
        directory.join("stderr")
    }

    /// What the child said on standard error.
    fn last_words(&self) -> String {
        let text = std::fs::read(Self::errors(&self.0)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let text = text.trim();
        if text.is_empty() { "it did not say why".into() } else { text.into() }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A child, and the processes that it starts.
struct Group {
    leader: Child,
}

impl Group {
    fn spawn(suite: Suite, phase: Phase, quick: bool, scratch: &Path) -> std::io::Result<Self> {
        let phase = phase.to_possible_value().expect("no phase is left out");
        let mut command = Command::new(std::env::current_exe()?);
        let engine = super::guest::engine().to_possible_value().expect("no engine is left out");
        command.args(["bench", suite.name(), "--phase", phase.get_name(), "--engine", engine.get_name()]);
        command.args(quick.then_some("--quick"));
        command.env("TMPDIR", scratch).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(Scratch::errors(scratch))?);
        command.spawn().map(|leader| Self { leader })
    }

    fn id(&self) -> Pid {
        Pid::from_child(&self.leader)
    }

    fn kill(&self) {
        // Until the leader is waited for, the number is no other's.
        let _ = kill_process_group(self.id(), Signal::KILL);
    }

    /// Waits until the leader has ended, and ends what it has left behind.
    fn end(&mut self) -> std::io::Result<ExitStatus> {
        let _ = waitid(WaitId::Pid(self.id()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        self.kill();
        self.leader.wait()
    }
}

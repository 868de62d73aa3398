//! One run of the benchmark program on a peer: its lines as they come, within bounds of time, and nothing left of it after.
//!
//! Start at [`Run::start`].

use crate::peer::Peer;
use crate::processes;
use crate::stage::Stage;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often a wait looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Lines of what a peer said that are shown.
const SHOWN: usize = 5;

/// Why a run did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The user wants it to end.
    #[error("interrupted")]
    Interrupted,
    /// It took too long.
    #[error("it was not done after {} s, and was ended{said}", limit.as_secs())]
    TimedOut { limit: Duration, said: Said },
    /// It ended too early, or without success.
    #[error("{what}{said}")]
    Failed { what: String, said: Said },
    /// It cannot be started.
    #[error("it cannot be started: {0}")]
    Start(#[from] io::Error),
}

/// The end of what a peer said.
#[derive(Debug)]
pub(crate) struct Said(String);

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; it said: {}", self.0) }
    }
}

/// Whether the user has asked for the end, by Ctrl-C or a signal.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on signals do not end this process.
    ///
    /// # Errors
    ///
    /// The host does not let signals be handled.
    pub(crate) fn listen() -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, asked.clone())?;
        }
        Ok(Self(asked))
    }

    fn check(&self) -> Result<(), RunError> {
        if self.0.load(Ordering::Relaxed) { Err(RunError::Interrupted) } else { Ok(()) }
    }
}

/// A run; ended, with all its processes, when dropped.
pub(crate) struct Run<'a> {
    child: Child,
    lines: Receiver<(Instant, String)>,
    begun: Instant,
    /// The last lines that nobody wanted.
    unwanted: Vec<String>,
    stage: &'a Stage,
    interrupt: &'a Interrupt,
}

impl<'a> Run<'a> {
    /// Starts the program with arguments.
    ///
    /// # Errors
    ///
    /// It cannot be, or is not to be any more.
    pub(crate) fn start(
        peer: &Peer,
        arguments: &[&str],
        stage: &'a Stage,
        interrupt: &'a Interrupt,
    ) -> Result<Self, RunError> {
        interrupt.check()?;
        let errors = File::create(stage.errors())?;
        let mut command = peer.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let begun = Instant::now();
        let mut child = command.spawn()?;
        let output = child.stdout.take().expect("it is piped");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if send.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines, begun, unwanted: Vec::new(), stage, interrupt })
    }

    /// Waits for the next line that is as `wanted` says; gives it, and when it came after the start.
    ///
    /// # Errors
    ///
    /// There was none before the program ended, or within `limit` of the start.
    pub(crate) fn line(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(String, Duration), RunError> {
        let wanted = self.next_line(limit, wanted)?;
        wanted.ok_or_else(|| RunError::Failed {
            what: "it ended before it had said anything".into(),
            said: self.said(),
        })
    }

    /// Gives all lines until the program's end that are as `wanted` says.
    ///
    /// # Errors
    ///
    /// It has not ended `limit` after its start, or not well.
    pub(crate) fn lines(
        mut self,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, RunError> {
        let mut lines = Vec::new();
        while let Some((line, _)) = self.next_line(limit, &wanted)? {
            lines.push(line);
        }
        self.end_well(limit)?;
        Ok(lines)
    }

    /// As [`line`](Self::line), but `None` at the end of the output.
    fn next_line(
        &mut self,
        limit: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Option<(String, Duration)>, RunError> {
        loop {
            self.check(limit)?;
            match self.lines.recv_timeout(LOOK) {
                Ok((at, line)) if wanted(&line) => return Ok(Some((line, at - self.begun))),
                Ok((_, line)) => {
                    self.unwanted.push(line);
                    let old = self.unwanted.len().saturating_sub(SHOWN);
                    self.unwanted.drain(..old);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// Waits for the end of the process that was started.
    fn end_well(&mut self, limit: Duration) -> Result<(), RunError> {
        let status = loop {
            self.check(limit)?;
            match self.child.try_wait()? {
                Some(status) => break status,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        if status.success() {
            return Ok(());
        }
        Err(RunError::Failed { what: format!("it failed ({status})"), said: self.said() })
    }

    /// Lets it run for a while.
    ///
    /// # Errors
    ///
    /// It is to end.
    pub(crate) fn rest(&self, duration: Duration) -> Result<(), RunError> {
        let until = Instant::now() + duration;
        while Instant::now() < until {
            self.interrupt.check()?;
            std::thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    fn check(&self, limit: Duration) -> Result<(), RunError> {
        self.interrupt.check()?;
        if self.begun.elapsed() < limit {
            return Ok(());
        }
        Err(RunError::TimedOut { limit, said: self.said() })
    }

    fn said(&self) -> Said {
        let text = fs::read(self.stage.errors()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines = self.unwanted.iter().map(String::as_str).chain(text.lines().map(str::trim));
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        Said(lines[lines.len().saturating_sub(SHOWN)..].join(" / "))
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
        processes::end_all();
    }
}

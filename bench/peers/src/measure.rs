//! What is measured of each peer: the program's own rows, how long it takes to say its first line, and what it uses and holds
//! while it does nothing.
//!
//! Rows are measured in turn, a run of each peer after the other, several times, so that what else the machine does meets all.
//!
//! Start at [`all`].

use crate::figure::{Figure, Phase};
use crate::peer::Peer;
use crate::processes;
use crate::report::Section;
use crate::run::{Interrupt, Run, RunError};
use crate::stage::Stage;
use serde::Deserialize;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// How long one run of the program may take. A slow one takes some ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a peer has to settle down before it counts as idle.
const SETTLED: Duration = Duration::from_secs(2);

const START: &str = "start to first line";
const IDLE_CPU: &str = "idle: host CPU, % of a core";
const IDLE_MEMORY: &str = "idle: resident memory";

/// How much is measured.
struct Effort {
    /// Runs of the program on each peer.
    turns: usize,
    /// Samples of each row in a run, and microseconds that a batch takes at least.
    rows: [&'static str; 2],
    /// Starts, beside a first one that does not count.
    starts: usize,
    /// How long processor time is counted.
    idle: Duration,
}

const FULL: Effort = Effort { turns: 3, rows: ["7", "5000"], starts: 5, idle: Duration::from_secs(10) };
const QUICK: Effort = Effort { turns: 1, rows: ["3", "500"], starts: 1, idle: Duration::from_secs(1) };

/// A row as the program prints it.
#[derive(Deserialize)]
struct Row {
    row: String,
    samples: Vec<f64>,
}

/// Measures all peers in both phases. What cannot be measured of one is an error in the section, and the others go on.
///
/// # Errors
///
/// The user wants the end; what is measured by then is in the section.
pub(crate) fn all(
    quick: bool,
    peers: &[Peer],
    stage: &Stage,
    interrupt: &Interrupt,
    section: &mut Section,
) -> Result<(), RunError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores == 1 {
        section.notes.push("Only one core may be used here: there is no phase with a spare one.".into());
    }
    let phases = Phase::ALL.into_iter().filter(|phase| cores > 1 || *phase == Phase::Pinned);
    let effort = if quick { &QUICK } else { &FULL };
    for phase in phases {
        let mut measurement = Measurement { phase, effort, stage, interrupt, samples: Vec::new() };
        let ended = phase.during(|| measurement.of_all(peers, &mut section.errors)).map_err(RunError::Start);
        section.figures.extend(measurement.figures(peers));
        ended??;
    }
    Ok(())
}

/// One phase.
struct Measurement<'a> {
    phase: Phase,
    effort: &'static Effort,
    stage: &'a Stage,
    interrupt: &'a Interrupt,
    samples: Vec<Samples>,
}

/// Samples of a row on a peer.
struct Samples {
    name: String,
    peer: &'static str,
    unit: &'static str,
    all: Vec<f64>,
}

impl<'a> Measurement<'a> {
    fn of_all(&mut self, peers: &[Peer], errors: &mut Vec<String>) -> Result<(), RunError> {
        let mut working: Vec<&Peer> = peers.iter().collect();
        for turn in 1..=self.effort.turns {
            let what = format!("rows, turn {turn} of {}", self.effort.turns);
            self.of_each(&what, &mut working, errors, Self::rows)?;
        }
        self.of_each("start", &mut working, errors, Self::starts)?;
        self.of_each("idle", &mut working, errors, Self::idle)
    }

    /// Measures something of each peer; one that fails is not asked for more.
    fn of_each(
        &mut self,
        what: &str,
        working: &mut Vec<&Peer>,
        errors: &mut Vec<String>,
        measure: impl Fn(&mut Self, &Peer) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let mut result = Ok(());
        working.retain(|peer| {
            if result.is_err() {
                return true;
            }
            progress(&format!("{}: {what}, {}", self.phase, peer.title));
            match measure(self, peer) {
                Ok(()) => return true,
                Err(RunError::Interrupted) => result = Err(RunError::Interrupted),
                Err(error) => errors.push(format!("of {}, {}, {what}: {error}", peer.title, self.phase)),
            }
            false
        });
        progress("");
        result
    }

    fn rows(&mut self, peer: &Peer) -> Result<(), RunError> {
        let [rounds, microseconds] = self.effort.rows;
        let run = self.run(peer, &["rows", rounds, microseconds, &peer.data])?;
        for line in run.lines(PATIENCE, |line| line.starts_with("{\"row\""))? {
            let row: Row = serde_json::from_str(&line).map_err(std::io::Error::from)?;
            self.add(&row.row, peer, "ns", row.samples);
        }
        Ok(())
    }

    fn starts(&mut self, peer: &Peer) -> Result<(), RunError> {
        let mut all = Vec::new();
        for _ in 0..=self.effort.starts {
            let (_, took) = self.run(peer, &["idle"])?.line(PATIENCE, |line| line == "idle")?;
            all.push(took.as_secs_f64() * 1e3);
        }
        self.add(START, peer, "ms", all.split_off(1));
        Ok(())
    }

    fn idle(&mut self, peer: &Peer) -> Result<(), RunError> {
        let mut run = self.run(peer, &["idle"])?;
        run.line(PATIENCE, |line| line == "idle")?;
        run.rest(SETTLED)?;
        let before = processes::cpu_time(&processes::descendants());
        run.rest(self.effort.idle)?;
        let processes = processes::descendants();
        let used = processes::cpu_time(&processes).saturating_sub(before) as f64;
        self.add(IDLE_CPU, peer, "%", vec![100.0 * used / self.effort.idle.as_nanos() as f64]);
        self.add(IDLE_MEMORY, peer, "MiB", vec![processes::memory_kib(&processes)? / 1024.0]);
        Ok(())
    }

    fn run(&self, peer: &Peer, arguments: &[&str]) -> Result<Run<'a>, RunError> {
        Run::start(peer, arguments, self.stage, self.interrupt)
    }

    fn add(&mut self, name: &str, peer: &Peer, unit: &'static str, more: Vec<f64>) {
        let same = self.samples.iter_mut().find(|samples| samples.name == name && samples.peer == peer.title);
        match same {
            Some(samples) => samples.all.extend(more),
            None => self.samples.push(Samples { name: name.into(), peer: peer.title, unit, all: more }),
        }
    }

    /// The rows, each of the peers in their order, compared with the host's.
    fn figures(&self, peers: &[Peer]) -> Vec<Figure> {
        let mut names: Vec<&str> = Vec::new();
        for samples in &self.samples {
            if !names.contains(&&*samples.name) && !samples.all.is_empty() {
                names.push(&samples.name);
            }
        }
        let of = |name: &str, peer: &str| {
            let samples = self.samples.iter().find(|samples| samples.name == name && samples.peer == peer)?;
            Some(Figure::new(name, samples.peer, samples.unit, self.phase, samples.all.clone()))
        };
        let mut figures = Vec::new();
        for name in names {
            let mut rows: Vec<Figure> = peers.iter().filter_map(|peer| of(name, peer.title)).collect();
            if let Some(host) = rows.iter().find(|row| row.peer == "host").cloned() {
                rows.iter_mut().filter(|row| row.peer != "host").for_each(|row| row.against(&host));
            }
            figures.extend(rows);
        }
        figures
    }
}

/// Tells what is done now, on a terminal.
fn progress(what: &str) {
    let mut errors = std::io::stderr();
    if errors.is_terminal() {
        let _ = write!(errors, "\r\x1b[K{what}").and_then(|()| errors.flush()); // it is for whoever looks
    }
}

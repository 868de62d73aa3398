//! Tests that are made on the host: each boots machines and looks at how they end and at what they write.
//!
//! A scenario is declared as a guest's test is, with its clauses, and gets a [`Stand`]. What it boots is the suite's own
//! image, whose first argument names what the guest is to do (`acts.rs` there), or that image with something changed.
//! It gives `Ok(())`, or what it found instead; the helpers below say so with the line that asked.
//!
//! Start at [`Stand::run`].

mod boot;
mod clock;
mod console;
mod crashes;
mod devices;
mod ends;
mod image;
mod memory;
mod note;

use crate::patch::Patch;
use crate::{Case, Crash, End, Hypervisor, Kind, Machine, Outcome};
use std::fmt::Debug;
use std::io::Write;
use std::panic::Location;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a scenario gives: nothing, or what came of it instead.
pub type Judgement<T = ()> = Result<T, Outcome>;

/// What a scenario works with.
#[derive(Clone, Copy)]
pub struct Stand<'a> {
    /// The hypervisor that is judged.
    pub hypervisor: &'a dyn Hypervisor,
    /// The suite's image.
    pub image: &'static [u8],
    /// How long a machine may take that should end by itself.
    pub limit: Duration,
}

/// Declares scenarios, as `guest_sdk::tests!` does tests: clauses, then a function, whose last expression is a `Judgement`.
macro_rules! scenarios {
    ($($(#[$attribute:meta])* $clauses:literal fn $name:ident($stand:ident) $body:block)+) => {
        $($(#[$attribute])* fn $name($stand: &$crate::Stand<'_>) -> $crate::Judgement $body)+

        /// Name, clauses and function of each.
        pub(super) const ALL: &[super::Scenario] = &[$((stringify!($name), $clauses, $name)),+];
    };
}
use scenarios;

/// A scenario's name, clauses and function.
type Scenario = (&'static str, &'static str, fn(&Stand<'_>) -> Judgement);

/// All scenarios.
pub(crate) fn all() -> impl Iterator<Item = Case> {
    let chapters = [
        image::ALL,
        note::ALL,
        memory::ALL,
        boot::ALL,
        crashes::ALL,
        clock::ALL,
        console::ALL,
        devices::ALL,
        ends::ALL,
    ];
    let case = |(name, clauses, check): &Scenario| Case::new(name, clauses, Kind::Scenario { check: *check });
    chapters.into_iter().flatten().map(case)
}

/// A machine that has been booted, and has ended.
struct Run {
    end: End,
    /// What it wrote.
    console: Vec<Piece>,
}

/// What one call wrote to the console, and when it came.
type Piece = (Instant, Vec<u8>);

impl Stand<'_> {
    /// The suite's image with these arguments.
    fn machine(&self, arguments: &[&str]) -> Machine {
        Machine::new(self.image, arguments, self.limit)
    }

    /// As [`machine`](Self::machine), with something changed in the image.
    fn patched(&self, arguments: &[&str], change: impl FnOnce(&mut Patch)) -> Machine {
        let mut patch = Patch::new(self.image);
        change(&mut patch);
        Machine::new(patch.bytes, arguments, self.limit)
    }

    fn boot(&self, machine: Machine) -> Run {
        let console = Console::default();
        let end = self.hypervisor.boot(machine, Box::new(console.clone()));
        let console = std::mem::take(&mut *console.0.lock().expect("no thread panics with the lock held"));
        Run { end, console }
    }

    /// Boots the suite's image with these arguments.
    fn run(&self, arguments: &[&str]) -> Run {
        self.boot(self.machine(arguments))
    }

    /// Boots an image that must be refused, before its first instruction; gives what is said of it.
    #[track_caller]
    fn refused(&self, what: &str, change: impl FnOnce(&mut Patch)) -> Judgement<String> {
        refusal(what, self.boot(self.patched(&["arguments"], change)))
    }
}

/// What was said of a machine that must have been refused.
#[track_caller]
fn refusal(what: &str, run: Run) -> Judgement<String> {
    same(what, run.text(), String::new())?;
    match run.end {
        End::Refused(text) => Ok(text),
        other => wrong(format!("{what}: it was not refused, but {other:?}")),
    }
}

impl Run {
    /// All that it wrote.
    fn bytes(&self) -> Vec<u8> {
        self.console.iter().flat_map(|(_, piece)| piece.clone()).collect()
    }

    /// All that it wrote, as text.
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Passes if it shut down with code 0.
    fn done(self) -> Judgement<Self> {
        match Outcome::from(self.end.clone()) {
            Outcome::Passed => Ok(self),
            outcome => Err(outcome),
        }
    }

    /// The crash report, if it crashed.
    #[track_caller]
    fn crash(self) -> Judgement<Crash> {
        match self.end {
            End::Crash(crash) => Ok(crash),
            other => wrong(format!("it did not crash, but {other:?}")),
        }
    }
}

/// Passes if what was found is what it should be.
#[track_caller]
fn same<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Judgement {
    if found == expected {
        return Ok(());
    }
    let shown = |value: &T| {
        let text = format!("{value:?}");
        let cut = text.chars().take(300).collect::<String>();
        if cut.len() < text.len() { cut + ".." } else { text }
    };
    wrong(format!("{what}: found {}, expected {}", shown(&found), shown(&expected)))
}

/// Passes if something is so.
#[track_caller]
fn holds(condition: bool, otherwise: impl FnOnce() -> String) -> Judgement {
    if condition { Ok(()) } else { wrong(otherwise()) }
}

#[track_caller]
fn wrong<T>(message: String) -> Judgement<T> {
    Err(Outcome::Failed { message, place: Some(Location::caller().to_string()) })
}

/// A console that remembers each piece.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<Piece>>>);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut pieces = self.0.lock().expect("no thread panics with the lock held");
        pieces.push((Instant::now(), bytes.to_vec()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

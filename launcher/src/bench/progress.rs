//! How far a benchmark is: what the process that measures says ([`Steps`]), and what is shown of it ([`Bar`]).

use crate::bench::child::Message;
use crate::output;
use crate::units::show_span;
use rustix::termios::tcgetwinsize;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// The steps of a suite's phase, told to the parent as they begin.
pub(super) struct Steps {
    step: u32,
    steps: u32,
}

impl Steps {
    pub(super) fn new(steps: u32) -> Self {
        Self { step: 0, steps }
    }

    pub(super) fn next(&mut self, what: &str) {
        self.step += 1;
        Message::Step { step: self.step, steps: self.steps, what: what.into() }.tell();
    }
}

/// What is done of all that is to be done: a bar on a terminal, else a line for each part that begins.
pub(super) struct Bar {
    terminal: bool,
    begun: Instant,
    /// Seconds that all parts are expected to take, those that are done, and the one that runs.
    all: f64,
    done: f64,
    part: f64,
    /// Of the part that runs: its name, how much of it is done, and what is being done.
    name: String,
    fraction: f64,
    what: String,
}

impl Bar {
    /// Of something that is expected to take so many seconds.
    pub(super) fn new(expected: f64) -> Self {
        let (name, what) = (String::new(), String::new());
        let terminal = stderr().is_terminal();
        Self {
            terminal,
            begun: Instant::now(),
            all: expected,
            done: 0.0,
            part: 0.0,
            name,
            fraction: 0.0,
            what,
        }
    }

    /// A part begins, and those before it are done.
    pub(super) fn part(&mut self, name: String, expected: f64) {
        self.done += self.part;
        (self.part, self.name, self.fraction) = (expected, name, 0.0);
        self.what.clear();
        if self.terminal {
            self.show();
        } else {
            output::tell(&format!("{}\n", self.name));
        }
    }

    /// A step of the part begins.
    pub(super) fn step(&mut self, step: u32, steps: u32, what: &str) {
        self.fraction = f64::from(step.saturating_sub(1)) / f64::from(steps.max(1));
        what.clone_into(&mut self.what);
        self.show();
    }

    /// Shows it again, with the time as it is now.
    pub(super) fn show(&self) {
        if self.terminal {
            let width = tcgetwinsize(stderr()).map_or(80, |size| usize::from(size.ws_col));
            output::tell(&format!("\r\x1b[K{}", self.line(self.begun.elapsed(), width.saturating_sub(1))));
        }
    }

    /// `[######--------]  43 %, 4m 12s of about 9m 50s  mmu, pinned to one core: protection`
    fn line(&self, elapsed: Duration, width: usize) -> String {
        const LENGTH: usize = 20;
        let done = self.done + self.part * self.fraction.clamp(0.0, 1.0);
        let fraction = if self.all > 0.0 { (done / self.all).clamp(0.0, 1.0) } else { 0.0 };
        // What is left takes as much longer than expected as what is done did, once that says something.
        let pace = if fraction > 0.1 { elapsed.as_secs_f64() / done } else { 1.0 };
        let all = elapsed.as_secs_f64() + (self.all - done).max(0.0) * pace;
        let filled = (fraction * LENGTH as f64) as usize;
        let line = format!(
            "[{}{}] {:3.0} %, {} of about {}  {}: {}",
            "#".repeat(filled),
            "-".repeat(LENGTH - filled),
            fraction * 100.0,
            show_span(elapsed),
            show_span(Duration::from_secs_f64(all)),
            self.name,
            self.what,
        );
        line.chars().take(width).collect()
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.terminal {
            output::tell("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar() -> Bar {
        let mut bar = Bar::new(100.0);
        bar.terminal = false;
        bar
    }

    #[test]
    fn what_is_done_is_what_it_was_expected_to_take() {
        let mut bar = bar();
        bar.part("one".into(), 40.0);
        bar.part("two".into(), 60.0);
        bar.step(4, 6, "thing");
        let line = bar.line(Duration::from_secs(35), 200);
        assert_eq!(line, "[##############------]  70 %, 35s of about 50s  two: thing");
        assert_eq!(bar.line(Duration::from_secs(35), 9), "[########");
    }

    #[test]
    fn before_anything_is_done_the_expected_time_is_shown() {
        let mut bar = bar();
        bar.part("one".into(), 100.0);
        let line = bar.line(Duration::from_secs(1), 200);
        assert_eq!(line, "[--------------------]   0 %, 1s of about 1m 41s  one: ");
    }
}

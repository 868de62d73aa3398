//! What the runner needs of a hypervisor.

use serde::Serialize;
use std::time::Duration;

/// Boots images. An implementation is for one engine of one hypervisor.
pub trait Hypervisor: Sync {
    /// Its name, for reports.
    fn name(&self) -> &str;

    /// Boots `image` in a fresh VM with these arguments, and ends it after `limit` if it has not ended by then.
    fn boot(&self, image: &'static [u8], arguments: &[String], limit: Duration) -> Outcome;
}

/// How a test's VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub enum Outcome {
    /// Shutdown with code 0.
    Passed,
    /// The guest panicked: an assertion did not hold.
    Failed {
        /// The panic's message.
        message: String,
        /// `file:line:column`, if the guest said.
        place: Option<String>,
    },
    /// It ended in any other way, or did not start.
    Faulted {
        /// How.
        cause: String,
        /// The guest's stack, innermost first.
        backtrace: Vec<String>,
    },
    /// It did not end in time.
    TimedOut {
        /// Where it was.
        backtrace: Vec<String>,
    },
}

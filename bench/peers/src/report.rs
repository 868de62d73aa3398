//! The results as a file, in the format of `hv bench all`, whose `--add` takes them: a report with one section.

// The launcher's own: the machine and the date are to be told alike.
#[path = "../../../launcher/src/bench/report/date.rs"]
mod date;
#[path = "../../../launcher/src/bench/report/machine.rs"]
mod machine;

use crate::Options;
use crate::figure::Figure;
use machine::Machine;
use serde::Serialize;
use std::time::{Duration, SystemTime};

/// Of the format.
const SCHEMA: u32 = 1;

/// All that was measured in one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: u32,
    /// The version of hv, and of its ABI.
    pub hv: String,
    /// When it ended, in UTC.
    pub date: String,
    pub machine: Machine,
    options: Vec<String>,
    /// How long it took.
    seconds: f64,
    /// Whether it has come to its end: it was not interrupted.
    pub complete: bool,
    sections: [Section; 1],
}

/// The comparison.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    name: &'static str,
    title: &'static str,
    /// Versions of what was compared, and what was left out, why, and what would bring it.
    pub notes: Vec<String>,
    /// What could not be measured, and why.
    pub errors: Vec<String>,
    pub figures: Vec<Figure>,
}

impl Default for Section {
    fn default() -> Self {
        Self {
            name: "peers",
            title: "Peers: the same program on the host, in hv, and in what is used today",
            notes: Vec::new(),
            errors: Vec::new(),
            figures: Vec::new(),
        }
    }
}

impl Report {
    pub(crate) fn new(options: &Options, took: Duration, complete: bool, section: Section) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            schema: SCHEMA,
            hv: format!("{} (ABI {})", env!("CARGO_PKG_VERSION"), hv_abi::ABI_VERSION),
            date: date::utc(since.as_secs()),
            machine: Machine::this(),
            options: if options.quick { vec!["--quick".into()] } else { Vec::new() },
            seconds: took.as_secs_f64(),
            complete,
            sections: [section],
        }
    }

    pub(crate) fn section(&self) -> &Section {
        &self.sections[0]
    }

    pub(crate) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("texts and numbers are JSON") + "\n"
    }
}

//! What `hv bench all` measured, as a file that other programs read and write: the format of `report.json`.
//!
//! A report is sections of [`Figure`]s, and on what machine they were measured. It is shown as text for a terminal ([`table`](super::table)),
//! as [`markdown`], and as a page with plots ([`html`]). A comparison that something else measured comes in as sections of a
//! report in the same format ([`Report::add`]).
//!
//! Start at [`Report`].

mod axis;
mod date;
pub(super) mod html;
pub(super) mod machine;
pub(super) mod markdown;
mod plot;

use crate::bench::figure::Figure;
use crate::exit_code::Cause;
use crate::failure::Failure;
use machine::Machine;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::SystemTime;

/// Of the format. Fields may be added under the same number; a reader skips those that it does not know.
const SCHEMA: u32 = 1;

/// All that was measured in one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Report {
    pub schema: u32,
    /// The version of hv, and of its ABI.
    pub hv: String,
    /// When it began, in UTC, as in `2026-11-21T18:04:05Z`.
    pub date: String,
    pub machine: Machine,
    /// How many threads wanted a processor before it began, over a minute.
    #[serde(default)]
    pub load: Option<f64>,
    /// The options that say what was measured.
    pub options: Vec<String>,
    /// How long it took.
    pub seconds: f64,
    /// Whether it has come to its end: it was not interrupted. Suites that failed are named by their sections.
    pub complete: bool,
    pub sections: Vec<Section>,
}

/// A suite, or a comparison that was added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Section {
    /// One word.
    pub name: String,
    pub title: String,
    /// What a reader has to know: that few samples were taken, versions of what was compared, what was left out and why.
    #[serde(default)]
    pub notes: Vec<String>,
    /// How long it took.
    #[serde(default)]
    pub seconds: f64,
    /// What could not be measured, and why.
    #[serde(default)]
    pub errors: Vec<String>,
    #[serde(default)]
    pub figures: Vec<Figure>,
}

impl Report {
    /// One without sections, of this machine and of now.
    pub(super) fn new(options: Vec<String>) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self {
            schema: SCHEMA,
            hv: format!("{} (ABI {})", env!("CARGO_PKG_VERSION"), hv_abi::ABI_VERSION),
            date: date::utc(since.as_secs()),
            machine: Machine::this(),
            load: Some(rustix::system::sysinfo().loads[0] as f64 / f64::from(1 << 16)),
            options,
            seconds: 0.0,
            complete: false,
            sections: Vec::new(),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is no report in a format that this hv knows.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let cannot = |error: std::io::Error| {
            Failure::cannot(format!("the report `{}` cannot be read", path.display()), error)
        };
        let text = std::fs::read_to_string(path).map_err(cannot)?;
        Self::parse(&text).map_err(|reason| {
            Failure::new(Cause::CannotStart, format!("`{}` is no report: {reason}", path.display()))
                .advise("`hv bench all` writes them, as report.json")
        })
    }

    fn parse(text: &str) -> Result<Self, String> {
        /// What is the same in all formats.
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let Schema { schema } = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if schema != SCHEMA {
            return Err(format!("its format has number {schema}, and this hv knows {SCHEMA}"));
        }
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    pub(super) fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("texts and numbers are JSON") + "\n"
    }

    /// Takes the sections of another report. One that was measured elsewhere, or at another time, says so.
    pub(super) fn add(&mut self, other: Self) {
        let mut note = format!("Measured on {}, with hv {}", other.date, other.hv);
        if other.machine != self.machine {
            note += &format!(", on another machine: {}", other.machine);
        }
        if !other.complete {
            note += "; it was ended early, and is incomplete";
        }
        note += ".";
        for mut section in other.sections {
            section.notes.insert(0, note.clone());
            self.sections.push(section);
        }
    }

    /// Takes the sections of those reports.
    ///
    /// # Errors
    ///
    /// As [`Report::read`].
    pub(super) fn add_files<P: AsRef<Path>>(&mut self, paths: &[P]) -> Result<(), Failure> {
        for path in paths {
            self.add(Self::read(path.as_ref())?);
        }
        Ok(())
    }

    /// All rows.
    fn figures(&self) -> impl Iterator<Item = &Figure> {
        self.sections.iter().flat_map(|section| &section.figures)
    }

    /// Whether something that was to be measured is not there.
    pub(super) fn lacks_something(&self) -> bool {
        !self.complete || self.sections.iter().any(|section| !section.errors.is_empty())
    }
}

#[cfg(test)]
mod tests;

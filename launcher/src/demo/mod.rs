//! `hv demo gap`: what a guest gains by telling the host what it knows, measured on this machine.
//!
//! The sample guest `gap` does each of five things in two ways, as [`pairs`] lists them. The two are run in turn, several times,
//! and each thing that is measured becomes a [`row`](row::Row), which [`table`] shows as text and [`chart`] as a picture.
//!
//! Start at [`gap`], then [`pairs::PAIRS`].

mod chart;
mod guest;
mod pairs;
mod row;
mod table;

use crate::cli::GapOptions;
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output::{self, Style};
use crate::signals::Signals;
use pairs::{PAIRS, Pair, Scale, WAYS};
use row::Row;
use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::Path;

/// Runs all pairs, and prints what was measured; gives the exit code.
///
/// # Errors
///
/// What could not be measured or written.
pub(crate) fn gap(options: &GapOptions) -> Result<u8, Failure> {
    let cannot_write = |path: &Path| {
        let what = format!("the chart `{}` cannot be written", path.display());
        move |error: io::Error| Failure::new(Cause::CannotStart, what).because(error)
    };
    if let Some(path) = &options.svg {
        check_writable(path).map_err(cannot_write(path))?;
    }
    end_on_signals()?;
    hv_core::prepare().map_err(|error| Failure::cannot("the host does not let hv make sandboxes", error))?;
    let scale = if options.quick { Scale::QUICK } else { Scale::FULL };
    let mut rows = Vec::new();
    for pair in PAIRS {
        rows.extend(measure(pair, &scale)?);
    }
    if let Some(path) = &options.svg {
        fs::write(path, chart::svg(&rows)).map_err(cannot_write(path))?;
    }
    output::print(&if options.json {
        serde_json::to_string_pretty(&rows).expect("texts and numbers are JSON") + "\n"
    } else {
        table::text(&rows, &Style::stdout())
    })?;
    Ok(0)
}

/// Runs a pair: the one way, the other, the one again, so that what else the machine does meets both.
fn measure(pair: &'static Pair, scale: &Scale) -> Result<Vec<Row>, Failure> {
    let mut samples = vec![WAYS.map(|_| Vec::new()); pair.measures.len()];
    for round in 1..=scale.rounds {
        for (way, how) in pair.ways.iter().enumerate() {
            show_progress(&format!("{}, {round}/{}: {how}", pair.about, scale.rounds));
            let measured = (pair.run)(WAYS[way], scale);
            show_progress("");
            for (samples, value) in samples.iter_mut().zip(measured?) {
                samples[way].push(value);
            }
        }
    }
    Ok(pair.measures.iter().zip(samples).map(|(measure, samples)| Row::new(pair, measure, samples)).collect())
}

/// Whether a file could be written there. It is not made yet: who ends the demo early finds none.
fn check_writable(path: &Path) -> io::Result<()> {
    if path.exists() {
        return OpenOptions::new().write(true).open(path).map(drop);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(rustix::fs::access(directory, rustix::fs::Access::WRITE_OK)?)
}

/// Has a thread wait for Ctrl-C and the like, which end the demo; its VMs die with this process.
fn end_on_signals() -> Result<(), Failure> {
    let cannot = |error| Failure::cannot("the host does not let hv wait for signals", error);
    let signals = Signals::catch().map_err(cannot)?;
    let wait = move || {
        let cause = signals.wait(None);
        show_progress("");
        std::process::exit(cause.code().into());
    };
    std::thread::Builder::new().name("hv-watch".into()).spawn(wait).map(drop).map_err(cannot)
}

/// Says on a terminal what is being done, in the place of what was said before.
fn show_progress(what: &str) {
    if io::stderr().is_terminal() {
        output::tell(&format!("\r\x1b[K{what}"));
    }
}

//! `hv bench all`: every suite in both phases, within a quarter of an hour, and the report of it.
//!
//! Whatever happens to one suite, the report has the others: one that failed, or for which no time was left, is named there with
//! the reason, and one that was interrupted leaves a report that says so.
//!
//! Start at [`run`].

use crate::bench::child::{Runner, Stop};
use crate::bench::options::{AllOptions, ReportOptions};
use crate::bench::progress::Bar;
use crate::bench::report::{Report, Section, html, markdown};
use crate::bench::{Phase, Suite, table};
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// All that there is, less what is needed to end and to write.
const TIME: Duration = Duration::from_secs(14 * 60 + 45);
/// The most for a phase: one that hangs is not to take all of it.
const PHASE_TIME: Duration = Duration::from_secs(4 * 60);

/// Measures, and writes the report; gives the exit code.
///
/// # Errors
///
/// The report cannot be written, or one that was to be added not read.
pub(super) fn run(options: &AllOptions) -> Result<u8, Failure> {
    let mut report = Report::new(words(options));
    report.add_files(&options.add)?;
    let added = std::mem::take(&mut report.sections);
    let [json, page] = ["report.json", "report.html"].map(|name| options.output.join(name));
    // Before a quarter of an hour is spent for nothing.
    fs::create_dir_all(&options.output).map_err(cannot_write(&options.output))?;
    write(&json, &report.json())?;

    let signal = measure(options, &mut report)?;
    report.sections.extend(added);
    write(&json, &report.json())?;
    write(&page, &html::page(&report))?;
    output::print(&if options.json { report.json() } else { text(&report) })?;
    output::tell(&format!("The report is in {} and {}\n", json.display(), page.display()));
    Ok(match signal {
        Some(cause) => cause.code(),
        None if report.lacks_something() => Cause::CannotStart.code(),
        None => 0,
    })
}

/// Runs the suites, one after the other; gives the signal that ended it before they were done.
fn measure(options: &AllOptions, report: &mut Report) -> Result<Option<Cause>, Failure> {
    let runner = Runner::new()?;
    let begun = Instant::now();
    let phases = Phase::possible();
    let suites: Vec<_> =
        Suite::ALL.into_iter().filter(|one| options.only.is_empty() || options.only.contains(one)).collect();
    let expected = |suite: Suite| suite.expected_seconds(is_quick(suite, options));
    let mut bar = Bar::new(suites.iter().map(|suite| expected(*suite)).sum::<f64>() * phases.len() as f64);
    for suite in suites {
        let quick = is_quick(suite, options);
        let mut section = section(suite, quick);
        let section_begun = Instant::now();
        for phase in phases {
            bar.part(format!("{}, {phase}", suite.name()), expected(suite));
            let time = PHASE_TIME.min(TIME.saturating_sub(begun.elapsed()));
            match runner.measure((suite, *phase, quick), time, &mut bar) {
                Ok(figures) => section.figures.extend(figures),
                Err(Stop::Failed(reason)) => section.errors.push(format!("{phase}: {reason}")),
                Err(Stop::Signal(cause)) => {
                    section.errors.push(format!("{phase}: it was interrupted"));
                    report.sections.push(section);
                    report.seconds = begun.elapsed().as_secs_f64();
                    return Ok(Some(cause));
                }
            }
        }
        section.seconds = section_begun.elapsed().as_secs_f64();
        report.sections.push(section);
    }
    report.seconds = begun.elapsed().as_secs_f64();
    report.complete = true;
    Ok(None)
}

/// Whether a suite takes few samples.
fn is_quick(suite: Suite, options: &AllOptions) -> bool {
    // The long form of devices takes most of the quarter of an hour by itself.
    suite.has_quick_form() && (options.quick || suite == Suite::Device)
}

/// A suite's section, to be filled.
fn section(suite: Suite, quick: bool) -> Section {
    let mut notes = Vec::new();
    if quick {
        notes.push(format!("Few samples: the quick form. `hv bench {}` takes more.", suite.name()));
    }
    if Phase::possible().len() == 1 {
        notes.push("Only one core could be used: there are no figures with a spare core.".into());
    }
    Section {
        name: suite.name().into(),
        title: suite.title().into(),
        notes,
        seconds: 0.0,
        errors: Vec::new(),
        figures: Vec::new(),
    }
}

/// The options that say what is measured, as they would be typed.
fn words(options: &AllOptions) -> Vec<String> {
    let mut words = Vec::new();
    if options.quick {
        words.push("--quick".into());
    }
    words.extend(options.only.iter().map(|suite| format!("--only={}", suite.name())));
    words
}

/// Draws a page from a report, or prints its tables.
///
/// # Errors
///
/// A report cannot be read, or the page not written.
pub(super) fn draw_again(options: &ReportOptions) -> Result<u8, Failure> {
    let mut report = Report::read(&options.report)?;
    report.add_files(&options.add)?;
    if options.markdown {
        output::print(&markdown::tables(&report))?;
        return Ok(0);
    }
    let page = options.output.clone().unwrap_or_else(|| options.report.with_extension("html"));
    write(&page, &html::page(&report))?;
    output::tell(&format!("The page is in {}\n", page.display()));
    Ok(0)
}

/// The tables of all sections, for a terminal.
fn text(report: &Report) -> String {
    let mut text = String::new();
    for section in &report.sections {
        text += &format!("{}\n\n", section.title);
        for line in section.notes.iter().map(|note| format!("{note}\n")) {
            text += &line;
        }
        for line in section.errors.iter().map(|error| format!("not measured {error}\n")) {
            text += &line;
        }
        text += &table::table(&section.figures);
    }
    text + table::LEGEND
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(cannot_write(path))
}

fn cannot_write(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::cannot(format!("`{}` cannot be written", path.display()), error)
}

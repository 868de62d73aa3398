//! `hv doctor`: what this host allows, what to do about what it does not, and what things cost here.
//!
//! Nothing is believed that can be tried: at the end stands a real start of a real guest.

mod host;
mod measure;

use crate::cli::DoctorOptions;
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output::{self, Style};
use crate::units::show_duration;
use hv_core::EngineKind;
use measure::Measured;
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// Nothing to do.
    Ok,
    /// Guests run, but something is worse than it could be.
    Warn,
    /// Guests do not run.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    name: &'static str,
    status: Status,
    found: String,
    /// What to do, if there is something.
    advice: Option<&'static str>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), advice: None }
    }

    /// `status` and `advice`, unless it is `good`.
    fn unless(
        good: bool,
        name: &'static str,
        found: impl Into<String>,
        status: Status,
        advice: &'static str,
    ) -> Self {
        if good {
            Self::ok(name, found)
        } else {
            Self { name, status, found: found.into(), advice: Some(advice) }
        }
    }
}

/// All that is told.
#[derive(Serialize)]
struct Findings {
    /// The engine that `--engine auto` takes; `None` if guests do not run.
    engine: Option<&'static str>,
    checks: Vec<Check>,
    measured: Option<Measured>,
}

/// Examines the host; the exit code says whether guests run.
///
/// # Errors
///
/// The findings could not be written.
pub(crate) fn examine(options: &DoctorOptions) -> Result<u8, Failure> {
    let mut checks = host::checks();
    let measured = match measure::all() {
        Ok(measured) => {
            checks.push(Check::ok("a guest", "`hello` was started and ended as it should"));
            Some(measured)
        }
        Err(reason) => {
            let advice = "what is missing above may be why; `RUST_LOG=debug hv run hello` says more";
            checks.push(Check::unless(false, "a guest", reason, Status::Missing, advice));
            None
        }
    };
    let engine = match hv_core::engine::automatic() {
        EngineKind::Kvm => "kvm",
        _ => "process",
    };
    let findings = Findings { engine: measured.as_ref().map(|_| engine), checks, measured };
    output::print(&if options.json { json(&findings) } else { text(&findings, &Style::stdout()) })?;
    Ok(if findings.engine.is_some() { 0 } else { Cause::CannotStart.code() })
}

fn json(findings: &Findings) -> String {
    let json = serde_json::to_string_pretty(findings).expect("texts and numbers are JSON");
    format!("{json}\n")
}

fn text(findings: &Findings, style: &Style) -> String {
    let mut text = String::new();
    for Check { name, status, found, advice } in &findings.checks {
        let status = match status {
            Status::Ok => style.green("ok     "),
            Status::Warn => style.yellow("warn   "),
            Status::Missing => style.red("missing"),
        };
        line(&mut text, format_args!("{status}  {name:<15}  {found}"));
        if let Some(advice) = advice {
            line(&mut text, format_args!("{:26}{} {advice}", "", style.bold("->")));
        }
    }
    match findings.engine {
        Some(engine) => line(&mut text, format_args!("\nGuests run here, on the engine `{engine}`.")),
        None => line(&mut text, format_args!("\nGuests do not run here.")),
    }
    if let Some(measured) = &findings.measured {
        line(&mut text, format_args!("\n{}", style.bold("What it costs here:")));
        costs(&mut text, measured);
    }
    text
}

fn costs(text: &mut String, measured: &Measured) {
    let show = |ns| show_duration(Duration::from_nanos(ns));
    let mut cost = |ns, what: &str| line(text, format_args!("  {:>8}  {what}", show(ns)));
    cost(measured.first_run_ns, "first guest of a process, from start to end");
    cost(measured.start_ns, "another one, until it runs (Vm::start)");
    cost(measured.run_ns, "the same, from start to end");
    if let Some(ns) = measured.hypercall_ns {
        cost(ns, "one hypercall, there and back");
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a string takes it");
}

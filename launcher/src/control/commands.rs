//! What people type: `hv ps`, `hv pause`, `hv resume`, `hv stop`, `hv balloon`. What there is to see in a VM is in
//! [`crate::stats`] and [`crate::top`].

use super::client::{self, Connection, NoAnswer};
use super::protocol::{Outcome, Status, Wanted};
use super::roster::{Roster, Seen};
use crate::cli::{BalloonOptions, NameOptions, PsOptions, StopOptions};
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output::{self, Style};
use crate::report::printable;
use crate::units::{show_duration, show_size, show_span};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// `hv ps`; gives the exit code.
///
/// # Errors
///
/// The directory of control sockets cannot be had, or the list not be written.
pub(crate) fn ps(options: &PsOptions) -> Result<u8, Failure> {
    let running = running(&mut Roster::open()?)?;
    let text = if options.json { json(&running) } else { table(&running, &Style::stdout()) };
    output::print(&text)?;
    Ok(0)
}

/// How all VMs are. Those that do not say are told of on standard error.
///
/// # Errors
///
/// The directory cannot be read.
pub(crate) fn running(roster: &mut Roster) -> Result<Vec<Status>, Failure> {
    let mut running = Vec::new();
    for Seen { name, status } in roster.look(client::PATIENCE_WITH_ALL)? {
        match status {
            Ok(status) => running.push(*status),
            Err(why) => {
                let warning = Style::stderr().yellow("warning:");
                output::tell(&format!("{warning} the VM `{name}` is left out: {why}\n"));
            }
        }
    }
    Ok(running)
}

/// `hv pause`; gives the exit code.
///
/// # Errors
///
/// There is no such VM, or it comes to no stopping point.
pub(crate) fn pause(options: &NameOptions) -> Result<u8, Failure> {
    ask(&options.name, Wanted::Pause, "paused")
}

/// `hv resume`; gives the exit code.
///
/// # Errors
///
/// There is no such VM.
pub(crate) fn resume(options: &NameOptions) -> Result<u8, Failure> {
    ask(&options.name, Wanted::Resume, "running")
}

fn ask(name: &str, wanted: Wanted, state: &str) -> Result<u8, Failure> {
    let mut connection = client::find(&client::directory()?, name)?;
    connection.ask(wanted)?;
    output::print(&format!("{} is {state}\n", connection.name))?;
    Ok(0)
}

/// `hv stop`; gives the exit code.
///
/// # Errors
///
/// There is no such VM, or it is still there when the time is over.
pub(crate) fn stop(options: &StopOptions) -> Result<u8, Failure> {
    let directory = client::directory()?;
    let mut connection = client::find(&directory, &options.name)?;
    let pid = status(&mut connection)?.pid;
    connection.ask(Wanted::Stop)?;
    let name = connection.name.clone();
    let ended = connection.wait_for_end(Instant::now() + options.timeout);
    match ended {
        Ok(()) => {
            output::print(&format!("{name} is gone\n"))?;
            Ok(0)
        }
        Err(NoAnswer::Late) => {
            let waited = show_duration(options.timeout);
            Err(Failure::new(
                Cause::TimeOut,
                format!("the VM `{name}` was asked to stop, and is still there after {waited}"),
            )
            .advise(format!("give it longer with --timeout, or end it at once: kill -KILL {pid}")))
        }
        Err(error) => {
            Err(Failure::cannot(format!("`{name}` was asked to stop, and cannot be waited for"), error))
        }
    }
}

/// `hv balloon`; gives the exit code.
///
/// # Errors
///
/// There is no such VM, or its guest has no balloon.
pub(crate) fn balloon(options: &BalloonOptions) -> Result<u8, Failure> {
    let mut connection = client::find(&client::directory()?, &options.name)?;
    connection.ask(Wanted::Balloon { bytes: options.size })?;
    let status = status(&mut connection)?;
    let (name, target, held) = (&connection.name, status.balloon_target, status.ballooned);
    let (target, held) = (show_size(target), show_size(held));
    output::print(&format!("{name} is asked to give up {target}, and has given up {held} by now\n"))?;
    Ok(0)
}

/// How the VM of a name is.
///
/// # Errors
///
/// There is none, or it does not say.
pub(crate) fn status_of(name: &str) -> Result<Status, Failure> {
    status(&mut client::find(&client::directory()?, name)?)
}

/// Pauses the VM of a name, or has it run on.
///
/// # Errors
///
/// There is no such VM, or it comes to no stopping point.
pub(crate) fn set_paused(name: &str, paused: bool) -> Result<(), Failure> {
    let mut connection = client::find(&client::directory()?, name)?;
    connection.ask(if paused { Wanted::Pause } else { Wanted::Resume }).map(drop)
}

fn status(connection: &mut Connection) -> Result<Status, Failure> {
    match connection.ask(Wanted::Status)? {
        Outcome::Status(status) => Ok(*status),
        other => Err(Failure::cannot(
            format!("`{}` does not say how it is", connection.name),
            format!("expected a status, found {other:?}"),
        )),
    }
}

/// As a program reads it.
pub(crate) fn json(told: &impl serde::Serialize) -> String {
    let json = serde_json::to_string_pretty(told).expect("names and numbers are JSON");
    format!("{json}\n")
}

fn table(running: &[Status], style: &Style) -> String {
    if running.is_empty() {
        return "No VM is running; `hv run IMAGE` starts one.\n".into();
    }
    let width = running.iter().map(|vm| vm.name.len()).max().unwrap_or(0).max(4);
    let heading = format!(
        "{:width$}  {:>7}  {:7}  {:>5}  {:>9}  {:>9}  {:>8}  {:>7}  IMAGE",
        "NAME", "PID", "STATE", "VCPUS", "MEMORY", "RESIDENT", "CPU", "UP"
    );
    let mut text = format!("{}\n", style.bold(&heading));
    for vm in running {
        let line = format_args!(
            "{:width$}  {:>7}  {:7}  {:>5}  {:>9}  {:>9}  {:>8}  {:>7}  {}",
            printable(&vm.name),
            vm.pid,
            vm.state.name(),
            vm.vcpus,
            show_size(vm.memory),
            show_size(vm.resident),
            show_duration(Duration::from_nanos(vm.cpu_ns())),
            show_span(Duration::from_nanos(vm.up_ns)),
            printable(&vm.image),
        )
        .to_string();
        writeln!(text, "{line}").expect("a string takes it");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(name: &str) -> Status {
        Status { name: name.into(), ..Status::example() }
    }

    #[test]
    fn columns_stand_under_their_headings() {
        let text = table(&[status("a"), status("a-long-name")], &Style::plain());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "NAME             PID  STATE    VCPUS     MEMORY   RESIDENT       CPU       UP  IMAGE"
        );
        assert_eq!(
            lines[1],
            "a               4711  paused       2     64 MiB      4 KiB      3 ms   3m 20s  ./a\u{fffd}[2Jb"
        );
        assert_eq!(lines[2].find("4711"), lines[1].find("4711"));
    }

    #[test]
    fn nothing_that_runs_is_told() {
        assert!(table(&[], &Style::plain()).contains("No VM is running"));
        assert_eq!(json(&[(); 0]), "[]\n");
    }
}

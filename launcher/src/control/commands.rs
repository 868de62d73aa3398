//! What people type: `hv ps`, `hv pause`, `hv resume`, `hv stop`, `hv stats`, `hv balloon`.

use super::client::{self, Connection, NoAnswer};
use super::directory::Directory;
use super::protocol::{Outcome, Status, Wanted};
use crate::cli::{BalloonOptions, NameOptions, PsOptions, StatsOptions, StopOptions};
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output::{self, Style};
use crate::report::printable;
use crate::units::{show_duration, show_size, show_span};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// VMs that are asked at the same time: each is a descriptor.
const AT_ONCE: usize = 100;

/// `hv ps`; gives the exit code.
///
/// # Errors
///
/// The directory of control sockets cannot be had, or the list not be written.
pub(crate) fn ps(options: &PsOptions) -> Result<u8, Failure> {
    let directory = client::directory()?;
    let mut running = Vec::new();
    for names in client::names(&directory)?.chunks(AT_ONCE) {
        let asked: Vec<_> = names.iter().filter_map(|name| asked(&directory, name.clone())).collect();
        let until = Instant::now() + client::PATIENCE_WITH_ALL;
        running.extend(asked.into_iter().filter_map(|connection| answered(connection, until)));
    }
    let text = if options.json { json(&running) } else { table(&running, &Style::stdout()) };
    output::print(&text)?;
    Ok(0)
}

/// A VM that has been asked how it is. What a killed one left is cleared away.
fn asked(directory: &Directory, name: super::Name) -> Option<Connection> {
    let asked = match Connection::open(directory, name.clone()) {
        Ok(Some(mut connection)) => connection.send(Wanted::Status).map(|()| connection),
        Ok(None) => {
            if let Err(error) = directory.clear(&name) {
                tracing::warn!(%name, %error, "the socket of a VM that was killed cannot be removed");
            }
            return None;
        }
        Err(error) => Err(error.into()),
    };
    asked.map_err(|error| tell_silence(&name, &error)).ok()
}

/// What it answers. One that has ended meanwhile is none.
fn answered(mut connection: Connection, until: Instant) -> Option<Status> {
    match connection.receive(until) {
        Ok(Outcome::Status(status)) => Some(*status),
        Ok(Outcome::Done | Outcome::Error(_)) | Err(NoAnswer::Gone) => None,
        Err(error) => {
            tell_silence(&connection.name, &error);
            None
        }
    }
}

fn tell_silence(name: &super::Name, error: &NoAnswer) {
    output::tell(&format!("{} the VM `{name}` is left out: {error}\n", Style::stderr().yellow("warning:")));
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

/// `hv stats`; gives the exit code.
///
/// # Errors
///
/// There is no such VM.
pub(crate) fn stats(options: &StatsOptions) -> Result<u8, Failure> {
    let status = status(&mut client::find(&client::directory()?, &options.name)?)?;
    output::print(&if options.json { json(&status) } else { sheet(&status, &Style::stdout()) })?;
    Ok(0)
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

fn json(told: &impl serde::Serialize) -> String {
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

/// One VM, with all its figures.
fn sheet(vm: &Status, style: &Style) -> String {
    let time = |ns| show_duration(Duration::from_nanos(ns));
    let c = &vm.counters;
    let s = if vm.vcpus == 1 { "" } else { "s" };
    let head = format!("{} ({}, process {})", printable(&vm.name), printable(&vm.image), vm.pid);
    let rows = [
        (
            "state",
            format!(
                "{}, {} vCPU{s}, up {}",
                vm.state.name(),
                vm.vcpus,
                show_span(Duration::from_nanos(vm.up_ns))
            ),
        ),
        (
            "CPU",
            format!("{} in the monitor, {} in guest code", time(vm.monitor_cpu_ns), time(vm.sandbox_cpu_ns)),
        ),
        ("memory", format!("{}, of which the host holds {}", show_size(vm.memory), show_size(vm.resident))),
        (
            "given up",
            format!(
                "{} reported free, {} of {} in the balloon",
                show_size(vm.reported),
                show_size(vm.ballooned),
                show_size(vm.balloon_target)
            ),
        ),
        ("hypercalls", format!("{} came to the monitor", c.hypercalls)),
        ("traps", format!("{} came to the monitor", c.traps)),
        ("sleeps", format!("{} of the monitor's threads", c.sleeps)),
        ("spinning", format!("{} in the monitor, {} in vCPUs", time(c.host_spin_ns), time(c.guest_spin_ns))),
        ("rewritten", format!("{} system calls of programs, {} have to trap", c.rewritten, c.not_rewritten)),
    ];
    let rows = rows.map(|(name, value)| format!("  {name:10}  {value}\n"));
    format!("{}\n{}", style.bold(&head), rows.concat())
}

#[cfg(test)]
mod tests {
    use super::super::protocol::State;
    use super::*;

    fn status(name: &str) -> Status {
        Status {
            name: name.into(),
            pid: 4711,
            image: "./a\x1b[2Jb".into(),
            state: State::Paused,
            vcpus: 2,
            memory: 64 << 20,
            resident: 4096,
            reported: 8192,
            ballooned: 1 << 20,
            balloon_target: 2 << 20,
            up_ns: 200_000_000_000,
            monitor_cpu_ns: 1_000_000,
            sandbox_cpu_ns: 2_000_000,
            counters: hv_core::engine::Counters::default(),
        }
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

    #[test]
    fn a_sheet_says_all() {
        let text = sheet(&status("a"), &Style::plain());
        for part in [
            "a (./a",
            "process 4711",
            "paused, 2 vCPUs, up 3m 20s",
            "the host holds 4 KiB",
            "1 MiB of 2 MiB",
            "hypercalls",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
    }
}

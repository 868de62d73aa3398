//! `hv bench density`: many idle VMs at once: how fast they are there, what each holds, what they take together, whether all answer.

use crate::bench::idle::{self, Idle, Waiting};
use crate::bench::progress::Steps;
use crate::bench::{Figure, Phase};
use crate::exit_code::Cause;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// VMs that are started before the first of them is waited for. More would only queue, and each is a pipe.
const AT_ONCE: usize = 50;

/// How many VMs there are at once, and how many vCPUs each has.
fn sizes(quick: bool) -> &'static [(usize, u32)] {
    if quick { &[(10, 2)] } else { &[(100, 2), (1000, 1)] }
}

pub(super) fn steps(quick: bool) -> u32 {
    sizes(quick).len() as u32
}

pub(super) fn measure(phase: Phase, quick: bool, progress: &mut Steps) -> Vec<Figure> {
    let one = |(count, vcpus): &(usize, u32)| {
        progress.next(&format!("{count} VMs"));
        of(phase, *count, *vcpus)
    };
    sizes(quick).iter().flat_map(one).collect()
}

/// A directory for the control sockets of these VMs alone.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn of(phase: Phase, count: usize, vcpus: u32) -> Vec<Figure> {
    let directory = Directory(std::env::temp_dir().join(format!("hv-density-{}", std::process::id())));
    let begin = Instant::now();
    let host: io::Result<Vec<_>> = (0..count).map(|_| Waiting::spawn()).collect();
    let host = host.expect("the host has room for as many processes");
    let host_started = begin.elapsed();

    let begin = Instant::now();
    let mut vms = Vec::new();
    let result = start(count, vcpus, &directory.0, &mut vms);
    let started = begin.elapsed();

    let begin = Instant::now();
    let answered = answer(&directory.0);
    let asked = begin.elapsed();

    let processes = idle::processes(&vms);
    let host_processes: Vec<_> = host.iter().map(Waiting::id).collect();
    let [used, host_used] = idle::cpu_ms_in_10_s([&processes.concat(), &host_processes]);
    let dirty = processes.iter().map(|processes| idle::private_dirty_kib(processes)).collect();

    let host_dirty = host_processes.iter().map(|pid| idle::private_dirty_kib(&[*pid])).collect();
    let begin = Instant::now();
    drop(host);
    let host_stopped = begin.elapsed();

    let begin = Instant::now();
    vms.iter().for_each(Idle::signal);
    let codes: Vec<_> = vms.iter_mut().map(|vm| vm.wait().code()).collect();
    let stopped = begin.elapsed();

    // Only now, for a VM would outlive this process.
    result.expect("hv can be run that often at a time");
    assert_eq!(answered.expect("`hv ps` can be run"), count, "not all VMs answer");
    let by_signal = Some(Cause::Terminated.code().into());
    assert!(codes.iter().all(|code| *code == by_signal), "a VM was not stopped: {codes:?}");

    let s = if vcpus == 1 { "" } else { "s" };
    let vm = |what: &str, unit: &str, samples| {
        Figure::new(&format!("{count} idle VMs, {vcpus} vCPU{s}: {what}"), unit, phase, samples)
    };
    let process = |what: &str, unit: &str, samples| {
        Figure::new(&format!("host: {count} processes that wait: {what}"), unit, phase, samples)
    };
    let ms = |time: Duration| vec![time.as_secs_f64() * 1e3];
    let percent = |ms_in_10_s: f64| vec![ms_in_10_s / 100.0];
    let pairs = [
        (
            process("start of all", "ms", ms(host_started)),
            vm("start of all", "ms", ms(started)),
            Some(30_000.0),
        ),
        (
            process("Private_Dirty of each", "KiB", host_dirty),
            vm("Private_Dirty of each", "KiB", dirty),
            Some(2048.0),
        ),
        (
            process("CPU, % of a core", "%", percent(host_used)),
            vm("host CPU, % of a core", "%", percent(used)),
            Some(1.0),
        ),
        (process("stop of all", "ms", ms(host_stopped)), vm("stop of all", "ms", ms(stopped)), None),
    ];
    let mut figures = Vec::new();
    for (host, guest, aim) in pairs {
        let guest = guest.against(&host);
        let guest = match aim {
            Some(most) => guest.at_most(most),
            None => guest,
        };
        figures.extend([host, guest]);
    }
    figures.push(vm("hv ps", "ms", ms(asked)));
    figures
}

fn start(count: usize, vcpus: u32, directory: &Path, vms: &mut Vec<Idle>) -> io::Result<()> {
    while vms.len() < count {
        let first = vms.len();
        for _ in first..count.min(first + AT_ONCE) {
            vms.push(Idle::spawn(directory, vcpus)?);
        }
        vms[first..].iter_mut().try_for_each(Idle::wait_until_idle)?;
    }
    Ok(())
}

/// How many VMs say how they are.
fn answer(directory: &Path) -> io::Result<usize> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = command.args(["ps", "--json"]).env("HV_RUNTIME_DIR", directory).output()?;
    let listed: Value = serde_json::from_slice(&output.stdout)?;
    Ok(listed.as_array().map_or(0, Vec::len))
}

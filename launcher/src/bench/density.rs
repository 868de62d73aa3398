//! `hv bench density`: many idle VMs at once: how fast they are there, what each holds, what they take together, whether all answer.

use crate::bench::idle::{self, Idle};
use crate::bench::phases::Progress;
use crate::bench::{Figure, Phase};
use crate::exit_code::Cause;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// VMs that are started before the first of them is waited for. More would only queue, and each is a pipe.
const AT_ONCE: usize = 50;

/// How many VMs there are at once.
fn counts(quick: bool) -> &'static [usize] {
    if quick { &[10] } else { &[100, 1000] }
}

pub(super) fn steps(quick: bool) -> u32 {
    counts(quick).len() as u32
}

pub(super) fn measure(phase: Phase, quick: bool, progress: &mut Progress) -> Vec<Figure> {
    let one = |count: &usize| {
        progress.next(&format!("{count} VMs"));
        of(phase, *count)
    };
    counts(quick).iter().flat_map(one).collect()
}

/// A directory for the control sockets of these VMs alone.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn of(phase: Phase, count: usize) -> [Figure; 5] {
    let directory = Directory(std::env::temp_dir().join(format!("hv-density-{}", std::process::id())));
    let begin = Instant::now();
    let mut vms = start(count, &directory.0);
    let started = begin.elapsed();

    let begin = Instant::now();
    let answered = answer(&directory.0);
    let asked = begin.elapsed();
    assert_eq!(answered, count, "a VM does not answer");

    let processes = idle::processes(&vms);
    let percent = idle::cpu_ms_in_10_s(&processes) / 100.0;
    let dirty = processes.iter().map(|processes| idle::private_dirty_kib(processes)).collect();

    let begin = Instant::now();
    vms.iter().for_each(Idle::signal);
    for vm in &mut vms {
        let status = vm.wait();
        assert_eq!(status.code(), Some(Cause::Terminated.code().into()), "a VM was not stopped: {status}");
    }
    let stopped = begin.elapsed();

    let row = |what: &str, unit: &str, samples| {
        Figure::new(&format!("{count} idle VMs: {what}"), unit, phase, samples)
    };
    let seconds = |time: Duration| vec![time.as_secs_f64()];
    [
        row("start of all", "s", seconds(started)).at_most(30.0),
        row("hv ps", "s", seconds(asked)),
        row("Private_Dirty of each", "KiB", dirty).at_most(2048.0),
        row("host CPU of all, of a core", "%", vec![percent]).at_most(1.0),
        row("stop of all", "s", seconds(stopped)),
    ]
}

fn start(count: usize, directory: &Path) -> Vec<Idle> {
    let mut vms: Vec<Idle> = Vec::new();
    while vms.len() < count {
        let first = vms.len();
        vms.extend((first..count.min(first + AT_ONCE)).map(|_| Idle::spawn(directory)));
        vms[first..].iter_mut().for_each(Idle::wait_until_idle);
    }
    vms
}

/// How many VMs say how they are.
fn answer(directory: &Path) -> usize {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    let output =
        command.args(["ps", "--json"]).env("HV_RUNTIME_DIR", directory).output().expect("hv can be run");
    let listed: Value = serde_json::from_slice(&output.stdout).expect("`hv ps --json` prints JSON");
    listed.as_array().map_or(0, Vec::len)
}

//! The runner as a program, on a machine that has nothing but itself.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// What the program measures, and what is measured of it.
const ROWS: [&str; 17] = [
    "context switch",
    "file: open, read 4 KiB, close",
    "file: read, a MiB",
    "floating point, 1000 steps",
    "fork, exec, exit, wait",
    "fork, exit, wait",
    "idle: host CPU, % of a core",
    "idle: resident memory",
    "integer, 1000 steps",
    "map, touch, unmap 64 KiB",
    "memcpy, 1 MiB",
    "null system call",
    "page touch, fresh memory",
    "pipe, 1 MiB",
    "pipe, a byte there and back",
    "protect 64 KiB and back, touched",
    "start to first line",
];

/// A directory for results and temporary files.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn temporary(&self) -> PathBuf {
        self.0.path().join("temporary")
    }

    fn results(&self) -> PathBuf {
        self.0.path().join("peers.json")
    }

    /// The runner, for which no program is installed.
    fn runner(&self, arguments: &[&str]) -> Command {
        fs::create_dir_all(self.temporary()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_peers"));
        command.args(arguments).arg("--output").arg(self.results());
        command.env("PATH", self.0.path()).env("TMPDIR", self.temporary());
        command
    }

    fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(self.results()).unwrap()).unwrap()
    }

    fn assert_nothing_is_left(&self) {
        let left: Vec<_> = fs::read_dir(self.temporary()).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_host_gives_every_row_and_what_is_not_there_is_named() {
    let place = Place::new();
    let output = place.runner(&["--quick", "--hv", "/nowhere", "--kernel", "/nowhere"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));

    let report = place.report();
    assert_eq!((&report["schema"], &report["complete"]), (&1.into(), &true.into()));
    let section = &report["sections"][0];
    let notes = section["notes"].as_array().unwrap();
    for (peer, remedy) in [
        ("hv is left out: `/nowhere` is no file", "cargo build --release"),
        ("User-mode Linux is left out", "apt install user-mode-linux"),
        ("gVisor is left out", "apt install runsc"),
        ("QEMU (TCG) is left out", "qemu-system-x86"),
    ] {
        let named = |note: &&Value| note.as_str().is_some_and(|note| note.starts_with(peer));
        let note = notes.iter().find(named).unwrap_or_else(|| panic!("{peer}: {notes:?}"));
        assert!(note.as_str().unwrap().contains(remedy), "{note}");
        assert!(text(&output).contains(note.as_str().unwrap()));
    }
    let figures = section["figures"].as_array().unwrap();
    assert!(figures.iter().all(|figure| figure["peer"] == "host" && figure["median"].is_number()));
    let rows: BTreeSet<&str> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    assert_eq!(rows, BTreeSet::from(ROWS));
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(figures.len(), ROWS.len() * cores.min(2), "a row for each phase");
    place.assert_nothing_is_left();
}

#[test]
fn ctrl_c_ends_it_with_all_processes_and_keeps_what_there_is() {
    let place = Place::new();
    let runner =
        place.runner(&["--only", "host"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_child(&runner);
    let programs = wait_for_children(runner.id());

    kill_process(pid, Signal::INT).unwrap();

    let output = runner.wait_with_output().unwrap();
    assert!(!output.status.success() && text(&output).contains("interrupted"), "{}", text(&output));
    assert_eq!(place.report()["complete"], false);
    let is_left = |pid: &&String| Path::new("/proc").join(pid).exists();
    assert_eq!(programs.iter().find(is_left), None);
    place.assert_nothing_is_left();
}

/// The processes that a process has started, once there are any.
fn wait_for_children(pid: u32) -> Vec<String> {
    let begun = Instant::now();
    loop {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        if !children.is_empty() {
            return children.split_whitespace().map(str::to_owned).collect();
        }
        assert!(begun.elapsed() < PATIENCE, "the runner starts nothing");
        std::thread::sleep(Duration::from_millis(1));
    }
}

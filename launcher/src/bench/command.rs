//! `hv` as a whole process: how long it takes, and what it holds while its guest idles.

use crate::bench::host::warmed;
use crate::bench::{Figure, Phase};
use crate::cpu_time;
use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn hv() -> Command {
    Command::new(std::env::current_exe().expect("this program has a path"))
}

/// `hv run hello`, from its start until it is gone.
pub(super) fn run_hello(phase: Phase) -> Figure {
    let once = || {
        let start = Instant::now();
        let output = hv().args(["run", "hello"]).output().expect("hv can be run");
        assert!(output.status.success(), "hv run hello failed");
        start.elapsed().as_nanos() as f64 / 1e6
    };
    Figure::new("hv run hello, whole process", "ms", phase, warmed(31, once))
}

/// A VM in a process of its own whose guest does nothing; ended when dropped.
struct Idle(Child);

impl Idle {
    fn start() -> Self {
        let mut child = hv()
            .args(["run", "bench", "--", "idle"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("hv can be run");
        let mut line = [0; 5];
        child.stdout.as_mut().expect("piped").read_exact(&mut line).expect("the guest says that it is there");
        Self(child)
    }

    /// The monitor and its sandboxes.
    fn processes(&self) -> Vec<u32> {
        let monitor = self.0.id();
        let parent = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok())
                == Some(monitor)
        };
        let all = fs::read_dir("/proc").expect("/proc is mounted");
        let all = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        std::iter::once(monitor).chain(all.filter(parent)).collect()
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// What an idle VM's processes hold for themselves alone, and the processor time that they take in ten seconds.
pub(super) fn idle(phase: Phase) -> [Figure; 2] {
    // Pages of a program just built are dirty until they are written to disk, which is no memory of the VM's.
    if let Ok(program) = std::env::current_exe().and_then(fs::File::open) {
        let _ = program.sync_all();
    }
    let vm = Idle::start();
    std::thread::sleep(Duration::from_millis(500));
    let processes = vm.processes();
    let before = cpu_time::of_threads(&processes);
    std::thread::sleep(Duration::from_secs(10));
    let used = (cpu_time::of_threads(&processes) - before) as f64 / 1e6;
    let dirty = processes.iter().map(|pid| private_dirty_kib(*pid)).sum();
    [
        Figure::new("Private_Dirty of an idle VM", "KiB", phase, vec![dirty]),
        Figure::new("host CPU of an idle VM in 10 s", "ms", phase, vec![used]),
    ]
}

fn private_dirty_kib(pid: u32) -> f64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0.0)
}

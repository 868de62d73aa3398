//! `hv` as a whole process: how long it takes, and what it holds while its guest idles.

use crate::bench::host::warmed;
use crate::bench::idle::{self, Idle, Waiting};
use crate::bench::{Figure, Phase, guest};
use clap::ValueEnum;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

fn hv() -> Command {
    Command::new(std::env::current_exe().expect("this program has a path"))
}

/// `hv run hello`, from its start until it is gone.
pub(super) fn run_hello(phase: Phase) -> Figure {
    let engine = guest::engine().to_possible_value().expect("no engine is left out");
    let once = || {
        let start = Instant::now();
        let output =
            hv().args(["run", "hello", "--engine", engine.get_name()]).output().expect("hv can be run");
        assert!(output.status.success(), "hv run hello failed");
        start.elapsed().as_nanos() as f64 / 1e3
    };
    Figure::new("hv run hello, whole process", "us", phase, warmed(31, once))
}

/// What an idle VM's processes hold for themselves alone, and the processor time that they take in ten seconds, beside a process
/// of the host's that waits.
pub(super) fn idle(phase: Phase) -> [Figure; 4] {
    // Pages of a program just built are dirty until they are written to disk, which is no memory of the VM's.
    if let Ok(program) = std::env::current_exe().and_then(fs::File::open) {
        let _ = program.sync_all();
    }
    let directory = std::env::temp_dir().join(format!("hv-idle-{}", std::process::id()));
    let host = Waiting::spawn().expect("a process can be started");
    let mut vm = Idle::spawn(&directory, 1).expect("hv can be run");
    vm.wait_until_idle().expect("the guest says that it is there");
    std::thread::sleep(Duration::from_millis(500));
    let vms = [vm];
    let [vm, host_process] = [idle::processes(&vms).concat(), vec![host.id()]];
    let [used, host_used] = idle::cpu_ms_in_10_s([&vm, &host_process]);
    let [dirty, host_dirty] = [vm, host_process].map(|processes| idle::private_dirty_kib(&processes));
    drop(vms);
    let _ = fs::remove_dir_all(directory);
    let dirty_row = |name: &str, kib| Figure::new(name, "KiB", phase, vec![kib]);
    let used_row = |name: &str, ms| Figure::new(name, "ms", phase, vec![ms]);
    let host_dirty = dirty_row("host: Private_Dirty of a process that waits", host_dirty);
    let host_used = used_row("host: CPU of a process that waits, in 10 s", host_used);
    let dirty = dirty_row("Private_Dirty of an idle VM", dirty).against(&host_dirty).at_most(1024.0);
    let used = used_row("host CPU of an idle VM in 10 s", used).against(&host_used).at_most(0.1);
    [host_dirty, dirty, host_used, used]
}

//! `hv` as a whole process: how long it takes, and what it holds while its guest idles.

use crate::bench::host::warmed;
use crate::bench::idle::{self, Idle};
use crate::bench::{Figure, Phase};
use std::fs;
use std::process::Command;
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

/// What an idle VM's processes hold for themselves alone, and the processor time that they take in ten seconds.
pub(super) fn idle(phase: Phase) -> [Figure; 2] {
    // Pages of a program just built are dirty until they are written to disk, which is no memory of the VM's.
    if let Ok(program) = std::env::current_exe().and_then(fs::File::open) {
        let _ = program.sync_all();
    }
    let directory = std::env::temp_dir().join(format!("hv-idle-{}", std::process::id()));
    let mut vm = Idle::spawn(&directory, 1).expect("hv can be run");
    vm.wait_until_idle().expect("the guest says that it is there");
    std::thread::sleep(Duration::from_millis(500));
    let vms = [vm];
    let processes = idle::processes(&vms);
    let used = idle::cpu_ms_in_10_s(&processes);
    let dirty = idle::private_dirty_kib(&processes.concat());
    drop(vms);
    let _ = fs::remove_dir_all(directory);
    [
        Figure::new("Private_Dirty of an idle VM", "KiB", phase, vec![dirty]),
        Figure::new("host CPU of an idle VM in 10 s", "ms", phase, vec![used]),
    ]
}

//! VMs whose guests do nothing, each in a process of its own, and what they hold and take.

use crate::bench::host;
use crate::cpu_time;
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How long processor time is counted.
const COUNTED: Duration = Duration::from_secs(10);

/// A VM whose guest does nothing; ended when dropped.
pub(super) struct Idle(Child);

impl Idle {
    /// Starts one with so many vCPUs, which may not be there yet. Its control socket is in that directory.
    pub(super) fn spawn(directory: &Path, vcpus: u32) -> io::Result<Self> {
        let child = Command::new(std::env::current_exe()?)
            .args(["run", "--cpus", &vcpus.to_string(), "bench", "--", "idle"])
            .env("HV_RUNTIME_DIR", directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        child.map(Self)
    }

    /// Waits until its guest has said that it idles. It says nothing more, so the pipe is closed.
    pub(super) fn wait_until_idle(&mut self) -> io::Result<()> {
        let mut stdout = self.0.stdout.take().expect("it is waited for once");
        stdout.read_exact(&mut [0; 5])
    }

    /// Asks it to stop.
    pub(super) fn signal(&self) {
        if let Some(pid) = Pid::from_raw(self.0.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }

    /// Waits until it has ended.
    pub(super) fn wait(&mut self) -> ExitStatus {
        self.0.wait().expect("a child can be waited for")
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.signal();
        let _ = self.0.wait();
    }
}

/// A process of the host's that does nothing, as small as one can be; ended when dropped.
pub(super) struct Waiting(Child);

impl Waiting {
    pub(super) fn spawn() -> io::Result<Self> {
        let program = host::waiting_program();
        let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdout = child.stdout.take().expect("it is piped");
        let waiting = Self(child);
        stdout.read_exact(&mut [0; 6])?;
        Ok(waiting)
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The processes of each VM: its monitor and its sandboxes.
pub(super) fn processes(vms: &[Idle]) -> Vec<Vec<u32>> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    };
    let mut children = HashMap::<u32, Vec<u32>>::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted") {
        let pid = entry.ok().and_then(|entry| entry.file_name().to_str()?.parse().ok());
        if let Some((pid, parent)) = pid.and_then(|pid| Some((pid, parent(pid)?))) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let of = |vm: &Idle| {
        let monitor = vm.0.id();
        std::iter::once(monitor).chain(children.remove(&monitor).unwrap_or_default()).collect()
    };
    vms.iter().map(of).collect()
}

/// KiB that processes hold for themselves alone.
pub(super) fn private_dirty_kib(processes: &[u32]) -> f64 {
    let of = |pid: &u32| -> Option<f64> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:"))?;
        line.split_whitespace().next()?.parse().ok()
    };
    processes.iter().filter_map(of).sum()
}

/// Milliseconds of processor time that these processes take in the same ten seconds, each list for itself.
pub(super) fn cpu_ms_in_10_s<const N: usize>(lists: [&[u32]; N]) -> [f64; N] {
    let before = lists.map(cpu_time::of_threads);
    std::thread::sleep(COUNTED);
    let mut after = lists.map(cpu_time::of_threads).into_iter();
    before.map(|before| (after.next().expect("there are as many") - before) as f64 / 1e6)
}

//! The guest `gap` in a VM, for as long as it is looked at.

use crate::bench::guest::config;
use crate::cpu_time;
use crate::exit_code::Cause;
use crate::failure::Failure;
use hv_core::Vm;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_getcpu, sched_setaffinity};
use std::fs;
use std::io;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// How long a guest may take for a line. The slowest, vCPUs that queue for a ticket, take a second or two.
const PATIENCE: Duration = Duration::from_secs(60);

/// Processors that may be used.
pub(super) fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

/// A VM that does one thing in one way, and is ended when this is dropped.
pub(super) struct Guest {
    vm: Vm,
    words: [String; 3],
    console: Receiver<(Instant, Vec<u8>)>,
    /// What it has written and nobody has taken.
    text: String,
}

impl Guest {
    /// Starts it, as the guest's usage has it.
    pub(super) fn start(pair: &str, way: &str, count: u32, vcpus: u32) -> Result<Self, Failure> {
        let words = [pair.to_owned(), way.to_owned(), count.to_string()];
        let (mut config, console) = config("gap", &words.each_ref().map(String::as_str));
        config.vcpus = vcpus;
        let vm = Vm::start(config)
            .map_err(|error| Failure::cannot(format!("the guest `gap {pair} {way}` did not start"), error))?;
        Ok(Self { vm, words, console, text: String::new() })
    }

    /// Waits for the next line that it writes.
    pub(super) fn line(&mut self) -> Result<String, Failure> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let line = line.to_owned();
                self.text = rest.to_owned();
                return Ok(line);
            }
            let Ok((_, bytes)) = self.console.recv_timeout(PATIENCE) else {
                let what = format!("the guest `gap {}` did not go on within a minute", self.words.join(" "));
                return Err(
                    Failure::new(Cause::CannotStart, what).advise("try again when the machine is less busy")
                );
            };
            self.text.push_str(&String::from_utf8_lossy(&bytes));
        }
    }

    /// Waits for so many numbers.
    pub(super) fn numbers<const N: usize>(&mut self) -> Result<[f64; N], Failure> {
        let mut numbers = Vec::new();
        while numbers.len() < N {
            let line = self.line()?;
            numbers.extend(line.split(' ').filter_map(|word| word.parse::<f64>().ok()));
        }
        <[f64; N]>::try_from(numbers).map_err(|numbers| {
            let found = io::Error::other(format!("expected {N} numbers, found {numbers:?}"));
            Failure::cannot(format!("the guest `gap {}` is another than hv's", self.words.join(" ")), found)
        })
    }

    /// Processor time of its sandboxes, and of this process, which is its monitor, but for the thread that looks. What this
    /// process does for another VM counts, too.
    pub(super) fn cpu_ns(&self) -> u64 {
        let monitor = cpu_time::of_this_process() - cpu_time::of_this_thread();
        cpu_time::of_threads(&self.vm.processes()) + monitor
    }

    /// Bytes that the host has spent on its memory.
    pub(super) fn host_memory(&self) -> u64 {
        self.vm.memory_stats().host
    }
}

/// Keeps this process, with the VMs that it starts, on one processor until it is dropped.
pub(super) struct OneCore {
    before: CpuSet,
}

impl OneCore {
    pub(super) fn enter() -> Result<Self, Failure> {
        let cannot = |error| Failure::cannot("the demo could not be pinned to one core", error);
        let before = sched_getaffinity(None).map_err(|error| cannot(error.into()))?;
        let mut one = CpuSet::new();
        one.set(sched_getcpu());
        set_all_threads(&one).map_err(cannot)?;
        Ok(Self { before })
    }
}

impl Drop for OneCore {
    fn drop(&mut self) {
        let _ = set_all_threads(&self.before); // nothing that was allowed before is refused
    }
}

/// The thread that starts sandboxes may be there already, so it is not enough that this one says where it runs.
fn set_all_threads(processors: &CpuSet) -> io::Result<()> {
    for task in fs::read_dir("/proc/self/task")? {
        let thread = task?.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        match sched_setaffinity(thread, processors) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {} // it has ended meanwhile
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

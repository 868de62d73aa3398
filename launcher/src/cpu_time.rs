//! Processor time of processes, as the host counts it: to the nanosecond, and nothing that a guest could forge.

use rustix::param::clock_ticks_per_second;
use rustix::time::{ClockId, clock_gettime};
use std::fs;

const NS_PER_S: u64 = 1_000_000_000;

/// Of this process.
pub(crate) fn of_this_process() -> u64 {
    of_clock(ClockId::ProcessCPUTime)
}

/// Of this thread.
pub(crate) fn of_this_thread() -> u64 {
    of_clock(ClockId::ThreadCPUTime)
}

fn of_clock(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec as u64 * NS_PER_S + time.tv_nsec as u64
}

/// Of the threads that these processes have; none for one that is gone.
pub(crate) fn of_threads(processes: &[u32]) -> u64 {
    let tasks = processes.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten();
    let time = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    tasks.filter_map(|task| time(task.ok()?)).sum()
}

/// Of children of this process that have gone, to the hundredth of a second.
pub(crate) fn of_gone_children() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    gone_children(&stat).unwrap_or(0) * (NS_PER_S / clock_ticks_per_second())
}

/// Their ticks, in user mode and for them in the kernel.
fn gone_children(stat: &str) -> Option<u64> {
    const USER: usize = 13; // after the name, which may be of any characters, and its parenthesis
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut ticks = rest.split(' ').skip(USER).map(str::parse::<u64>);
    Some(ticks.next()?.ok()? + ticks.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_gone_children_are_found_whatever_the_name() {
        let stat = "77 (a) b) (c) S 1 77 77 0 -1 4194304 100 0 0 0 5 6 70 8 20 0 1 0 100 200 300";
        assert_eq!(gone_children(stat), Some(78));
        assert_eq!(gone_children("77 (cut"), None);
    }

    #[test]
    fn a_process_that_computes_takes_time() {
        let before = of_this_process();
        let threads = of_threads(&[std::process::id()]);
        while of_this_process() < before + 20_000_000 {
            core::hint::spin_loop();
        }
        assert!(of_threads(&[std::process::id()]) > threads);
        assert_eq!(of_threads(&[u32::MAX]), 0);
    }
}

//! The processes that a peer consists of: all that descend from this one. What they hold and use, and how they are ended.

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::{Duration, Instant};

/// How long processes may take to be gone once they were killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// All processes that descend from this one.
pub(crate) fn descendants() -> Vec<u32> {
    let mut children = HashMap::<u32, Vec<u32>>::new();
    let processes = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    for pid in processes {
        if let Some(parent) = parent(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![std::process::id()];
    while let Some(pid) = next.pop() {
        let more = children.remove(&pid).unwrap_or_default();
        found.extend_from_slice(&more);
        next.extend(more);
    }
    found
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

/// Nanoseconds of processor time that their threads have had.
pub(crate) fn cpu_time(processes: &[u32]) -> u64 {
    let tasks = processes.iter().filter_map(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).flatten();
    let time = |task: fs::DirEntry| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    };
    tasks.filter_map(|task| time(task.ok()?)).sum()
}

/// KiB of memory that they have, where each part of what several share is counted for one of them.
///
/// # Errors
///
/// The memory of one that is there cannot be looked at.
pub(crate) fn memory_kib(processes: &[u32]) -> io::Result<f64> {
    let mut sum = 0.0;
    for pid in processes {
        match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
            Ok(rollup) => sum += proportional_kib(&rollup).unwrap_or(0.0),
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {} // it has ended
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}

fn proportional_kib(rollup: &str) -> Option<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Ends all processes that descend from this one, and waits until they are gone.
pub(crate) fn end_all() {
    let begun = Instant::now();
    loop {
        for pid in descendants() {
            if let Some(pid) = Pid::from_raw(pid as i32) {
                let _ = kill_process(pid, Signal::KILL); // it may be gone by now
            }
        }
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        if descendants().is_empty() {
            return;
        }
        if begun.elapsed() > PATIENCE {
            eprintln!("peers: processes {:?} were killed and do not end", descendants());
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_proportional_part() {
        let rollup = "00400000-7fff ---p 00000000 00:00 0 [rollup]\nRss: 900 kB\nPss:                 123 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(proportional_kib(rollup), Some(123.0));
        assert!(memory_kib(&[std::process::id()]).unwrap() > 0.0);
        assert_eq!(memory_kib(&[u32::MAX]).unwrap(), 0.0);
    }
}

//! The host processes of a VM, all together: what processor time they have had, and holding them back.
//!
//! A guest cannot forge either. The time is the host's own, of whole processes, so it does not matter which thread ran and
//! what it says of itself; a process is read a last time when it is dead and its number not yet given to another. And no
//! process can block or handle SIGSTOP. A process that starts while the others are held back is stopped before it has done
//! anything.

use super::spawn::Bill;
use crate::cpu_clock;
use rustix::fd::OwnedFd;
use rustix::process::{Signal, pidfd_send_signal};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};

#[derive(Debug, Default)]
pub(super) struct Processes {
    inner: Mutex<Inner>,
    bill: Bill,
}

#[derive(Debug, Default)]
struct Inner {
    live: Vec<(i32, Arc<OwnedFd>)>,
    /// Processor time of those that are gone, in nanoseconds.
    gone: u64,
    held_back: bool,
}

impl Processes {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no thread panics with the lock held")
    }

    /// Where the spawner writes what it did for them: a guest that starts and ends many has it do much.
    pub(super) fn bill(&self) -> Bill {
        self.bill.clone()
    }

    /// One has started.
    pub(super) fn started(&self, pid: i32, handle: &Arc<OwnedFd>) {
        let mut inner = self.lock();
        if inner.held_back {
            send(handle, Signal::STOP);
        }
        inner.live.push((pid, handle.clone()));
    }

    /// One is dead, and its number still its own.
    pub(super) fn died(&self, pid: i32) {
        let mut inner = self.lock();
        inner.live.retain(|(other, _)| *other != pid);
        inner.gone += cpu_time(pid);
    }

    /// Processor time that all have had, with the spawner's for them, in nanoseconds.
    pub(super) fn cpu_time(&self) -> u64 {
        let inner = self.lock();
        self.bill.load(Relaxed) + inner.gone + inner.live.iter().map(|(pid, _)| cpu_time(*pid)).sum::<u64>()
    }

    /// Stops all, also those that are yet to start, or lets them go on.
    pub(super) fn hold_back(&self, held_back: bool) {
        let mut inner = self.lock();
        inner.held_back = held_back;
        let signal = if held_back { Signal::STOP } else { Signal::CONT };
        inner.live.iter().for_each(|(_, handle)| send(handle, signal));
    }
}

/// Fails only if the process is dead.
fn send(handle: &OwnedFd, signal: Signal) {
    let _ = pidfd_send_signal(handle, signal);
}

/// Processor time that a child has had which was not waited for.
fn cpu_time(pid: i32) -> u64 {
    let time = cpu_clock::process(pid);
    debug_assert!(time.is_some(), "a child that was not waited for has a clock");
    time.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    fn busy() -> (Child, i32, Arc<OwnedFd>) {
        let child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("there is a shell");
        let pid = child.id() as i32;
        let handle = pidfd_open(Pid::from_raw(pid).expect("not 0"), PidfdFlags::empty()).expect("it lives");
        (child, pid, Arc::new(handle))
    }

    fn state(pid: i32) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it is there");
        stat.rsplit_once(") ").expect("a state").1.chars().next().expect("a state")
    }

    fn wait_until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn held_back_none_runs_also_one_that_starts_meanwhile() {
        let processes = Processes::default();
        let (mut first, first_pid, handle) = busy();
        processes.started(first_pid, &handle);
        processes.hold_back(true);
        let (mut second, second_pid, handle) = busy();
        processes.started(second_pid, &handle);
        for pid in [first_pid, second_pid] {
            wait_until("it is stopped", || state(pid) == 'T');
        }
        let before = processes.cpu_time();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(processes.cpu_time(), before);
        processes.hold_back(false);
        wait_until("they run", || processes.cpu_time() > before);
        for child in [&mut first, &mut second] {
            child.kill().expect("it lives");
            child.wait().expect("it is a child");
        }
    }

    #[test]
    fn the_time_of_one_that_is_gone_counts() {
        let processes = Processes::default();
        let (mut child, pid, handle) = busy();
        processes.started(pid, &handle);
        wait_until("it has run", || processes.cpu_time() > 20_000_000);
        child.kill().expect("it lives");
        wait_until("it is dead", || state(pid) == 'Z');
        let dead = processes.cpu_time();
        processes.died(pid);
        child.wait().expect("it is a child");
        assert!(dead > 20_000_000);
        assert_eq!(processes.cpu_time(), dead);
    }
}

//! The host's clocks of processor time: what a thread or a process has had, which nothing that it does can change.

#![expect(unsafe_code, reason = "clocks of other threads and processes")]

use rustix::time::{ClockId, Timespec, clock_gettime};
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;

fn nanoseconds(time: &Timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Processor time that this thread has had, in nanoseconds.
pub(crate) fn this_thread() -> u64 {
    nanoseconds(&clock_gettime(ClockId::ThreadCPUTime))
}

/// The clock of a thread of this process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// The clock of a thread that is not joined yet. `None` if it has ended.
    pub(crate) fn of<T>(thread: &JoinHandle<T>) -> Option<Self> {
        let mut clock = 0;
        // SAFETY: `pthread_getcpuclockid` needs a thread that is neither joined nor detached, and stores an integer. The
        // handle is borrowed, and joining takes it.
        let failed = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) } != 0;
        (!failed).then_some(Self(clock))
    }

    /// Processor time that it has had, in nanoseconds; `None` when it is gone.
    pub(crate) fn read(self) -> Option<u64> {
        read(self.0)
    }
}

/// Processor time that a process has had, all its threads together, in nanoseconds. A dead one has its clock until it is
/// waited for.
pub(crate) fn process(pid: i32) -> Option<u64> {
    let mut clock = 0;
    // SAFETY: takes an integer, and stores one.
    let failed = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } != 0;
    if failed { None } else { read(clock) }
}

fn read(clock: libc::clockid_t) -> Option<u64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: takes an integer and a pointer to what it stores.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) } != 0;
    (!failed).then(|| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_clock_of_a_thread_shows_what_it_has_used() {
        let (say, hear) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            while this_thread() < 5_000_000 {}
            let _ = hear.recv();
            this_thread()
        });
        let clock = ThreadClock::of(&thread).expect("it has not ended");
        while clock.read().expect("it has not ended") < 5_000_000 {
            std::thread::yield_now();
        }
        drop(say);
        assert!(thread.join().unwrap() >= 5_000_000);
    }

    #[test]
    fn a_process_has_used_more_than_a_thread_of_it() {
        let thread = this_thread();
        assert!(process(std::process::id() as i32).expect("it is this one") >= thread);
    }
}

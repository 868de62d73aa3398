//! The signals that ask `hv` to end, as something that a thread can wait for, together with a deadline, without
//! polling: an idle VM must cost no CPU.

use crate::exit_code::Cause;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::low_level::pipe;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

const ENDING: [(i32, Cause); 3] =
    [(SIGHUP, Cause::HangUp), (SIGINT, Cause::Interrupt), (SIGTERM, Cause::Terminated)];

/// Signals that have come, or will. One pipe for each: a handler may do no more than write to it.
pub(crate) struct Signals {
    pipes: Vec<(Cause, UnixStream)>,
}

impl Signals {
    /// From here on these signals no longer end the process.
    ///
    /// One that is ignored stays ignored: whoever started `hv` with `nohup`, or in the background of a script, meant it.
    ///
    /// # Errors
    ///
    /// The host has no descriptors left.
    pub(crate) fn catch() -> io::Result<Self> {
        let ignored = ignored();
        let mut pipes = Vec::new();
        for (signal, cause) in ENDING {
            if ignored >> (signal - 1) & 1 == 0 {
                let (read, write) = UnixStream::pair()?;
                pipe::register(signal, write)?;
                pipes.push((cause, read));
            }
        }
        Ok(Self { pipes })
    }

    /// Waits for one signal; [`Cause::TimeOut`] once `deadline` has come.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Cause {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut waits: Vec<_> =
                self.pipes.iter().map(|(_, pipe)| PollFd::new(pipe, PollFlags::IN)).collect();
            // An error is an interruption by the handler, which has written by then.
            if poll(&mut waits, timeout.as_ref()) == Ok(0) {
                return Cause::TimeOut;
            }
            let mut ready = self.pipes.iter().zip(&waits).filter(|(_, wait)| !wait.revents().is_empty());
            if let Some(((cause, pipe), _)) = ready.next() {
                let mut pipe = pipe;
                let _ = pipe.read(&mut [0]); // takes one signal; there is one, poll says
                return *cause;
            }
        }
    }
}

/// A pipe in which there is something whenever the terminal's window has changed.
///
/// # Errors
///
/// The host has no descriptors left.
pub(crate) fn window_changes() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    pipe::register(SIGWINCH, write)?;
    Ok(read)
}

/// The set of signals that this process ignores, as the kernel gives it; none if it does not say.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

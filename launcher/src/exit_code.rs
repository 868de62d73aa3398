//! The exit codes of `hv run`, in one table: scripts rely on them, and `hv run --help` prints them from here.
//!
//! A guest may shut down with any code, also with one of these. The shell cannot tell the two apart; the
//! [`Cause`] in the JSON report can.

use serde::Serialize;
use std::fmt::Write;

/// Why `hv` ended as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cause {
    /// The guest shut itself down: its own code is the command's.
    Shutdown,
    /// The guest kernel panicked.
    Panic,
    /// `--timeout` ran out.
    TimeOut,
    /// `hv` itself could not do it.
    CannotStart,
    /// The image was found and cannot run.
    BadImage,
    /// There is no such image.
    NoImage,
    /// SIGHUP: the terminal went away.
    HangUp,
    /// SIGINT: Ctrl-C.
    Interrupt,
    /// The guest kernel crashed.
    Crash,
    /// A vCPU did not stop when it was asked to.
    Unanswered,
    /// The sandbox process is gone.
    Died,
    /// Nobody reads standard output any more, and the guest wrote to it.
    ReaderGone,
    /// SIGTERM.
    Terminated,
    /// gdb's `kill`.
    Killed,
    /// `hv stop`: as by SIGTERM, so it has that code.
    Stopped,
}

/// Each cause but [`Cause::Shutdown`], with its code, in the order of the codes.
const TABLE: &[(Cause, u8, &str)] = &[
    (Cause::Panic, 101, "the guest panicked"),
    (Cause::TimeOut, 124, "the guest ran longer than --timeout allows"),
    (Cause::CannotStart, 125, "hv could not do it: the host refused, or an option does not fit"),
    (Cause::BadImage, 126, "the image cannot run"),
    (Cause::NoImage, 127, "there is no such image"),
    (Cause::HangUp, 129, "stopped by SIGHUP"),
    (Cause::Interrupt, 130, "stopped by Ctrl-C (SIGINT)"),
    (Cause::Crash, 134, "the guest crashed"),
    (Cause::Unanswered, 135, "a vCPU did not stop when it was asked to, and was ended"),
    (Cause::Died, 136, "the sandbox process is gone, without a word"),
    (Cause::Killed, 137, "killed from gdb"),
    (Cause::ReaderGone, 141, "the guest wrote, and nobody reads its output any more, as in `| head -1`"),
    (Cause::Terminated, 143, "stopped by SIGTERM"),
    (Cause::Stopped, 143, "stopped by `hv stop`"),
];

impl Cause {
    /// Its exit code; 0 for [`Cause::Shutdown`], where the guest's own code counts.
    pub(crate) fn code(self) -> u8 {
        TABLE.iter().find(|row| row.0 == self).map_or(0, |row| row.1)
    }
}

/// The table, as `hv run --help` shows it.
pub(crate) fn help() -> String {
    let mut text = String::from("Exit codes:\n  0-255  the code with which the guest shut down\n");
    text.push_str("      2  the command line is wrong\n");
    for (_, code, meaning) in TABLE {
        writeln!(text, "  {code:>5}  {meaning}").expect("a string takes it");
    }
    text.push_str(
        "A guest that shuts down with one of these codes gives the same number; --json tells them apart.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order() {
        assert!(TABLE.windows(2).all(|pair| pair[0].1 <= pair[1].1));
    }

    #[test]
    fn only_a_shutdown_is_not_in_the_table() {
        assert_eq!(Cause::Shutdown.code(), 0);
        assert_eq!(Cause::Panic.code(), 101);
        assert!(TABLE.iter().all(|row| row.0.code() == row.1));
    }
}

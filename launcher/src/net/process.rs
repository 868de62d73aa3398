//! Starting a process that serves a network, and saying from inside it that it is ready.
//!
//! It is this program again, with a socket as its standard input. On its standard output it says one line: that it is ready and has
//! given up its rights, or why it cannot. So whoever starts it can tell its user.

use crate::failure::{self, Failure};
use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// What a process says when it is.
const READY: &str = "ready";

/// No error is longer.
const LONGEST_LINE: u64 = 4096;

/// The command that runs this program again with these arguments and this socket.
pub(super) fn again<'a>(arguments: impl IntoIterator<Item = &'a str>, socket: OwnedFd) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(arguments).stdin(socket).stdout(Stdio::piped());
    command.process_group(0); // what is typed to end a VM is not for it: it ends when the VM has
    command
}

/// Starts it, and waits until it is ready. Nobody waits for its end: it is told by its socket.
///
/// # Errors
///
/// It was not started, or could not do what it is for; with its own reason.
pub(super) fn start(mut command: Command, what: &str) -> Result<(), Failure> {
    let cannot = |error| Failure::cannot(format!("{what} could not be started"), error);
    let mut child = command.spawn().map_err(cannot)?;
    drop(command); // and with it this process's end of the socket
    let stdout = child.stdout.take().expect("it is a pipe");
    let mut line = String::new();
    BufReader::new(stdout.take(LONGEST_LINE)).read_line(&mut line).map_err(cannot)?;
    match line.trim_end() {
        READY => Ok(()),
        "" => Err(cannot(io::Error::other("it ended and gave no reason"))),
        reason => Err(cannot(io::Error::other(reason.to_owned()))),
    }
}

/// What a process has on its standard input.
pub(super) fn socket() -> io::Result<OwnedFd> {
    rustix::stdio::stdin().try_clone_to_owned()
}

/// Prepares, and tells whoever started this process how that went. Gives what was prepared; `None` if that failed, and there is
/// nothing more to say.
pub(super) fn prepare<T>(prepare: impl FnOnce() -> Result<T, Box<dyn Error + Send + Sync>>) -> Option<T> {
    let prepared = prepare();
    let line = match &prepared {
        Ok(_) => READY.into(),
        Err(error) => failure::chain(&**error).join(": "),
    };
    let told = writeln!(io::stdout(), "{line}");
    prepared.ok().filter(|_| told.is_ok())
}

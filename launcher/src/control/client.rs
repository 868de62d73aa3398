//! The other end: finds VMs by their names, and asks.

use super::directory::{Directory, Name};
use super::protocol::{Answer, LONGEST_ANSWER, LONGEST_LINE, Outcome, Request, VERSION, Wanted};
use crate::exit_code::Cause;
use crate::failure::Failure;
use serde::de::DeserializeOwned;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long a VM may take to answer. A pause may take it a second.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// How long `hv ps` and `hv stats` wait for all of them.
pub(crate) const PATIENCE_WITH_ALL: Duration = Duration::from_secs(3);

/// So many names are told to somebody who looks for another.
const MOST_TOLD: usize = 10;

/// A VM that listens.
pub(crate) struct Connection {
    pub(crate) name: Name,
    stream: BufReader<UnixStream>,
    /// The beginning of an answer, of which the rest did not come in time.
    received: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// It has ended.
    #[error("it has ended")]
    Gone,
    /// Its monitor does not run, or the host is slow.
    #[error("it does not answer; is its process stopped?")]
    Late,
    #[error("its answer is not one that this hv knows")]
    Unknown(#[source] serde_json::Error),
    #[error(transparent)]
    Host(io::Error),
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => Self::Gone,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Late,
            _ => Self::Host(error),
        }
    }
}

impl Connection {
    /// To the VM of that name, if there is one.
    pub(super) fn open(directory: &Directory, name: Name) -> io::Result<Option<Self>> {
        Ok(directory.connect(&name.file())?.map(|stream| Self {
            name,
            stream: BufReader::new(stream),
            received: Vec::new(),
        }))
    }

    pub(super) fn send(&mut self, wanted: Wanted) -> Result<(), NoAnswer> {
        let request = Request { version: VERSION, wanted };
        let line = serde_json::to_string(&request).expect("numbers and texts are JSON");
        let stream = self.stream.get_mut();
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream.write_all(format!("{line}\n").as_bytes())?)
    }

    /// The answer to what was sent, if it comes until then.
    pub(super) fn receive(&mut self, until: Instant) -> Result<Outcome, NoAnswer> {
        self.wait_until(until)?;
        let longest = LONGEST_ANSWER.saturating_sub(self.received.len()) as u64;
        (&mut self.stream).take(longest).read_until(b'\n', &mut self.received)?;
        let line = std::mem::take(&mut self.received);
        if line.is_empty() {
            return Err(NoAnswer::Gone);
        }
        serde_json::from_slice(&line).map(|answer: Answer| answer.outcome).map_err(NoAnswer::Unknown)
    }

    /// Asks for something that is told line by line.
    ///
    /// # Errors
    ///
    /// As [`ask`](Self::ask).
    pub(crate) fn stream(mut self, wanted: Wanted) -> Result<Lines, Failure> {
        self.ask(wanted)?;
        let ready = self.stream.get_mut().set_read_timeout(Some(PATIENCE));
        ready.map_err(|error| Failure::cannot(format!("`{}` cannot be listened to", self.name), error))?;
        Ok(Lines { stream: self.stream })
    }

    /// Waits until the other end has closed the connection.
    pub(super) fn wait_for_end(&mut self, until: Instant) -> Result<(), NoAnswer> {
        self.wait_until(until)?;
        match self.stream.read(&mut [0]).map_err(NoAnswer::from) {
            Ok(_) | Err(NoAnswer::Gone) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads wait so long from here on.
    fn wait_until(&mut self, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        self.stream.get_mut().set_read_timeout(Some(left.max(Duration::from_millis(1))))
    }

    /// Asks for something, and waits for its answer.
    ///
    /// # Errors
    ///
    /// There is none, or the VM says why not.
    pub(super) fn ask(&mut self, wanted: Wanted) -> Result<Outcome, Failure> {
        let answer = self.send(wanted).and_then(|()| self.receive(Instant::now() + PATIENCE));
        let failed = || format!("the VM `{}` did not do it", self.name);
        match answer {
            Ok(Outcome::Error(told)) => Err(Failure::cannot(failed(), told)),
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(Failure::cannot(failed(), error)),
        }
    }
}

/// What a VM tells until it ends, or until it is asked for no more.
pub(crate) struct Lines {
    stream: BufReader<UnixStream>,
}

/// Asks, from any thread, for no more lines than those that are known.
pub(crate) struct Enough(UnixStream);

impl Enough {
    pub(crate) fn tell(&self) {
        let _ = self.0.shutdown(Shutdown::Write); // it may be over already
    }
}

impl Lines {
    /// # Errors
    ///
    /// This process has no descriptor left.
    pub(crate) fn enough(&self) -> io::Result<Enough> {
        self.stream.get_ref().try_clone().map(Enough)
    }

    /// The next line; `None` at the end.
    ///
    /// # Errors
    ///
    /// The VM has gone, or is silent for too long; or the line is not one that is expected here.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, NoAnswer> {
        let mut line = Vec::new();
        (&mut self.stream).take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(NoAnswer::Unknown)
    }
}

/// Opens the directory.
///
/// # Errors
///
/// It cannot be had.
pub(super) fn directory() -> Result<Directory, Failure> {
    Directory::open().map_err(|error| Failure::cannot("running VMs cannot be looked for", error))
}

/// Finds a running VM by its name, or the beginning of it.
///
/// # Errors
///
/// There is none, or several, or it does not take connections.
pub(crate) fn connect(name: &str) -> Result<Connection, Failure> {
    find(&directory()?, name)
}

/// The names in it, of VMs that run or did.
///
/// # Errors
///
/// It cannot be read.
pub(super) fn names(directory: &Directory) -> Result<Vec<Name>, Failure> {
    directory.names().map_err(|error| Failure::cannot("running VMs cannot be looked for", error))
}

/// Finds the VM of a name, or the one whose name begins so.
///
/// # Errors
///
/// There is none, or several, or it does not take connections.
pub(super) fn find(directory: &Directory, wanted: &str) -> Result<Connection, Failure> {
    let names = names(directory)?;
    let open = |name: &Name| {
        Connection::open(directory, name.clone())
            .map_err(|error| Failure::cannot(format!("the VM `{name}` cannot be reached"), error))
    };
    if let Some(name) = names.iter().find(|name| name.as_str() == wanted)
        && let Some(connection) = open(name)?
    {
        return Ok(connection);
    }
    let candidates = names.iter().filter(|name| name.as_str().starts_with(wanted));
    let mut found = candidates.filter_map(|name| open(name).transpose()).collect::<Result<Vec<_>, _>>()?;
    match found.len() {
        0 => Err(not_found(directory, wanted, &names)),
        1 => Ok(found.remove(0)),
        _ => {
            let found: Vec<_> = found.iter().map(|connection| connection.name.as_str()).collect();
            let message = format!("`{wanted}` is the beginning of several names: {}", told(&found));
            Err(Failure::new(Cause::CannotStart, message).advise("write more of the one that is meant"))
        }
    }
}

fn not_found(directory: &Directory, wanted: &str, names: &[Name]) -> Failure {
    let listens = |name: &&Name| !matches!(directory.connect(&name.file()), Ok(None));
    let running: Vec<_> = names.iter().filter(listens).map(Name::as_str).collect();
    let failure = Failure::new(Cause::CannotStart, format!("no VM called `{wanted}`"));
    if running.is_empty() {
        failure.advise("no VM is running; `hv run IMAGE` starts one")
    } else {
        failure.advise(format!("running: {}", told(&running)))
    }
}

/// Some names, and how many more there are.
fn told(names: &[&str]) -> String {
    let shown = names[..names.len().min(MOST_TOLD)].join(", ");
    match names.len().saturating_sub(MOST_TOLD) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

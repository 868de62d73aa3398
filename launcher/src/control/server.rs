//! The end of `hv run`: one thread that answers whoever connects.
//!
//! It serves all connections in turn, reads from none more than is there, and waits for none to read: a client that says
//! nothing, or too much, or does not listen, holds nobody up, least of all the VM. It sleeps until somebody comes, so it
//! costs an idle VM nothing. A connection whose request is answered by a stream leaves this thread ([`super::stream`]).
//!
//! Start at [`serve`].

use super::directory::{Entry, Listening};
use super::protocol::{self, LONGEST_REQUEST, Outcome, State, Status, Wanted};
use super::stream::{Job, Streams};
use crate::cpu_time;
use crate::exit_code::Cause;
use crate::profile::{self, HIGHEST_FREQUENCY};
use crate::run::Ending;
use crate::{images, trace};
use hv_core::VmHandle;
use hv_core::engine::{CallCounts, Counters};
use hv_core::handle::{RequestError, VcpuStats};
use hv_core::vm::MemoryControl;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::geteuid;
use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connections that are kept. One more, and the one goes that was quiet for longest.
const MOST_CONNECTIONS: usize = 64;

/// How long to wait for a descriptor if the process has none left.
const NO_DESCRIPTOR: Duration = Duration::from_millis(100);

/// What is served: a VM, and what `hv run` knows of it.
pub(crate) struct Subject {
    pub(crate) image: String,
    pub(crate) started: Instant,
    pub(crate) handle: VmHandle,
    pub(crate) memory: MemoryControl,
    pub(crate) ending: Arc<Ending>,
    pub(crate) streams: Streams,
}

/// How a request is answered.
enum Reply {
    /// By one line; the next request may come.
    Line(Outcome),
    /// By lines without an end, by this, if there is room for another stream.
    Stream(Job),
}

/// A VM that is served. Dropping this gives its name back.
pub(crate) struct Served(Arc<Entry>);

impl Served {
    /// What gives the name back.
    pub(crate) fn entry(&self) -> Arc<Entry> {
        self.0.clone()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.remove();
    }
}

/// Answers from now on, until this process ends.
///
/// # Errors
///
/// The host has no thread left.
pub(crate) fn serve(listening: Listening, subject: Subject) -> io::Result<Served> {
    listening.socket.set_nonblocking(true)?;
    let entry = listening.entry.clone();
    let mut server = Server { listening, subject, connections: Vec::new() };
    let forever = move || {
        loop {
            server.turn();
        }
    };
    std::thread::Builder::new().name("hv-control".into()).spawn(forever)?;
    Ok(Served(entry))
}

struct Server {
    listening: Listening,
    subject: Subject,
    /// The one that was quiet for longest first.
    connections: Vec<Connection>,
}

impl Server {
    /// Waits until somebody wants something, and does that.
    fn turn(&mut self) {
        let mut waits = vec![PollFd::new(&self.listening.socket, PollFlags::IN)];
        waits
            .extend(self.connections.iter().map(|connection| PollFd::new(&connection.stream, PollFlags::IN)));
        if poll(&mut waits, None).is_err() {
            return; // interrupted
        }
        let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
        let mut active = Vec::new();
        for (mut connection, ready) in std::mem::take(&mut self.connections).into_iter().zip(&ready[1..]) {
            match ready {
                false => self.connections.push(connection),
                true if connection.serve(&self.subject, &self.listening.entry).is_ok() => {
                    active.push(connection)
                }
                true => {} // it has gone, or had better
            }
        }
        self.connections.extend(active);
        if ready[0] {
            self.accept();
        }
    }

    fn accept(&mut self) {
        match self.listening.socket.accept() {
            Ok((stream, _)) if is_ours(&stream) && stream.set_nonblocking(true).is_ok() => {
                if self.connections.len() == MOST_CONNECTIONS {
                    self.connections.remove(0);
                }
                self.connections.push(Connection { stream, received: Vec::new() });
            }
            Ok(_) => tracing::warn!("somebody else's process has connected to the control socket"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection to the control socket cannot be accepted");
                self.connections.clear();
                std::thread::sleep(NO_DESCRIPTOR);
            }
        }
    }
}

/// Whether a process of the same user's has connected. The directory sees to that; this does so again.
fn is_ours(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == geteuid())
}

struct Connection {
    stream: UnixStream,
    /// The beginning of a request.
    received: Vec<u8>,
}

impl Connection {
    /// Reads what is there, and answers the requests that are complete. An error ends the connection.
    fn serve(&mut self, subject: &Subject, entry: &Entry) -> io::Result<()> {
        let mut piece = [0; LONGEST_REQUEST];
        let room = LONGEST_REQUEST - self.received.len();
        let length = match self.stream.read(&mut piece[..room]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(());
            }
            result => result?,
        };
        self.received.extend(&piece[..length]);
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let reply = match protocol::parse(&line) {
                Ok(wanted) => subject.reply(wanted, entry),
                Err(error) => Reply::Line(Outcome::Error(error)),
            };
            match reply {
                Reply::Line(outcome) => self.answer(outcome)?,
                Reply::Stream(job) => {
                    match subject.streams.start(&self.stream, Outcome::Done.into_line(), job) {
                        Ok(()) => return Err(ErrorKind::ConnectionAborted.into()), // it is another thread's now
                        Err(error) => self.answer(Outcome::Error(error))?,
                    }
                }
            }
        }
        if self.received.len() == LONGEST_REQUEST {
            let told = format!(
                "expected a request of at most {LONGEST_REQUEST} bytes with a newline at its end, found more"
            );
            self.answer(Outcome::Error(told))?;
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(())
    }

    /// What does not fit the socket's buffer is for a client that sends and does not read.
    fn answer(&mut self, outcome: Outcome) -> io::Result<()> {
        self.stream.write_all(outcome.into_line().as_bytes())
    }
}

impl Subject {
    fn reply(&self, wanted: Wanted, entry: &Entry) -> Reply {
        match wanted {
            Wanted::Trace => match self.handle.trace() {
                Ok(session) => Reply::Stream(trace::stream(session)),
                Err(error) => Reply::Line(Outcome::Error(error.to_string())),
            },
            Wanted::Profile { frequency } => match self.profile(frequency) {
                Ok(job) => Reply::Stream(job),
                Err(told) => Reply::Line(Outcome::Error(told)),
            },
            wanted => Reply::Line(self.answer(wanted, entry)),
        }
    }

    /// Does what is wanted. Takes a second at the most, for a pause that the guest does not come to.
    fn answer(&self, wanted: Wanted, entry: &Entry) -> Outcome {
        tracing::debug!(?wanted, "asked by the control socket");
        let done: Result<(), Box<dyn Error>> = match wanted {
            Wanted::Status => match self.status(entry) {
                Ok(status) => return Outcome::Status(Box::new(status)),
                Err(error) => Err(error.into()),
            },
            Wanted::Pause => self.handle.pause().map_err(Into::into),
            Wanted::Resume => self.handle.resume().map_err(Into::into),
            Wanted::Stop => {
                self.ending.stop(Cause::Stopped);
                Ok(())
            }
            Wanted::Balloon { bytes } => self.memory.set_balloon(bytes).map_err(Into::into),
            Wanted::Trace | Wanted::Profile { .. } => unreachable!("they are answered by a stream"),
        };
        done.map_or_else(|error| Outcome::Error(error.to_string()), |()| Outcome::Done)
    }

    fn profile(&self, frequency: u32) -> Result<Job, String> {
        if !(1..=HIGHEST_FREQUENCY).contains(&frequency) {
            return Err(format!("expected a frequency of 1 to {HIGHEST_FREQUENCY} Hz, found {frequency}"));
        }
        let profiler = self.handle.profile().map_err(|error| error.to_string())?;
        Ok(profile::stream(profiler, frequency, images::location(Path::new(&self.image))))
    }

    fn status(&self, entry: &Entry) -> Result<Status, RequestError> {
        let stats = self.handle.stats()?;
        Ok(Status {
            name: entry.name.to_string(),
            pid: std::process::id(),
            image: self.image.clone(),
            state: if stats.paused { State::Paused } else { State::Running },
            vcpus: stats.vcpus.len() as u32,
            memory: stats.memory.size,
            resident: stats.memory.host,
            reported: stats.memory.reported,
            ballooned: stats.memory.ballooned,
            balloon_target: stats.memory.balloon_target,
            up_ns: self.started.elapsed().as_nanos() as u64,
            monitor_cpu_ns: cpu_time::of_this_process(),
            sandbox_cpu_ns: cpu_time::of_threads(&stats.processes) + cpu_time::of_gone_children(),
            counters: stats.vcpus.iter().map(|vcpu| vcpu.counters).sum(),
            held_back_ns: stats.held_back_ns,
            spaces: stats.spaces,
            vcpu_stats: stats.vcpus.into_iter().map(without_calls).collect(),
            devices: stats.devices,
        })
    }
}

/// For 64 of them to fit an answer.
fn without_calls(vcpu: VcpuStats) -> VcpuStats {
    let counters = Counters { calls: CallCounts::default(), ..vcpu.counters };
    VcpuStats { counters, ..vcpu }
}

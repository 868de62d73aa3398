//! Answers without an end: a connection that leaves the thread that serves all ([`super::server`]), and gets lines until what
//! is told is over, or the client wants no more.
//!
//! Each has a thread of its own and waits for nobody but its own client, and for that not for ever: one that does not read
//! is cut off. There are few at a time. A client that closes its half of the connection, or sends anything, has the rest that
//! is known so far, and then the end. So that a client can tell a monitor that stands still from one that has nothing to tell,
//! a job says something at least every [`HEARTBEAT`].
//!
//! Start at [`Streams::start`]; what is to be told is a [`Job`].

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io::{self, ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// Streams at a time.
const MOST_STREAMS: usize = 4;

/// How long a client may take to make room for what it is told.
const PATIENCE: Duration = Duration::from_secs(5);

/// A stream is silent for no longer.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

/// Tells what is to be told over a stream, from its thread. What it gives is how the stream ended, for the log.
pub(crate) type Job = Box<dyn FnOnce(&mut Stream) -> io::Result<()> + Send>;

/// All streams of a VM.
#[derive(Clone)]
pub(crate) struct Streams(Arc<Inner>);

struct Inner {
    open: Mutex<usize>,
    one_less: Condvar,
    /// Readable once the VM has ended.
    ended: OwnedFd,
}

/// One connection that is told lines.
pub(crate) struct Stream {
    socket: UnixStream,
    streams: Streams,
}

/// What a stream is to do after it has waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// To tell what is new.
    GoOn,
    /// To tell the rest: the client wants no more, or the VM has ended.
    Finish,
}

impl Streams {
    /// None is open.
    ///
    /// # Errors
    ///
    /// The host has no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        let ended = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(Inner { open: Mutex::new(0), one_less: Condvar::new(), ended })))
    }

    /// Gives a connection to a thread of its own, which writes `first` and then does the job.
    ///
    /// # Errors
    ///
    /// What to tell the client: there are too many streams, or the host has no thread left.
    pub(super) fn start(&self, socket: &UnixStream, first: String, job: Job) -> Result<(), String> {
        let cannot = |error: io::Error| format!("the host does not let hv begin a stream: {error}");
        let mut open = self.0.open.lock().expect("no thread panics with the lock held");
        if *open == MOST_STREAMS {
            return Err(format!(
                "expected at most {MOST_STREAMS} traces and the like at a time, found one more: end one"
            ));
        }
        let socket = socket.try_clone().map_err(cannot)?;
        let mut stream = Stream { socket, streams: self.clone() };
        let work = move || {
            let done = stream.begin(&first).and_then(|()| job(&mut stream));
            tracing::debug!(?done, "a stream has ended");
        };
        // One that cannot be spawned is dropped, and with it its stream: they are counted where they end.
        *open += 1;
        drop(open);
        std::thread::Builder::new().name("hv-stream".into()).spawn(work).map(drop).map_err(cannot)
    }

    /// The VM has ended: waits until all streams have told the rest, for some time.
    pub(crate) fn finish(&self) {
        let _ = rustix::io::write(&self.0.ended, &1_u64.to_ne_bytes()); // it cannot be full: this is done once
        let until = Instant::now() + PATIENCE;
        let mut open = self.0.open.lock().expect("no thread panics with the lock held");
        while *open > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            open = self.0.one_less.wait_timeout(open, left).expect("no thread panics with the lock held").0;
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        *self.streams.0.open.lock().expect("no thread panics with the lock held") -= 1;
        self.streams.0.one_less.notify_all();
    }
}

impl Stream {
    /// From here on it waits for its client, and no other thread has the socket.
    fn begin(&mut self, first: &str) -> io::Result<()> {
        self.socket.set_nonblocking(false)?;
        self.socket.set_write_timeout(Some(PATIENCE))?;
        self.write_all(first.as_bytes())
    }

    /// Waits so long, or until there is a reason to finish.
    pub(crate) fn wait(&self, time: Duration) -> Next {
        let ends = PollFlags::IN | PollFlags::RDHUP;
        let mut waits = [PollFd::new(&self.socket, ends), PollFd::new(&self.streams.0.ended, PollFlags::IN)];
        let time = Timespec::try_from(time).ok();
        match poll(&mut waits, time.as_ref()) {
            Ok(0) | Err(_) => Next::GoOn, // the time is over, or a signal came
            Ok(_) => Next::Finish,
        }
    }

    /// Tells one line, as JSON.
    ///
    /// # Errors
    ///
    /// The client has gone, or does not read.
    pub(crate) fn line(&mut self, told: &impl serde::Serialize) -> io::Result<()> {
        let mut line =
            serde_json::to_vec(told).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        line.push(b'\n');
        self.write_all(&line)
    }
}

/// Bytes as they are. A client that takes nothing of them for [`PATIENCE`] is an error.
impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::net::Shutdown;

    fn counting() -> Job {
        Box::new(|stream| {
            let mut number = 0;
            loop {
                let next = stream.wait(Duration::from_millis(1));
                number += 1;
                stream.line(&number)?;
                if next == Next::Finish {
                    return stream.line(&"end");
                }
            }
        })
    }

    fn start(streams: &Streams, job: Job) -> Result<UnixStream, String> {
        let (client, server) = UnixStream::pair().expect("a pair");
        server.set_nonblocking(true).expect("a socket"); // as the server has it
        streams.start(&server, "first\n".into(), job).map(|()| client)
    }

    #[test]
    fn a_client_that_closes_its_half_gets_the_rest_and_the_end() {
        let streams = Streams::new().expect("a descriptor");
        let client = start(&streams, counting()).expect("it begins");
        let mut lines = BufReader::new(client.try_clone().expect("a descriptor")).lines();
        for line in ["first", "1", "2"] {
            assert_eq!(lines.next().expect("a line").expect("text"), line);
        }
        client.shutdown(Shutdown::Write).expect("connected");
        assert_eq!(lines.last().expect("a line").expect("text"), "\"end\"");
    }

    #[test]
    fn the_vms_end_ends_all_streams_and_is_told() {
        let streams = Streams::new().expect("a descriptor");
        let mut clients: Vec<_> =
            (0..MOST_STREAMS).map(|_| start(&streams, counting()).expect("it begins")).collect();
        streams.finish();
        assert_eq!(*streams.0.open.lock().expect("not poisoned"), 0);
        for client in &mut clients {
            let mut told = String::new();
            client.read_to_string(&mut told).expect("it is told to the end");
            assert!(told.starts_with("first\n") && told.ends_with("\"end\"\n"), "{told}");
        }
    }

    #[test]
    fn there_are_few_at_a_time_and_one_that_has_gone_makes_room() {
        let streams = Streams::new().expect("a descriptor");
        let mut clients: Vec<_> =
            (0..MOST_STREAMS).map(|_| start(&streams, counting()).expect("it begins")).collect();
        let told = start(&streams, counting()).expect_err("one too many");
        assert!(told.contains("at most 4"), "{told}");
        drop(clients.pop());
        let mut open = streams.0.open.lock().expect("not poisoned");
        while *open == MOST_STREAMS {
            open = streams.0.one_less.wait(open).expect("not poisoned");
        }
        drop(open);
        start(&streams, counting()).expect("there is room again");
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off() {
        let streams = Streams::new().expect("a descriptor");
        let (told, heard) = std::sync::mpsc::channel();
        let endless: Job = Box::new(move |stream| {
            let cut_off = stream.write_all(&vec![0; 64 << 20]); // more than a socket holds
            told.send(cut_off.as_ref().map_err(io::Error::kind).copied()).expect("the test waits");
            cut_off
        });
        let _client = start(&streams, endless).expect("it begins");
        assert_eq!(heard.recv().expect("it is told"), Err(ErrorKind::WouldBlock));
    }
}

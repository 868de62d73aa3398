//! A port, and its end at the host.
//!
//! What the host does not take stays in the guest's ring, and what the guest does not take stays at the host: nothing is lost, and
//! nothing is kept here. Only what a guest writes to a port whose other end is closed is dropped, and the guest was told that it is.
//!
//! Start at [`Port::send`] and [`Port::receive`].

use crate::devices::chain::Chain;
use crate::devices::ring::Ring;
use crate::devices::{Broken, Interest};
use rustix::event::{PollFd, Timespec, poll};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

/// A pipe or a terminal that is ready takes this much without blocking.
const PIECE: usize = 4096;
/// Chains of the guest's that are served in one go.
const BATCH: usize = 64;

/// A port's end at the host.
#[derive(Debug)]
pub(super) enum End {
    /// Bytes come from one, until there are no more, and go to the other, until it takes no more. These may be shared with others,
    /// and are not made non-blocking.
    Streams { input: Option<OwnedFd>, output: Option<OwnedFd> },
    /// One program after the other connects.
    Listener(UnixListener, Option<UnixStream>),
}

/// A port of a console.
#[derive(Debug)]
pub struct Port {
    name: String,
    end: End,
    /// The guest has said that it is ready for it, and that it reads it.
    pub(super) guest_ready: bool,
    pub(super) guest_open: bool,
    /// A chain of the guest's that the host has not taken all of.
    sending: Option<Chain>,
}

impl Port {
    /// One whose bytes come from `input`, if there is one, and go to `output`, which may be a file.
    pub fn streams(name: &str, input: Option<OwnedFd>, output: OwnedFd) -> Self {
        Self::new(name, End::Streams { input, output: Some(output) })
    }

    /// One that a program of the host can connect to, and after it the next. The listener must be non-blocking, as
    /// [`listen`](crate::devices::listen) makes it.
    pub fn listener(name: &str, listener: UnixListener) -> Self {
        Self::new(name, End::Listener(listener, None))
    }

    fn new(name: &str, end: End) -> Self {
        Self { name: name.to_owned(), end, guest_ready: false, guest_open: false, sending: None }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether somebody is at its end.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.end, End::Listener(_, None) | End::Streams { output: None, .. })
    }

    /// There is no driver any more.
    pub(super) fn reset(&mut self) {
        (self.guest_ready, self.guest_open) = (false, false);
        self.stop_sending();
    }

    /// What the guest has written is no more.
    pub(super) fn stop_sending(&mut self) {
        self.sending = None;
    }

    /// Whether the device has a chain of the guest's that it has not finished.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// What to wait for, if there is `room` for what comes, and if the guest can be told of a new connection.
    pub(super) fn sources(
        &self,
        room: bool,
        accepts: bool,
    ) -> impl Iterator<Item = (BorrowedFd<'_>, Interest)> {
        let reads = room && self.guest_open;
        let (input, output) = match &self.end {
            End::Streams { input, output } => {
                (input.as_ref().filter(|_| reads).map(AsFd::as_fd), output.as_ref().map(AsFd::as_fd))
            }
            End::Listener(listener, None) => (accepts.then_some(listener.as_fd()), None),
            End::Listener(_, Some(stream)) => (reads.then_some(stream.as_fd()), Some(stream.as_fd())),
        };
        let input = input.map(|input| (input, Interest::Read));
        let output = output.filter(|_| self.is_sending()).map(|output| (output, Interest::Write));
        input.into_iter().chain(output)
    }

    /// Takes a connection, if there is none and somebody wants one. Whether there is a new one.
    pub(super) fn accept(&mut self) -> bool {
        let End::Listener(listener, stream @ None) = &mut self.end else { return false };
        *stream = listener.accept().ok().map(|(stream, _)| stream);
        if stream.as_ref().is_some_and(|stream| stream.set_nonblocking(true).is_err()) {
            *stream = None;
        }
        stream.is_some()
    }

    /// Has the host take what the guest has written. Whether it took anything.
    pub(super) fn send(&mut self, ring: &mut Ring) -> Result<bool, Broken> {
        let mut worked = false;
        for _ in 0..BATCH {
            let Some(mut chain) = self.sending.take().map_or_else(|| ring.pop(), |chain| Ok(Some(chain)))?
            else {
                break;
            };
            while chain.readable() > 0 {
                match self.write(&mut chain) {
                    Ok(_) => worked = true,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.sending = Some(chain);
                        return Ok(worked);
                    }
                    Err(error) => {
                        self.end_output(&error);
                        break; // what is left is dropped
                    }
                }
            }
            worked = true;
            ring.push(chain);
        }
        Ok(worked)
    }

    /// Its end takes nothing any more.
    fn end_output(&mut self, error: &io::Error) {
        match &mut self.end {
            End::Listener(_, stream) => *stream = None,
            End::Streams { output, .. } => {
                if output.take().is_some() {
                    tracing::warn!(port = self.name, %error, "a port's output cannot be written; its guest is told");
                }
            }
        }
    }

    fn write(&self, chain: &mut Chain) -> io::Result<usize> {
        let all = chain.readable();
        match &self.end {
            End::Streams { output: Some(output), .. } => {
                ready(output.as_fd(), Interest::Write)?;
                chain.read_to(all.min(PIECE), |places| places.write(output.as_fd()))
            }
            End::Listener(_, Some(stream)) => chain.read_to(all, |places| places.write(stream.as_fd())),
            End::Streams { output: None, .. } | End::Listener(_, None) => Err(ErrorKind::NotConnected.into()),
        }
    }

    /// Has the guest take a piece of what has come. Whether there was something, or the end has closed.
    pub(super) fn receive(&mut self, ring: &mut Ring) -> Result<bool, Broken> {
        let input = match &self.end {
            End::Streams { input: Some(input), .. } => input.as_fd(),
            End::Listener(_, Some(stream)) => stream.as_fd(),
            _ => return Ok(false),
        };
        if !self.guest_open || ready(input, Interest::Read).is_err() {
            return Ok(false);
        }
        let Some(mut chain) = ring.pop()? else { return Ok(false) };
        let most = chain.writable();
        if most == 0 {
            return Err(Broken("a buffer for a port's input cannot be written to"));
        }
        match chain.write_from(most, |places| places.read(input)) {
            Ok(1..) => ring.push(chain),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {
                ring.put_back(chain);
                return Ok(false);
            }
            Ok(0) | Err(_) => {
                ring.put_back(chain);
                match &mut self.end {
                    End::Listener(_, stream) => *stream = None,
                    End::Streams { input, .. } => *input = None,
                }
            }
        }
        Ok(true)
    }
}

/// Whether it can be read or written to without waiting.
fn ready(descriptor: BorrowedFd<'_>, interest: Interest) -> io::Result<()> {
    let mut polls = [PollFd::from_borrowed_fd(descriptor, interest.flags())];
    match poll(&mut polls, Some(&Timespec::default()))? {
        0 => Err(ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

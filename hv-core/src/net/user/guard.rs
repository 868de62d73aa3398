//! A guard before another user-mode network, such as `passt`: it lets frames through that lead where a guest may go.
//!
//! `passt` has options for the gateway's address, but connects to 127.0.0.1 for a guest that says so (tried: Debian 12's). Here the same
//! [policy](super::policy) holds as for the network that is built in; what it does not allow goes nowhere, in silence.
//!
//! Frames are neither held nor changed: what is allowed is written from where it was read to. While one side does not take what it
//! is sent, nothing more for it is read from the other, and nothing is dropped.
//!
//! Start at [`guard`].

use super::packet::Packet;
use super::policy::Policy;
use super::{DNS, Options, READ};
use crate::net::frames::{FrameError, FrameReader, FrameWriter, PREFIX, frames};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use std::os::unix::net::UnixStream;

/// Relays frames between a guest and a network, until either has gone.
///
/// # Errors
///
/// One of them sent something else than frames, or the host fails to wait.
pub fn guard(guest: &UnixStream, network: &UnixStream, options: &Options) -> Result<(), FrameError> {
    let policy = Policy::new(options);
    let (mut outgoing, mut incoming) = (Direction::new(), Direction::new());
    loop {
        let wanted =
            [(guest, outgoing.reads() | incoming.writes()), (network, incoming.reads() | outgoing.writes())];
        // Of one that nothing is wanted of, not even its end is to wake this.
        let wanted = wanted.into_iter().filter(|(_, flags)| !flags.is_empty());
        let mut descriptors: Vec<_> = wanted.map(|(socket, flags)| PollFd::new(socket, flags)).collect();
        match rustix::event::poll(&mut descriptors, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let moved = outgoing
            .advance(guest, network, |frame| allows(&policy, frame))
            .and_then(|()| incoming.advance(network, guest, |_| true));
        match moved {
            Err(FrameError::Closed) => return Ok(()),
            result => result?,
        }
    }
}

/// Whether a frame of the guest's may go on.
fn allows(policy: &Policy, frame: &[u8]) -> bool {
    match Packet::parse(frame) {
        None => false,
        Some((_, Packet::Local | Packet::Dhcp(_))) => true,
        Some((_, Packet::Udp { key, .. })) if key.peer == DNS => true,
        // Names over TCP are not passt's; what is at that address outside is not for the guest.
        Some((_, Packet::Tcp { key, .. } | Packet::Udp { key, .. })) => {
            key.peer != DNS && policy.destination(key.peer).is_some()
        }
    }
}

/// Frames one way.
struct Direction {
    reader: FrameReader,
    writer: FrameWriter,
}

impl Direction {
    fn new() -> Self {
        // What is read at once has room to wait.
        Self { reader: FrameReader::new(READ), writer: FrameWriter::new(READ) }
    }

    fn reads(&self) -> PollFlags {
        if self.writer.is_empty() { PollFlags::IN } else { PollFlags::empty() }
    }

    fn writes(&self) -> PollFlags {
        if self.writer.is_empty() { PollFlags::empty() } else { PollFlags::OUT }
    }

    /// Moves what there is and may go, without waiting.
    fn advance(
        &mut self,
        from: &UnixStream,
        to: &UnixStream,
        allows: impl Fn(&[u8]) -> bool,
    ) -> Result<(), FrameError> {
        self.writer.flush(to)?;
        if !self.writer.is_empty() || !self.reader.fill(from)? {
            return Ok(());
        }
        let run = self.reader.run()?;
        let (mut begin, mut end) = (0, 0);
        for frame in frames(run) {
            let next = end + frame.len();
            if !allows(&frame[PREFIX..]) {
                self.writer.send(to, &run[begin..end])?;
                begin = next;
            }
            end = next;
        }
        self.writer.send(to, &run[begin..end])?;
        Ok(())
    }
}

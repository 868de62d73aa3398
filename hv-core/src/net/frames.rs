//! Ethernet frames on a stream socket: each behind its length, 32 bits, big-endian.
//!
//! That is what `passt` and QEMU's `-netdev stream` speak, so either can be at the other end. The peer is not trusted: a
//! length beyond [`LONGEST_FRAME`] is an error, and the end of that peer, for where the next frame begins is then unknown.
//! Neither direction waits: both have a buffer of fixed size, and tell when there is nothing to read or no room.
//!
//! Frames are handed on in *runs*: whole frames, one behind the other, each still behind its length. So a run that came
//! from one socket can go to another without being copied in between.
//!
//! Start at [`FrameReader::fill`] and [`FrameWriter::send`].

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::AsFd;

/// The Ethernet header, and the longest IP packet that there is.
pub const LONGEST_FRAME: usize = 14 + 65_535;

/// Bytes of a frame's length.
pub const PREFIX: usize = 4;

/// Why no more frames can be had from a peer, or sent to it.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Nothing more will come: the usual end.
    #[error("the other end was closed")]
    Closed,
    /// What follows cannot be told from what came before.
    #[error("the other end announced a frame of {found} bytes, and the longest has {LONGEST_FRAME}")]
    TooLong {
        /// What was announced.
        found: u32,
    },
    /// The socket failed.
    #[error("the socket of frames failed")]
    Socket(#[source] io::Error),
}

impl From<Errno> for FrameError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            error => Self::Socket(error.into()),
        }
    }
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        Self::Socket(error)
    }
}

/// Bytes that wait, in a buffer that does not grow.
struct Buffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buffer {
    fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity].into(), start: 0, end: 0 }
    }

    fn waiting(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Room for at least `least` bytes, behind those that wait; less only if there is not so much in all.
    fn room(&mut self, least: usize) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len() - self.end < least {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        &mut self.bytes[self.end..]
    }

    fn free(&self) -> usize {
        self.bytes.len() - (self.end - self.start)
    }
}

/// The frames that come from a peer.
pub struct FrameReader {
    buffer: Buffer,
}

impl FrameReader {
    /// One that takes up to `capacity` bytes at once; at least a longest frame.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { buffer: Buffer::new(capacity.max(PREFIX + LONGEST_FRAME)) }
    }

    /// Reads once, as much as there is and fits. False if there is nothing now.
    ///
    /// # Errors
    ///
    /// The peer has gone. What came before can still be taken.
    pub fn fill(&mut self, socket: impl AsFd) -> Result<bool, FrameError> {
        let room = self.buffer.room(PREFIX + LONGEST_FRAME);
        if room.is_empty() {
            return Ok(true); // until a frame is taken
        }
        match rustix::net::recv(socket, room, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => Err(FrameError::Closed),
            Ok((_, length)) => {
                self.buffer.end += length;
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the next frame, without its length, if it has come as a whole.
    ///
    /// # Errors
    ///
    /// The peer announced one that is too long.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let Some(length) = first_length(self.buffer.waiting())? else { return Ok(None) };
        let from = self.buffer.start + PREFIX;
        self.buffer.start = from + length;
        Ok(Some(&self.buffer.bytes[from..from + length]))
    }

    /// Takes all frames that have come as a whole.
    ///
    /// # Errors
    ///
    /// The peer announced one that is too long, and there is none before it.
    pub fn run(&mut self) -> Result<&[u8], FrameError> {
        let waiting = self.buffer.waiting();
        let mut length = 0;
        loop {
            match first_length(&waiting[length..]) {
                Ok(Some(frame)) => length += PREFIX + frame,
                Err(error) if length == 0 => return Err(error),
                Ok(None) | Err(_) => break,
            }
        }
        let from = self.buffer.start;
        self.buffer.start += length;
        Ok(&self.buffer.bytes[from..from + length])
    }
}

/// The length of the frame at the beginning of `bytes`, if it is there as a whole.
fn first_length(bytes: &[u8]) -> Result<Option<usize>, FrameError> {
    let Some((prefix, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let found = u32::from_be_bytes(*prefix);
    let length = found as usize;
    if length > LONGEST_FRAME {
        return Err(FrameError::TooLong { found });
    }
    Ok((length <= rest.len()).then_some(length))
}

/// The frames of a run, each with its length before it.
pub fn frames(run: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = run;
    std::iter::from_fn(move || {
        let length = first_length(rest).ok()??;
        let (frame, behind) = rest.split_at(PREFIX + length);
        rest = behind;
        Some(frame)
    })
}

/// The frames that go to a peer.
pub struct FrameWriter {
    buffer: Buffer,
}

impl FrameWriter {
    /// One that holds up to `capacity` bytes that the socket does not take; at least two longest frames.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { buffer: Buffer::new(capacity.max(2 * (PREFIX + LONGEST_FRAME))) }
    }

    /// Whether nothing waits for the socket.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.waiting().is_empty()
    }

    /// Whether any one frame can be pushed.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.buffer.free() >= PREFIX + LONGEST_FRAME
    }

    /// Sends a run. What the socket does not take now waits, as far as there is room; then whole frames are dropped. Says
    /// how many.
    ///
    /// # Errors
    ///
    /// The peer has gone.
    pub fn send(&mut self, socket: impl AsFd, run: &[u8]) -> Result<usize, FrameError> {
        let mut sent = if self.is_empty() { send_some(socket, run)? } else { 0 };
        if sent == run.len() {
            return Ok(0);
        }
        let mut dropped = 0;
        for frame in frames(run) {
            let begun = sent.min(frame.len());
            sent -= begun;
            let rest = &frame[begun..];
            // Of a frame that was begun the rest must follow. There is room: what was begun did not wait.
            if rest.len() <= self.buffer.free() {
                let room = self.buffer.room(rest.len());
                room[..rest.len()].copy_from_slice(rest);
                self.buffer.end += rest.len();
            } else {
                dropped += 1;
            }
        }
        Ok(dropped)
    }

    /// Appends a frame of that length, which `fill` writes. There must be [room](Self::has_room).
    pub fn push<R>(&mut self, length: usize, fill: impl FnOnce(&mut [u8]) -> R) -> R {
        let room = self.buffer.room(PREFIX + length);
        room[..PREFIX].copy_from_slice(&(length as u32).to_be_bytes());
        let result = fill(&mut room[PREFIX..PREFIX + length]);
        self.buffer.end += PREFIX + length;
        result
    }

    /// Gives the socket what waits, as far as it takes it.
    ///
    /// # Errors
    ///
    /// The peer has gone.
    pub fn flush(&mut self, socket: impl AsFd) -> Result<(), FrameError> {
        self.buffer.start += send_some(socket, self.buffer.waiting())?;
        Ok(())
    }
}

/// Gives the socket as much as it takes now.
fn send_some(socket: impl AsFd, bytes: &[u8]) -> Result<usize, FrameError> {
    let mut sent = 0;
    while sent < bytes.len() {
        match rustix::net::send(&socket, &bytes[sent..], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(length) => sent += length,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn framed(payload: &[u8]) -> Vec<u8> {
        [&(payload.len() as u32).to_be_bytes()[..], payload].concat()
    }

    #[test]
    fn frames_arrive_however_they_are_cut() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let payloads: Vec<Vec<u8>> = (0..200).map(|n| vec![n as u8; n * 7]).collect();
        let stream: Vec<u8> = payloads.iter().flat_map(|payload| framed(payload)).collect();
        let mut reader = FrameReader::new(0);
        let mut received = Vec::new();
        for piece in stream.chunks(1013) {
            near.write_all(piece).unwrap();
            reader.fill(&far).unwrap();
            while let Some(frame) = reader.next_frame().unwrap() {
                received.push(frame.to_vec());
            }
        }
        assert_eq!(received, payloads);
        assert!(!reader.fill(&far).unwrap(), "there is no more");
        drop(near);
        assert!(matches!(reader.fill(&far), Err(FrameError::Closed)));
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_peer_behind_what_was_good() {
        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&framed(b"good")).unwrap();
        near.write_all(&(LONGEST_FRAME as u32 + 1).to_be_bytes()).unwrap();
        let mut reader = FrameReader::new(0);
        reader.fill(&far).unwrap();
        assert_eq!(reader.run().unwrap(), framed(b"good"));
        assert!(matches!(reader.run(), Err(FrameError::TooLong { found: 65_550 })));
        assert!(matches!(reader.next_frame(), Err(FrameError::TooLong { .. })));
    }

    #[test]
    fn a_peer_that_does_not_read_loses_whole_frames_only() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut writer = FrameWriter::new(0);
        let run: Vec<u8> = (0..10_u8).flat_map(|n| framed(&vec![n; 20_000])).collect();
        let (rounds, mut dropped) = (20, 0);
        for _ in 0..rounds {
            dropped += writer.send(&near, &run).unwrap();
        }
        assert!(dropped > 0, "sockets and the writer do not hold so much");
        far.set_nonblocking(true).unwrap();
        let mut received = Vec::new();
        while !writer.is_empty() {
            let _ = far.read_to_end(&mut received); // ends by WouldBlock
            writer.flush(&near).unwrap();
        }
        let _ = far.read_to_end(&mut received);
        let whole: Vec<&[u8]> = frames(&received).collect();
        assert_eq!(whole.len(), rounds * 10 - dropped);
        assert_eq!(whole.concat(), received, "nothing is cut");
        assert!(
            whole
                .iter()
                .all(|frame| frame.len() == PREFIX + 20_000 && frame[PREFIX..] == [frame[PREFIX]; 20_000])
        );
    }

    #[test]
    fn what_is_pushed_is_sent() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut writer, mut reader) = (FrameWriter::new(0), FrameReader::new(0));
        let mut pushed = 0_usize;
        let mut received = 0_usize;
        while received < 500 {
            while writer.has_room() && pushed < 500 {
                writer.push(pushed * 100, |frame| frame.fill(pushed as u8));
                pushed += 1;
            }
            writer.flush(&near).unwrap();
            reader.fill(&far).unwrap();
            while let Some(frame) = reader.next_frame().unwrap() {
                assert_eq!(frame, vec![received as u8; received * 100]);
                received += 1;
            }
        }
    }
}

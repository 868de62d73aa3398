//! A stream socket as a link: frames behind their lengths, both ways.
//!
//! Short frames are read many at a time, and copied once, from a buffer to the guest. Of a long one the length is read first, and the
//! rest goes to the guest by itself. Where a frame begins is known only from those before it: so one that was begun is always
//! sent to its end, and one whose length cannot be ends the link.
//!
//! Start at [`Stream::transmit`] and [`Stream::receive`].

use super::vectors::{self, Gather};
use super::{BATCH, FRAME, HEADER, Link, PLAIN, RECEIVE, Stop, TRANSMIT, pop_frame};
use crate::devices::chain::Chain;
use crate::devices::line::Line;
use crate::devices::ring::Ring;
use rustix::fd::{AsFd, BorrowedFd};
use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::Relaxed;

/// Bytes of a length.
const PREFIX: usize = 4;
/// Bytes that are read ahead where short frames are to be expected.
const AHEAD: usize = 16 << 10;
/// From this length on a frame is not worth reading ahead.
const LONG: usize = 4 << 10;

pub(super) struct Stream {
    socket: UnixStream,
    outgoing: Outgoing,
    incoming: Incoming,
}

/// A frame to be sent.
struct Frame {
    prefix: [u8; PREFIX],
    length: usize,
    chain: Chain,
}

struct Outgoing {
    frames: VecDeque<Frame>,
    /// How much of the first one, its prefix included, the socket has taken.
    sent: usize,
    /// The rest of a frame whose chain is gone: it is sent before any other.
    rest: Vec<u8>,
    /// The socket takes no more.
    full: bool,
}

struct Incoming {
    ahead: Box<[u8; AHEAD]>,
    start: usize,
    end: usize,
    frame: Begun,
    /// The last frame was a long one, and so may the next be.
    long: bool,
    /// The driver has no buffer for what has come.
    starved: bool,
}

/// The frame that is coming.
#[expect(clippy::large_enum_variant, reason = "a card has one, and it is moved rarely")]
enum Begun {
    No,
    /// So many bytes of it are yet to come.
    Delivered(Chain, usize),
    /// The same of one that nobody gets.
    Dropped(usize),
}

impl Stream {
    pub(super) fn new(socket: UnixStream) -> Self {
        let outgoing = Outgoing { frames: VecDeque::new(), sent: 0, rest: Vec::new(), full: false };
        let ahead = Box::new([0; AHEAD]);
        let incoming = Incoming { ahead, start: 0, end: 0, frame: Begun::No, long: false, starved: false };
        Self { socket, outgoing, incoming }
    }
}

/// What a call on a socket has moved; `None`: it would wait.
fn moved(result: io::Result<usize>) -> Result<Option<usize>, Stop> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) => Err(Stop::Gone(error)),
    }
}

impl Outgoing {
    /// Has the socket take what it does. Whether that was something.
    fn send(&mut self, socket: &UnixStream) -> Result<Option<usize>, Stop> {
        let mut gather = Gather::new();
        if !self.rest.is_empty() {
            gather.add_bytes(&self.rest);
        }
        for (place, frame) in self.frames.iter().enumerate() {
            let sent = if place == 0 { self.sent.min(PREFIX) } else { 0 };
            if !gather.add(&frame.prefix[sent..], &frame.chain) {
                break;
            }
        }
        if gather.is_empty() { Ok(Some(0)) } else { moved(gather.send(socket.as_fd())) }
    }

    /// The socket took so many bytes: gives back the chains of frames that it took to their end.
    fn note_sent(&mut self, mut bytes: usize, ring: &mut Ring) {
        let of_rest = bytes.min(self.rest.len());
        self.rest.drain(..of_rest);
        bytes -= of_rest;
        while bytes > 0 {
            let first = self.frames.front_mut().expect("the socket takes what it was given");
            let part = bytes.min(PREFIX + first.length - self.sent);
            let of_prefix = part.min(PREFIX.saturating_sub(self.sent));
            first.chain.note_taken(part - of_prefix);
            self.sent += part;
            bytes -= part;
            if self.sent == PREFIX + first.length {
                self.sent = 0;
                ring.push(self.frames.pop_front().expect("it is there").chain);
            }
        }
    }

    /// Drops all chains, and keeps the rest of a frame that was begun.
    fn forget(&mut self) {
        if self.sent > 0
            && let Some(mut first) = self.frames.pop_front()
        {
            self.rest.extend_from_slice(&first.prefix[self.sent.min(PREFIX)..]);
            let begin = self.rest.len();
            self.rest.resize(begin + first.chain.readable(), 0);
            first.chain.read(&mut self.rest[begin..]).expect("it has so many bytes");
        }
        self.frames.clear();
        self.sent = 0;
    }
}

impl Incoming {
    /// Reads what has come: into the frame that was begun, and ahead. `None`: nothing now.
    fn read(&mut self, socket: &UnixStream) -> Result<Option<usize>, Stop> {
        (self.start, self.end) = (0, 0);
        let ahead = if self.long { PREFIX } else { AHEAD };
        let (frame, most) = match &self.frame {
            Begun::Delivered(chain, left) => (Some((chain, *left)), ahead),
            Begun::Dropped(_) => (None, AHEAD),
            Begun::No => (None, ahead),
        };
        let result = vectors::receive(socket.as_fd(), frame, &mut self.ahead[..most]);
        let Some(mut filled) = moved(result)? else { return Ok(None) };
        if filled == 0 {
            return Err(Stop::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Begun::Delivered(chain, left) = &mut self.frame {
            let of_frame = filled.min(*left);
            chain.note_filled(of_frame);
            *left -= of_frame;
            filled -= of_frame;
        }
        self.end = filled;
        Ok(Some(filled))
    }

    /// Goes on with what was read ahead, and with what the last read has completed. Says how many frames have come to their end;
    /// stops where more is to be read, or the driver has no buffer.
    fn sort(&mut self, ring: &mut Ring, line: &Line) -> Result<usize, Stop> {
        let mut ended = 0;
        loop {
            let bytes = &self.ahead[self.start..self.end];
            match &mut self.frame {
                Begun::Delivered(chain, left) => {
                    let part = bytes.len().min(*left);
                    chain.write(&bytes[..part]).expect("there is room for the frame");
                    self.start += part;
                    *left -= part;
                    if *left > 0 {
                        return Ok(ended);
                    }
                    if let Begun::Delivered(chain, _) = std::mem::replace(&mut self.frame, Begun::No) {
                        ring.push(chain);
                    }
                    ended += 1;
                }
                Begun::Dropped(left) => {
                    let part = bytes.len().min(*left);
                    self.start += part;
                    *left -= part;
                    if *left > 0 {
                        return Ok(ended);
                    }
                    self.frame = Begun::No;
                    ended += 1;
                }
                Begun::No => {
                    let Some(prefix) = bytes.first_chunk() else { return Ok(ended) };
                    let length = u32::from_be_bytes(*prefix) as usize;
                    if !self.begin(length, ring, line)? {
                        return Ok(ended);
                    }
                }
            }
        }
    }

    /// Begins a frame of that length, whose prefix is the next that was read ahead. Whether the driver has a buffer.
    fn begin(&mut self, length: usize, ring: &mut Ring, line: &Line) -> Result<bool, Stop> {
        if !FRAME.contains(&length) {
            let why = format!("a frame of {length} bytes was announced, and frames have {FRAME:?}");
            return Err(Stop::Gone(io::Error::other(why)));
        }
        let chain = ring.pop()?;
        self.starved = chain.is_none();
        let Some(mut chain) = chain else { return Ok(false) };
        if chain.writable() < HEADER + length {
            ring.put_back(chain);
            line.dropped.fetch_add(1, Relaxed);
            self.frame = Begun::Dropped(length);
        } else {
            chain.write(&PLAIN).expect("there is room");
            self.frame = Begun::Delivered(chain, length);
        }
        self.long = length >= LONG;
        self.start += PREFIX;
        Ok(true)
    }

    /// A part of a prefix that was read ahead is moved to the front, for its rest is read behind it.
    fn complete_prefix(&mut self, socket: &UnixStream) -> Result<Option<usize>, Stop> {
        let part = self.end - self.start;
        self.ahead.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, part);
        let rest = &mut self.ahead[part..PREFIX];
        let filled = moved(vectors::receive(socket.as_fd(), None, rest))?;
        if filled == Some(0) {
            return Err(Stop::Gone(io::ErrorKind::UnexpectedEof.into()));
        }
        self.end += filled.unwrap_or(0);
        Ok(filled)
    }

    /// Reads as far as it makes sense before the next [`sort`](Self::sort).
    fn fill(&mut self, socket: &UnixStream) -> Result<Option<usize>, Stop> {
        if self.start == self.end { self.read(socket) } else { self.complete_prefix(socket) }
    }
}

impl Link for Stream {
    fn transmit(&mut self, ring: &mut Ring, line: &Line) -> Result<bool, Stop> {
        let outgoing = &mut self.outgoing;
        let mut worked = false;
        while outgoing.frames.len() < BATCH
            && let Some((length, chain)) = pop_frame(ring, line)?
        {
            worked = true;
            let prefix = (length as u32).to_be_bytes();
            outgoing.frames.push_back(Frame { prefix, length, chain });
        }
        let sent = outgoing.send(&self.socket)?;
        outgoing.note_sent(sent.unwrap_or(0), ring);
        outgoing.full = !outgoing.frames.is_empty() || !outgoing.rest.is_empty();
        Ok(worked || sent.is_some_and(|sent| sent > 0))
    }

    fn receive(&mut self, ring: &mut Ring, line: &Line) -> Result<bool, Stop> {
        let incoming = &mut self.incoming;
        let mut ended = incoming.sort(ring, line)?;
        let mut worked = ended > 0;
        while ended < BATCH && !incoming.starved {
            if incoming.fill(&self.socket)?.is_none() {
                break;
            }
            worked = true;
            ended += incoming.sort(ring, line)?;
        }
        Ok(worked)
    }

    fn source(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn is_full(&self) -> bool {
        self.outgoing.full
    }

    fn is_starved(&self) -> bool {
        self.incoming.starved
    }

    fn forget(&mut self, queue: usize) {
        if queue == TRANSMIT {
            self.outgoing.forget();
        } else if let Begun::Delivered(_, left) = self.incoming.frame {
            self.incoming.frame = Begun::Dropped(left);
        }
    }

    fn give_back(&mut self, rings: &mut [Option<Ring>], line: &Line) {
        if let Some(ring) = &mut rings[TRANSMIT] {
            line.dropped.fetch_add(self.outgoing.frames.len() as u64, Relaxed);
            self.outgoing.frames.drain(..).for_each(|frame| ring.push(frame.chain));
        }
        if let Some(ring) = &mut rings[RECEIVE]
            && let Begun::Delivered(chain, _) = std::mem::replace(&mut self.incoming.frame, Begun::No)
        {
            ring.put_back(chain);
        }
    }
}

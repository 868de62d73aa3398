//! A tap of the host's as a link: one frame for each read and write.
//!
//! Start at [`Tap::transmit`] and [`Tap::receive`].

use super::vectors::{self, Gather};
use super::{BATCH, Broken, FRAME, Link, PLAIN, Stop, TRANSMIT, pop_frame};
use crate::devices::chain::Chain;
use crate::devices::line::Line;
use crate::devices::ring::Ring;
use rustix::fd::{AsFd, BorrowedFd};
use std::fs::File;
use std::io;
use std::sync::atomic::Ordering::Relaxed;

/// Bytes of the host's header before each frame: nothing is left to do when they are zero.
const HOST_HEADER: usize = 10;

pub(super) struct Tap {
    file: File,
    /// A frame that the host does not take yet.
    waiting: Option<Chain>,
    starved: bool,
}

impl Tap {
    pub(super) fn new(file: File) -> Self {
        Self { file, waiting: None, starved: false }
    }
}

/// What a call on a tap has moved; `None`: it would wait.
fn moved(result: io::Result<usize>) -> Result<Option<usize>, Stop> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS) => Ok(None),
            _ => Err(Stop::Gone(error)),
        },
    }
}

impl Link for Tap {
    fn transmit(&mut self, ring: &mut Ring, line: &Line) -> Result<bool, Stop> {
        let mut sent = 0;
        while sent < BATCH {
            let next = match self.waiting.take() {
                None => pop_frame(ring, line)?.map(|(_, chain)| chain),
                waiting => waiting,
            };
            let Some(chain) = next else { break };
            let mut gather = Gather::new();
            gather.add(&[0; HOST_HEADER], &chain);
            let result = gather.write(self.file.as_fd());
            // An interface that is down, or a frame that the host finds wrong, is no end of the link.
            let refused = result.as_ref().is_err_and(|error| {
                matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE))
            });
            if refused {
                line.dropped.fetch_add(1, Relaxed);
            } else if moved(result)?.is_none() {
                self.waiting = Some(chain);
                break;
            }
            sent += 1;
            ring.push(chain);
        }
        Ok(sent > 0)
    }

    fn receive(&mut self, ring: &mut Ring, line: &Line) -> Result<bool, Stop> {
        let mut received = 0;
        while received < BATCH {
            let chain = ring.pop()?;
            self.starved = chain.is_none();
            let Some(mut chain) = chain else { break };
            if chain.write(&PLAIN).is_err() {
                return Err(Broken("a buffer for receiving is shorter than the header of a frame").into());
            }
            let room = chain.writable();
            let (mut header, mut beyond) = ([0; HOST_HEADER], [0; 1]);
            let result = vectors::read(self.file.as_fd(), &mut header, &chain, &mut beyond);
            let Some(filled) = moved(result)? else {
                ring.put_back(chain);
                break;
            };
            received += 1;
            let length = filled.saturating_sub(HOST_HEADER);
            if length > room || !FRAME.contains(&length) {
                line.dropped.fetch_add(1, Relaxed);
                chain.note_filled(length.min(room));
                ring.put_back(chain);
            } else {
                chain.note_filled(length);
                ring.push(chain);
            }
        }
        Ok(received > 0)
    }

    fn source(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn is_full(&self) -> bool {
        self.waiting.is_some()
    }

    fn is_starved(&self) -> bool {
        self.starved
    }

    fn forget(&mut self, queue: usize) {
        if queue == TRANSMIT {
            self.waiting = None;
        }
    }

    fn give_back(&mut self, rings: &mut [Option<Ring>], line: &Line) {
        if let Some(ring) = &mut rings[TRANSMIT]
            && let Some(chain) = self.waiting.take()
        {
            line.dropped.fetch_add(1, Relaxed);
            ring.push(chain);
        }
    }
}

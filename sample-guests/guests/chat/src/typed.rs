//! Lines that are typed, for a task that waits for them.

use super::String;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use guest_sdk::console;
use guest_sdk::events::Channel;
use guest_sdk::sync::Lock;

/// The longest line: what is longer is several.
const LONGEST: usize = 1024;

/// Who waits for something to be typed.
static WAITING: Lock<Option<Waker>> = Lock::new(None);

/// The console's lines.
pub struct Lines {
    typed: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// From now on. There is one console.
    pub fn new() -> Self {
        Channel::CONSOLE.on_event(|_| WAITING.lock().take().into_iter().for_each(Waker::wake));
        Self { typed: Vec::new(), ended: false }
    }

    /// The next line. `None`: nothing more is typed.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            let end = self.typed.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let end = end.or_else(|| (self.ended || self.typed.len() >= LONGEST).then_some(self.typed.len()));
            if let Some(end @ 1..) = end {
                let line: Vec<u8> = self.typed.drain(..end).collect();
                return Some(String::from_utf8_lossy(&line).into_owned());
            }
            if self.ended {
                return None;
            }
            let mut bytes = [0; 256];
            match read(&mut bytes).await {
                0 => self.ended = true,
                length => self.typed.extend_from_slice(&bytes[..length]),
            }
        }
    }
}

/// What was typed; zero: nothing more is.
async fn read(bytes: &mut [u8]) -> usize {
    poll_fn(|context| {
        // Before it is looked: what is typed afterwards wakes.
        *WAITING.lock() = Some(context.waker().clone());
        console::read(bytes).map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

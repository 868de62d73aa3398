//! The guest's console: standard input, and the terminal that it may be.
//!
//! Neither is touched before the guest first reads. From then on a terminal sends each key at once and shows none, for
//! editing lines is the guest's; Ctrl-C and its kin stay signals to `hv`. [`Terminal::restore`] must come before the process
//! ends, in whichever way.
//!
//! Start at [`read`].

use hv_core::ConsoleInput;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::stdio::stdin;
use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};
use std::sync::{Arc, Mutex};

/// Bytes that are read at a time.
const PIECE: usize = 4096;

/// Reads standard input for a guest whenever it wants some, until either has ended.
pub(crate) fn read(input: &ConsoleInput, terminal: &Arc<Terminal>) {
    let mut buffer = [0; PIECE];
    while input.wait_until_wanted() {
        terminal.take_keys();
        match rustix::io::read(stdin(), &mut buffer) {
            Ok(0) => return input.close(),
            Ok(length) => drop(input.push(&buffer[..length])), // it fits: the guest has found nothing
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(&stdin(), PollFlags::IN)], None); // whatever came of it, reading tells
            }
            Err(error) => {
                tracing::warn!(%error, "standard input cannot be read; the guest is told that it has ended");
                return input.close();
            }
        }
    }
}

/// The terminal on standard input, if it is one.
#[derive(Default)]
pub(crate) struct Terminal(Mutex<Mode>);

#[derive(Default)]
enum Mode {
    /// As it was found.
    #[default]
    Untouched,
    /// For single keys; how it was before.
    Keys(Termios),
    /// Nothing is to be changed any more.
    Restored,
}

impl Terminal {
    /// Makes it send keys, not lines, and show nothing by itself.
    fn take_keys(&self) {
        let mut mode = self.0.lock().expect("no thread panics with the lock held");
        if !matches!(*mode, Mode::Untouched) || !isatty(stdin()) {
            return;
        }
        let set = tcgetattr(stdin()).and_then(|before| {
            let mut keys = before.clone();
            keys.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            tcsetattr(stdin(), OptionalActions::Now, &keys).map(|()| before)
        });
        match set {
            Ok(before) => *mode = Mode::Keys(before),
            Err(error) => tracing::warn!(%error, "the terminal goes on sending whole lines"),
        }
    }

    /// Leaves it as it was found, for good. In the background it is somebody else's by now, and to touch it would stop `hv`.
    pub(crate) fn restore(&self) {
        let mut mode = self.0.lock().expect("no thread panics with the lock held");
        let elsewhere = tcgetpgrp(stdin()).is_ok_and(|foreground| foreground != getpgrp());
        if let Mode::Keys(before) = std::mem::replace(&mut *mode, Mode::Restored)
            && !elsewhere
        {
            let _ = tcsetattr(stdin(), OptionalActions::Now, &before); // it has gone: nothing is left to restore
        }
    }
}

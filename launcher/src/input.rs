//! The guest's console: standard input, and the terminal that it may be.
//!
//! Neither is touched before the guest first reads. From then on a terminal sends each key at once and shows none, for
//! editing lines is the guest's; Ctrl-C and its kin stay signals to `hv`. [`Terminal::restore`] must come before the process
//! ends, in whichever way.
//!
//! With `--terminal` it is a device of the guest's, and all keys are, but for Ctrl-A ([`Keyboard`]).
//!
//! Start at [`read`].

use crate::signals;
use hv_core::ConsoleInput;
use hv_core::devices::Window;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::getpgrp;
use rustix::stdio::stdin;
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr,
};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

/// Bytes that are read at a time.
const PIECE: usize = 4096;

/// Reads standard input for a guest whenever it wants some, until either has ended.
pub(crate) fn read(input: &ConsoleInput, terminal: &Arc<Terminal>) {
    let mut buffer = [0; PIECE];
    while input.wait_until_wanted() {
        terminal.take(keys);
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

/// What reads standard input for a guest that has it as it is, as a device.
pub(crate) struct Keyboard {
    /// The other end is the device's.
    keys: UnixStream,
    window: Window,
    changes: UnixStream,
}

impl Keyboard {
    /// For a guest that is shown in `window`. Gives what the device is to read, too.
    ///
    /// # Errors
    ///
    /// The host has no descriptors left.
    pub(crate) fn new(window: Window) -> io::Result<(Self, OwnedFd)> {
        let (keys, device) = UnixStream::pair()?;
        let keyboard = Self { keys, window, changes: signals::window_changes()? };
        keyboard.measure();
        Ok((keyboard, device.into()))
    }

    /// Tells the guest how large the window is.
    fn measure(&self) {
        if let Ok(size) = tcgetwinsize(stdin()) {
            self.window.resize(size.ws_col, size.ws_row); // no terminal: the size is not known
        }
    }

    /// Passes on what is typed until there is no more, or, on a terminal, until somebody asks for the end of it all; whether
    /// that was so.
    pub(crate) fn read(mut self, terminal: &Terminal) -> bool {
        let mut escape = isatty(stdin()).then(Escape::default);
        let mut buffer = [0; PIECE];
        terminal.take(all_keys);
        loop {
            let keyboard = PollFd::from_borrowed_fd(stdin(), PollFlags::IN);
            let mut waits = [keyboard, PollFd::new(&self.changes, PollFlags::IN)];
            let _ = poll(&mut waits, None); // whatever came of it, reading tells
            let (typed, changed) = (!waits[0].revents().is_empty(), !waits[1].revents().is_empty());
            if changed {
                let _ = self.changes.read(&mut buffer);
                self.measure();
            }
            if !typed {
                continue;
            }
            let length = match rustix::io::read(stdin(), &mut buffer) {
                Ok(0) => return false,
                Ok(length) => length,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(error) => {
                    tracing::warn!(%error, "standard input cannot be read; the guest gets no more of it");
                    return false;
                }
            };
            let (keys, quits) = match &mut escape {
                Some(escape) => escape.filter(&buffer[..length]),
                None => (buffer[..length].to_vec(), false),
            };
            if quits || self.keys.write_all(&keys).is_err() {
                return quits;
            }
        }
    }
}

/// Ctrl-A, which is for `hv` and not for the guest.
#[derive(Default)]
struct Escape {
    /// The last key was one.
    seen: bool,
}

impl Escape {
    const KEY: u8 = 0x01;

    /// What is for the guest, and whether somebody asks for the end.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut keys = Vec::new();
        for key in typed {
            match (std::mem::take(&mut self.seen), *key) {
                (true, b'x' | b'X') => return (keys, true),
                (true, Self::KEY) => keys.push(Self::KEY),
                (true, _) => {} // no command; more may come to be some
                (false, Self::KEY) => self.seen = true,
                (false, key) => keys.push(key),
            }
        }
        (keys, false)
    }
}

/// Keys, not lines, and none shown: for a guest that edits lines itself.
fn keys(modes: &mut Termios) {
    modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
}

/// All keys as they are. Output is processed as before: what the guest prints by a call, and what `hv` says, goes there, too.
fn all_keys(modes: &mut Termios) {
    modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG | LocalModes::IEXTEN;
    modes.input_modes -= InputModes::BRKINT
        | InputModes::ICRNL
        | InputModes::IGNCR
        | InputModes::INLCR
        | InputModes::ISTRIP
        | InputModes::IXON
        | InputModes::PARMRK;
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
    /// Changes its modes, the first time.
    fn take(&self, change: impl FnOnce(&mut Termios)) {
        let mut mode = self.0.lock().expect("no thread panics with the lock held");
        if !matches!(*mode, Mode::Untouched) || !isatty(stdin()) {
            return;
        }
        let set = tcgetattr(stdin()).and_then(|before| {
            let mut keys = before.clone();
            change(&mut keys);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_is_kept_from_the_guest_unless_it_is_typed_twice() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ab\x01\x01c\x01"), (b"ab\x01c".to_vec(), false));
        assert_eq!(escape.filter(b"yx\x01"), (b"x".to_vec(), false));
        assert_eq!(escape.filter(b"\x01d\x01xe"), (b"\x01d".to_vec(), true));
    }
}

//! The guest's console: standard output.
//!
//! A reader that is slow, stuck or gone must neither end the guest nor keep it from being stopped. So a write
//! waits for the reader *or* for [`Sink::let_go`], whichever comes first, and only then writes, no more than fits.

use hv_core::vm::Stopper;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

/// A pipe or terminal that is ready takes this much without blocking.
const PIECE: usize = 4096;

/// What has become of standard output. Shared between the VM, which writes, and the thread that ends it.
pub(crate) struct Sink {
    /// Readable once nobody is to wait for the reader any more.
    letting_go: OwnedFd,
    /// Why nothing is written any more.
    failed: OnceLock<Errno>,
    /// The last byte written does not end a line.
    mid_line: AtomicBool,
    /// Ends the VM, once there is one: a guest that nobody hears is not to run on.
    stopper: OnceLock<Stopper>,
    /// Something was dropped since nobody was to wait for the reader.
    dropped: AtomicBool,
}

impl Sink {
    /// # Errors
    ///
    /// The host has no descriptors left.
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let letting_go = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Self {
            letting_go,
            failed: OnceLock::new(),
            mid_line: AtomicBool::new(false),
            stopper: OnceLock::new(),
            dropped: AtomicBool::new(false),
        }))
    }

    /// From here on nobody waits for a reader: what it does not take at once is dropped.
    pub(crate) fn let_go(&self) {
        let _ = rustix::io::write(&self.letting_go, &1_u64.to_ne_bytes()); // cannot fail: it would take 2^64 of them
    }

    /// Whether text that follows would stand behind an unfinished line of the guest's.
    pub(crate) fn is_mid_line(&self) -> bool {
        self.mid_line.load(Relaxed)
    }

    /// Whether [`let_go`](Self::let_go) has cost output: the guest may have gone on only because of that.
    pub(crate) fn has_dropped(&self) -> bool {
        self.dropped.load(Relaxed)
    }

    /// From here on the VM is stopped when its output cannot be written any more.
    pub(crate) fn stop_with(&self, stopper: Stopper) {
        let _ = self.stopper.set(stopper); // there is one VM
        if self.failed.get().is_some() {
            self.stop();
        }
    }

    fn stop(&self) {
        if let Some(stopper) = self.stopper.get() {
            stopper.stop();
        }
    }

    /// Whether the reader has gone, as in `hv run .. | head -1`.
    pub(crate) fn reader_has_gone(&self) -> bool {
        self.failed.get() == Some(&Errno::PIPE)
    }

    /// What went wrong in writing, if something did. A reader that has gone is nothing wrong.
    pub(crate) fn error(&self) -> Option<io::Error> {
        self.failed.get().filter(|error| **error != Errno::PIPE).map(|error| io::Error::from(*error))
    }

    /// Waits until standard output takes something; false if nobody is to wait any more.
    fn wait(&self) -> bool {
        let stdout = rustix::stdio::stdout();
        let mut waits = [
            PollFd::from_borrowed_fd(stdout, PollFlags::OUT),
            PollFd::from_borrowed_fd(rustix::fd::AsFd::as_fd(&self.letting_go), PollFlags::IN),
        ];
        while poll(&mut waits, None) == Err(Errno::INTR) {}
        let takes = !waits[0].revents().is_empty();
        if !takes {
            self.dropped.store(true, Relaxed);
        }
        takes
    }
}

/// The VM's end of it.
pub(crate) struct Console(pub(crate) Arc<Sink>);

impl Write for Console {
    /// Never fails: what cannot be written is dropped, and [`Sink::error`] says so at the end.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sink = &*self.0;
        let piece = &bytes[..bytes.len().min(PIECE)];
        while sink.failed.get().is_none() && sink.wait() {
            match rustix::io::write(rustix::stdio::stdout(), piece) {
                Ok(written) => {
                    let last = piece[..written].last();
                    sink.mid_line.store(last.is_some_and(|byte| *byte != b'\n'), Relaxed);
                    return Ok(written);
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => {
                    tracing::debug!(%error, "standard output is gone; what the guest writes is dropped");
                    let _ = sink.failed.set(error); // only this thread sets it
                    sink.stop();
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

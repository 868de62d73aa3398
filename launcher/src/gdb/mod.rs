//! `hv run --gdb`: gdb's remote protocol, which the `gdbstub` crate speaks, for a VM that stands when gdb says so.
//!
//! gdb connects before there is a VM, and before the monitor is locked down, so nothing listens while a guest runs. Then
//! a thread of its own serves the connection; what it wants of the VM it does by [`hv_core::debug::Debugger`].
//!
//! Start at [`connect`] and [`Session::start`].

mod image_file;
mod link;
mod monitor;
mod registers;
mod target;

use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output;
use crate::run::Ending;
use gdbstub::stub::state_machine::GdbStubStateMachine as State;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError, MultiThreadStopReason};
use hv_core::End;
use hv_core::debug::{Debugger, Event};
use hv_core::handle::RequestError;
pub(crate) use image_file::ImageFile;
use link::HangUp;
pub(crate) use link::{Link, Place};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use target::Guest;

/// How often the connection is looked at while the guest runs.
const LOOK: Duration = Duration::from_millis(20);

/// How long gdb may take to hear that the VM has ended.
const PATIENCE: Duration = Duration::from_millis(500);

type Error = GdbStubError<RequestError, io::Error>;

/// Waits for gdb, and says how to connect it.
///
/// # Errors
///
/// It cannot be waited for there.
pub(crate) fn connect(place: &Place, image: &Path) -> Result<Link, Failure> {
    let cannot = |error| Failure::cannot(format!("gdb cannot be waited for at {place}"), error);
    let listener = place.listen().map_err(cannot)?;
    let file = if image.is_file() { format!(" {}", image.display()) } else { String::new() };
    output::tell(&format!(
        "hv: the guest waits for gdb; connect it by:  gdb{file} -ex 'target remote {place}'\n"
    ));
    listener.accept().map_err(cannot)
}

/// A debugger's connection that is served.
pub(crate) struct Session {
    thread: JoinHandle<()>,
    /// Says that the thread is about to end.
    ends: Receiver<()>,
    hang_up: HangUp,
}

impl Session {
    /// Serves a connection on a thread of its own.
    ///
    /// # Errors
    ///
    /// The host has no thread for it.
    pub(crate) fn start(
        link: Link,
        image: ImageFile,
        debugger: Debugger,
        ending: Arc<Ending>,
    ) -> io::Result<Self> {
        let hang_up = link.hang_up()?;
        let (ended, ends) = channel();
        let thread = std::thread::Builder::new().name("hv-gdb".into()).spawn(move || {
            serve(link, Guest::new(debugger, image), &ending);
            drop(ended);
        })?;
        Ok(Self { thread, ends, hang_up })
    }

    /// After the VM has ended: tells gdb, if that waits to hear of it.
    pub(crate) fn finish(self) {
        if self.ends.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            self.hang_up.now(); // it waits for its user, or does not read
        }
        let _ = self.thread.join(); // it has told of its panic
    }
}

/// Serves gdb until it goes or the VM does.
fn serve(link: Link, mut guest: Guest, ending: &Ending) {
    let reason = talk(link, &mut guest);
    tracing::debug!(?reason, "gdb has gone");
    match reason {
        Ok(DisconnectReason::Kill) => ending.stop(Cause::Killed),
        Ok(DisconnectReason::TargetExited(_) | DisconnectReason::TargetTerminated(_)) => {}
        Ok(DisconnectReason::Disconnect) => drop(guest.debugger.detach()),
        Err(error) => {
            if !error.is_connection_error() {
                tracing::warn!(%error, "the connection to gdb is given up, and the guest runs on");
            }
            let _ = guest.debugger.detach(); // fails if there is no VM any more
        }
    }
}

fn talk(link: Link, guest: &mut Guest) -> Result<DisconnectReason, Error> {
    // Its vCPU 0 comes to stand; if it does not, the VM has ended, which is told when gdb lets it go on.
    let _ = guest.debugger.wait(Duration::from_secs(10));
    let mut state = GdbStub::new(link).run_state_machine(guest)?;
    loop {
        state = match state {
            State::Idle(mut idle) => match idle.borrow_conn().next() {
                Ok(byte) => idle.incoming_data(guest, byte)?,
                Err(_) => return Ok(DisconnectReason::Disconnect),
            },
            State::Running(mut running) => match running.borrow_conn().poll() {
                Ok(Some(byte)) => running.incoming_data(guest, byte)?,
                Ok(None) => match happened(guest) {
                    Some(reason) => running.report_stop(guest, reason)?,
                    None => State::Running(running),
                },
                Err(_) => return Ok(DisconnectReason::Disconnect),
            },
            State::CtrlCInterrupt(interrupt) => {
                let reason = guest.interrupt();
                if let Err(error) = &reason {
                    tracing::warn!(%error, "gdb's interrupt came to nothing");
                }
                interrupt.interrupt_handled(guest, reason.ok())?
            }
            State::Disconnected(gone) => return Ok(gone.get_reason()),
        }
    }
}

/// What has happened to a guest that runs.
fn happened(guest: &mut Guest) -> Option<MultiThreadStopReason<u64>> {
    match guest.debugger.wait(LOOK) {
        Ok(Some(Event::Stopped { vcpu, reason })) => Some(guest.has_stopped(vcpu, reason)),
        Ok(Some(Event::Ended(End::Shutdown { code }))) => Some(MultiThreadStopReason::Exited(code)),
        Ok(Some(Event::Ended(_))) => {
            Some(MultiThreadStopReason::Terminated(gdbstub::common::Signal::SIGKILL))
        }
        Ok(Some(_) | None) => None,
        Err(error) => {
            tracing::warn!(%error, "a vCPU stands, and another could not be stopped");
            None
        }
    }
}

//! `--net switch=NAME`: a process with a switch, which all VMs of one user that name it share.
//!
//! Its socket is in the directory of control sockets, which is private to the user. The first VM starts it, and it ends with the
//! last. Who connects to it holds the directory's lock meanwhile, and so does the switch when it looks whether it was the last:
//! so nobody connects to one that is about to end, and no two start the same.
//!
//! Start at [`join`], which monitors call, and at [`serve`], which the process does.

use super::lockdown::{self, Process};
use super::process;
use crate::control::{Directory, Name};
use crate::exit_code::Cause;
use crate::failure::Failure;
use clap::Args;
use hv_core::net::switch::Switch;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FlockOperation, flock};
use std::error::Error;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

/// The arguments of the process with a switch.
#[derive(Args, Debug)]
pub(crate) struct SwitchOptions {
    name: Name,
}

/// A switch's socket. No VM's control socket is called so.
fn file(name: &Name) -> String {
    format!("{name}.switch")
}

/// Connects to a switch, and starts it if it is not there.
///
/// # Errors
///
/// The directory cannot be had, or the switch not started.
pub(super) fn join(name: &Name) -> Result<UnixStream, Failure> {
    let cannot = |error: Box<dyn Error + Send + Sync>| {
        Failure::cannot(format!("the switch `{name}` cannot be joined"), error)
    };
    let directory = Directory::open().map_err(|error| cannot(error.into()))?;
    let _lock = directory.lock().map_err(|error| cannot(error.into()))?;
    let file = file(name);
    if let Some(socket) = directory.connect(&file).map_err(|error| cannot(error.into()))? {
        return Ok(socket);
    }
    let listener = directory.listen_at(&file).map_err(|error| cannot(error.into()))?;
    let connected = directory.connect(&file).map_err(|error| cannot(error.into()))?;
    // It outlives this monitor, so it keeps nothing of its surroundings.
    let mut command = process::again(["net-switch", name.as_str()], listener.into());
    command.stderr(Stdio::null()).current_dir("/");
    process::start(command, "the switch")?;
    connected.ok_or_else(|| cannot("nobody listens at its socket, though it was just made".into()))
}

/// What a switch's process has.
struct Prepared {
    switch: Switch,
    directory: Directory,
    lock: OwnedFd,
}

/// Is the process with a switch, until the last VM has gone.
pub(crate) fn serve(options: &SwitchOptions) -> Result<u8, Failure> {
    let prepared = process::prepare(|| {
        let directory = Directory::open()?;
        let lock = directory.lock_file()?;
        let switch = Switch::new(UnixListener::from(process::socket()?))?;
        lockdown::apply(&Process::Switch { directory: directory.as_fd() })?;
        Ok(Prepared { switch, directory, lock })
    });
    let Some(mut prepared) = prepared else { return Ok(Cause::CannotStart.code()) };
    prepared
        .serve(&options.name)
        .map_err(|error| Failure::cannot("the switch ended before its VMs", error))?;
    Ok(0)
}

impl Prepared {
    fn serve(&mut self, name: &Name) -> io::Result<()> {
        self.switch.accept()?; // the VM that started it
        loop {
            self.switch.serve()?;
            flock(&self.lock, FlockOperation::LockExclusive)?;
            if !self.switch.accept()? {
                // Nobody can have connected since: the lock is let go with this process.
                return self.directory.remove(&file(name));
            }
            flock(&self.lock, FlockOperation::Unlock)?;
        }
    }
}

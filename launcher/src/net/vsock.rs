//! `--vsock`: a guest's sockets on this host, and the process that connects for their monitor.
//!
//! Once a guest runs, the monitor can open no socket. When its guest wants to connect, it asks the *connector*: this program
//! again, in a process that has given up everything but connecting to Unix sockets. It is told a port, adds it to its path, and
//! hands the connected socket back; so a guest that has taken the monitor over can reach the sockets `PATH_N`, and no others. It
//! ends when the monitor does.
//!
//! Start at [`open`]; [`serve`] is the other side.

use super::lockdown::{self, Process};
use super::process;
use crate::exit_code::Cause;
use crate::failure::Failure;
use clap::Args;
use hv_core::devices::{Vsock, connect};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::stdio::stdin;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

/// The context identifier of a guest that is given none.
const USUAL_CID: u32 = 3;

/// What `--vsock` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VsockOption {
    path: PathBuf,
    cid: u32,
}

impl FromStr for VsockOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, cid) = match text.rsplit_once(',') {
            None => (text, USUAL_CID),
            Some((path, option)) => {
                let cid = option.strip_prefix("cid=").and_then(|cid| cid.parse().ok());
                (path, cid.ok_or(format!("expected `cid=N` behind the path, found `{option}`"))?)
            }
        };
        if path.is_empty() {
            return Err("expected a path, as in guest.sock,cid=3".into());
        }
        Ok(Self { path: path.into(), cid })
    }
}

/// `hv vsock-connector`
#[derive(Args, Debug)]
pub(crate) struct ConnectorOptions {
    path: PathBuf,
}

/// Listens on the path, and starts the connector.
///
/// # Errors
///
/// One of these cannot be had.
pub(crate) fn open(option: &VsockOption) -> Result<Vsock, Failure> {
    let cannot = |error: io::Error| Failure::cannot("there is no socket for the connector", error);
    let pair = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (connector, its) = pair.map_err(|error| cannot(error.into()))?;
    let path = option.path.to_str().expect("it came as text");
    process::start(process::again(["vsock-connector", path], its), "what connects a guest's sockets")?;
    Vsock::new(&option.path, option.cid, move |port| ask(&connector, port))
        .map_err(|error| Failure::cannot("the guest cannot have these sockets", error))
}

/// Asks the connector for a stream to a port of the host's.
fn ask(connector: &OwnedFd, port: u32) -> io::Result<UnixStream> {
    rustix::io::write(connector, &port.to_ne_bytes())?;
    let mut error = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(connector, &mut [IoSliceMut::new(&mut error)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let stream = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut streams) => streams.next(),
        _ => None,
    });
    match (stream, i32::from_ne_bytes(error)) {
        (Some(stream), _) => Ok(stream.into()),
        (None, 0) => Err(io::ErrorKind::UnexpectedEof.into()), // it has gone
        (None, error) => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Is the connector, with the monitor's socket as standard input, until the monitor has gone.
pub(crate) fn serve(options: &ConnectorOptions) -> Result<u8, Failure> {
    let prepared = process::prepare(|| {
        // Should the monitor be killed, its end of the socket is closed, too; this is for when something else has that end.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        lockdown::apply(&Process::Connector)
    });
    if prepared.is_none() {
        return Ok(Cause::CannotStart.code());
    }
    let mut port = [0; 4];
    while retry_on_intr(|| rustix::io::read(stdin(), &mut port)) == Ok(port.len()) {
        let connected = connect(&options.path, u32::from_ne_bytes(port));
        if answer(&connected).is_err() {
            break; // it has gone meanwhile
        }
    }
    Ok(0)
}

fn answer(connected: &io::Result<UnixStream>) -> Result<usize, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let streams = connected.as_ref().ok().map(|stream| [stream.as_fd()]);
    if let Some(streams) = &streams {
        control.push(SendAncillaryMessage::ScmRights(streams));
    }
    let error = connected.as_ref().err().map_or(0, |error| {
        error.raw_os_error().unwrap_or(libc::EINVAL) // a path that is too long for a socket
    });
    let error = error.to_ne_bytes();
    sendmsg(stdin(), &[IoSlice::new(&error)], &mut control, SendFlags::NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_a_path_and_a_context() {
        let option = |path: &str, cid| Ok(VsockOption { path: path.into(), cid });
        assert_eq!("/a.sock".parse(), option("/a.sock", 3));
        assert_eq!("a,b,cid=70000".parse(), option("a,b", 70_000));
        for bad in ["", ",cid=4", "a,cid=", "a,cid=x", "a,b"] {
            assert!(bad.parse::<VsockOption>().is_err(), "{bad}");
        }
    }
}

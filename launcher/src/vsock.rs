//! A guest's sockets on this host, and the process that connects for their monitor.
//!
//! Once a guest runs, the monitor can open no socket. When its guest wants to connect, it asks the *connector*: this program
//! again, in a process that has given up everything but connecting to Unix sockets. It is told a port, adds it to its path, and
//! hands the connected socket back; so a guest that has taken the monitor over can reach the sockets `PATH_N`, and no others. It
//! ends when the monitor does.
//!
//! Start at [`open`]; [`serve`] is the other side.

use crate::failure::Failure;
use crate::lockdown;
use clap::Args;
use hv_core::devices::{Vsock, connect};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
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
    let cannot =
        |error| Failure::cannot("the process that connects a guest's sockets could not be started", error);
    let connector = start(option).map_err(cannot)?;
    let connect = move |port| ask(&connector, port);
    Vsock::new(&option.path, option.cid, connect)
        .map_err(|error| Failure::cannot("the guest cannot have these sockets", error))
}

/// Gives the monitor's end of a socket to the connector, which is ready.
fn start(option: &VsockOption) -> io::Result<OwnedFd> {
    let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("vsock-connector").arg(&option.path);
    command.stdin(its).stdout(Stdio::null());
    // What is typed to end a VM is not for it: it ends when the VM has.
    command.process_group(0).spawn()?;
    drop(command); // and with it this process's copy of its end
    match rustix::io::read(&ours, &mut [0])? {
        0 => Err(io::Error::other("it ended at once, and has said why")),
        _ => Ok(ours),
    }
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
///
/// # Errors
///
/// The host does not let it give up its rights.
pub(crate) fn serve(options: &ConnectorOptions) -> Result<u8, Failure> {
    lockdown::apply_to_connector()
        .map_err(|error| Failure::cannot("the host does not let hv give up its rights", error))?;
    let monitor = rustix::stdio::stdin();
    let mut port = [0; 4];
    let mut answered = rustix::io::write(monitor, &[0]).is_ok();
    while answered && rustix::io::retry_on_intr(|| rustix::io::read(monitor, &mut port)) == Ok(port.len()) {
        let connected = connect(&options.path, u32::from_ne_bytes(port));
        answered = answer(&connected).is_ok();
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
    sendmsg(rustix::stdio::stdin(), &[IoSlice::new(&error)], &mut control, SendFlags::NOSIGNAL)
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

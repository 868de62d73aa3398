//! The connection to gdb: where it is waited for, and its bytes.

use gdbstub::conn::Connection;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;

/// Where gdb is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl FromStr for Place {
    type Err = String;

    /// Whatever has a slash in it is a path; a port alone is one of the loopback's.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains('/') {
            return Ok(Self::Unix(text.into()));
        }
        let port = text.strip_prefix(':').unwrap_or(text).parse::<u16>();
        match (text.parse(), port) {
            (Ok(address), _) => Ok(Self::Tcp(address)),
            (_, Ok(port)) => Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into())),
            _ => {
                Err("it is neither ADDRESS:PORT, nor a port, nor a path with a slash in it, such as ./gdb"
                    .into())
            }
        }
    }
}

impl fmt::Display for Place {
    /// As gdb's `target remote` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) if address.ip() == Ipv4Addr::LOCALHOST => write!(f, ":{}", address.port()),
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Place {
    pub(super) fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Tcp(address) => TcpListener::bind(address).map(Listener::Tcp),
            Self::Unix(path) => {
                // One that nobody listens at any more was left behind by an hv that was killed.
                let is_socket =
                    std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
                if is_socket && UnixStream::connect(path).is_err() {
                    std::fs::remove_file(path)?;
                }
                UnixListener::bind(path).map(|listener| Listener::Unix(listener, path.clone()))
            }
        }
    }
}

/// Waits for gdb.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// The first connection; there is no second.
    pub(super) fn accept(self) -> io::Result<Link> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                stream.set_nodelay(true)?;
                Ok(Link::new(stream.into()))
            }
            Self::Unix(listener, path) => {
                let accepted = listener.accept();
                std::fs::remove_file(path)?;
                Ok(Link::new(accepted?.0.into()))
            }
        }
    }
}

/// The connection.
pub(crate) struct Link {
    stream: File,
    /// What has come and was not taken yet, last byte first.
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Link {
    fn new(stream: OwnedFd) -> Self {
        Self { stream: stream.into(), input: Vec::new(), output: Vec::new() }
    }

    /// Something by which another thread ends it.
    pub(super) fn hang_up(&self) -> io::Result<HangUp> {
        self.stream.try_clone().map(HangUp)
    }

    /// Waits for a byte.
    pub(super) fn next(&mut self) -> io::Result<u8> {
        if self.input.is_empty() {
            let mut bytes = [0; 4096];
            let length = self.stream.read(&mut bytes)?;
            self.input.extend(bytes[..length].iter().rev());
        }
        self.input.pop().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// A byte, if there is one.
    pub(super) fn poll(&mut self) -> io::Result<Option<u8>> {
        let mut waits = [PollFd::new(&self.stream, PollFlags::IN)];
        if self.input.is_empty() && poll(&mut waits, Some(&Timespec::default()))? == 0 {
            return Ok(None);
        }
        self.next().map(Some)
    }
}

/// Ends a connection, whatever its thread waits for.
pub(super) struct HangUp(File);

impl HangUp {
    pub(super) fn now(&self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both); // the other end may have gone
    }
}

impl Connection for Link {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.output.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let output = std::mem::take(&mut self.output);
        self.stream.write_all(&output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_ports_addresses_or_paths() {
        for (text, shown) in [
            ("1234", ":1234"),
            (":1234", ":1234"),
            ("127.0.0.1:1234", ":1234"),
            ("0.0.0.0:7", "0.0.0.0:7"),
            ("[::1]:7", "[::1]:7"),
            ("./gdb", "./gdb"),
        ] {
            assert_eq!(text.parse::<Place>().expect(text).to_string(), shown);
        }
        for text in ["", "gdb", "127.0.0.1", "99999"] {
            text.parse::<Place>().expect_err(text);
        }
    }
}

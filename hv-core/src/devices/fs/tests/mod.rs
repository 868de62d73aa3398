//! The server without a VM: requests as bytes, in a directory that is made for the test.
//!
//! [`operations`] is what works, [`attacks`] what must not, [`model`] random operations beside the same on the host, and
//! [`linux`] the server under Linux's own client.

mod attacks;
mod linux;
mod model;
mod operations;

use super::folder::{Access, FolderError, SharedFolder};
use super::server::{Limits, Server};
use crate::devices::chain::{Chain, Segment};
use crate::memory::GuestMemory;
use hv_abi::GuestPhys;
use hv_abi::fuse::*;
use rustix::io::Errno;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes};

type Result<T> = std::result::Result<T, Errno>;

const LIMITS: Limits = Limits { inodes: 100, handles: 20 };

/// Where requests, and replies, are in memory, and the most bytes of each.
const REQUEST: u64 = 0;
const REPLY: u64 = 2 << 20;
const MOST: usize = 2 << 20;

/// Makes requests, and reads replies, in a guest's memory.
struct Memory {
    memory: Arc<GuestMemory>,
    requests: usize,
}

impl Memory {
    fn new() -> Self {
        Self { memory: Arc::new(GuestMemory::new(4 << 20).unwrap()), requests: 0 }
    }

    /// Has a server answer a request that has so much room for its reply.
    fn answer(&mut self, server: &mut Server, request: &[u8], room: usize) -> Vec<u8> {
        self.memory.write_bytes(GuestPhys(REQUEST), request).unwrap();
        self.requests += 1;
        // In pieces of some size, which is never the same for long.
        let pieces = |start: u64, length: usize| -> Vec<Segment> {
            let piece = (length / 100).max([1, 7, 40, 4096, 1 << 20][self.requests % 5]);
            let segment = |at: usize| Segment {
                start: GuestPhys(start + at as u64),
                length: piece.min(length - at) as u32,
            };
            (0..length).step_by(piece).map(segment).collect()
        };
        let (readable, writable) = (pieces(REQUEST, request.len()), pieces(REPLY, room));
        let mut chain = Chain::new(self.memory.clone(), 0, readable.into(), writable.into());
        if server.answer(&mut chain).is_err() {
            assert_eq!(chain.written(), 0);
        }
        let mut reply = vec![0; chain.written() as usize];
        self.memory.read_bytes(GuestPhys(REPLY), &mut reply).unwrap();
        reply
    }
}

/// A guest: makes requests, and believes what it is told.
struct Guest {
    server: Server,
    memory: Memory,
    unique: u64,
    /// Where the folder is. Beside it, in the same directory, are things that it must not get at.
    outside: TempDir,
}

impl Guest {
    fn new(access: Access) -> Self {
        let outside = tempfile::tempdir().unwrap();
        let path = outside.path().join("shared");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        let server = Server::new(SharedFolder::open(&path, "share", access).unwrap(), LIMITS);
        let mut guest = Self { server, memory: Memory::new(), unique: 0, outside };
        let init = InitIn { major: MAJOR, minor: MINOR, max_readahead: 0, flags: u32::MAX };
        let told: InitOut = guest.ask(opcode::INIT, 0, &init, b"").unwrap();
        assert_eq!((told.major, told.minor, told.max_write), (7, 31, 1 << 20));
        guest
    }

    /// The folder on the host.
    fn host(&self, path: &str) -> std::path::PathBuf {
        self.outside().join("shared").join(path)
    }

    fn outside(&self) -> &Path {
        self.outside.path()
    }

    /// Makes a request and gives what is behind the reply's header, `room` bytes at most.
    fn raw(&mut self, opcode: u32, nodeid: u64, arguments: &[&[u8]], room: usize) -> Result<Vec<u8>> {
        self.unique += 1;
        let arguments = arguments.concat();
        let len = (size_of::<InHeader>() + arguments.len()) as u32;
        let header = InHeader { len, opcode, unique: self.unique, nodeid, ..InHeader::default() };
        let request = [header.as_bytes(), &arguments].concat();
        let room = (size_of::<OutHeader>() + room).min(MOST);
        let reply = self.memory.answer(&mut self.server, &request, room);
        let (header, body) = OutHeader::read_from_prefix(&reply).unwrap();
        assert_eq!((header.len as usize, header.unique), (reply.len(), self.unique));
        if header.error != 0 {
            assert_eq!(body.len(), 0);
            return Err(Errno::from_raw_os_error(-header.error));
        }
        Ok(body.to_vec())
    }

    /// A request whose reply is a structure.
    fn ask<T: FromBytes>(
        &mut self,
        opcode: u32,
        node: u64,
        arguments: &(impl IntoBytes + Immutable),
        more: &[u8],
    ) -> Result<T> {
        let reply = self.raw(opcode, node, &[arguments.as_bytes(), more], 4096)?;
        Ok(T::read_from_bytes(&reply).expect("the reply has the structure's size"))
    }

    fn lookup(&mut self, directory: u64, name: &str) -> Result<EntryOut> {
        self.ask(opcode::LOOKUP, directory, &(), &zero(name))
    }

    fn attributes(&mut self, node: u64) -> Result<Attr> {
        self.ask::<AttrOut>(opcode::GETATTR, node, &GetattrIn::default(), b"").map(|out| out.attr)
    }

    fn set(&mut self, node: u64, wanted: SetattrIn) -> Result<Attr> {
        self.ask::<AttrOut>(opcode::SETATTR, node, &wanted, b"").map(|out| out.attr)
    }

    fn mkdir(&mut self, directory: u64, name: &str) -> Result<EntryOut> {
        self.ask(opcode::MKDIR, directory, &MkdirIn { mode: 0o755, umask: 0o022 }, &zero(name))
    }

    fn create(&mut self, directory: u64, name: &str, flags: u32) -> Result<(EntryOut, u64)> {
        let request = CreateIn { flags, mode: 0o100_644, umask: 0o022, open_flags: 0 };
        let reply = self.raw(opcode::CREATE, directory, &[request.as_bytes(), &zero(name)], 4096)?;
        let (entry, open) = EntryOut::read_from_prefix(&reply).unwrap();
        Ok((entry, OpenOut::read_from_bytes(open).unwrap().fh))
    }

    fn open(&mut self, node: u64, flags: u32) -> Result<u64> {
        let opened: OpenOut = self.ask(opcode::OPEN, node, &OpenIn { flags, open_flags: 0 }, b"")?;
        Ok(opened.fh)
    }

    fn opendir(&mut self, node: u64) -> Result<u64> {
        self.ask::<OpenOut>(opcode::OPENDIR, node, &OpenIn::default(), b"").map(|opened| opened.fh)
    }

    fn release(&mut self, fh: u64) -> Result<()> {
        self.ask(opcode::RELEASE, 0, &ReleaseIn { fh, ..ReleaseIn::default() }, b"")
    }

    fn read(&mut self, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        let request = ReadIn { fh, offset, size, ..ReadIn::default() };
        self.raw(opcode::READ, 0, &[request.as_bytes()], size as usize)
    }

    fn write(&mut self, fh: u64, offset: u64, bytes: &[u8]) -> Result<u32> {
        let request = WriteIn { fh, offset, size: bytes.len() as u32, ..WriteIn::default() };
        self.ask::<WriteOut>(opcode::WRITE, 0, &request, bytes).map(|out| out.size)
    }

    fn remove(&mut self, directory: u64, name: &str) -> Result<()> {
        self.ask(opcode::UNLINK, directory, &(), &zero(name))
    }

    fn rmdir(&mut self, directory: u64, name: &str) -> Result<()> {
        self.ask(opcode::RMDIR, directory, &(), &zero(name))
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), flags: u32) -> Result<()> {
        let request = Rename2In { newdir: to.0, flags, padding: 0 };
        self.ask(opcode::RENAME2, from.0, &request, &[zero(from.1), zero(to.1)].concat())
    }

    fn forget(&mut self, nodeid: u64, nlookup: u64) {
        let forget = ForgetIn { nlookup };
        let header = InHeader { len: 48, opcode: opcode::FORGET, nodeid, ..InHeader::default() };
        let request = [header.as_bytes(), forget.as_bytes()].concat();
        assert_eq!(self.memory.answer(&mut self.server, &request, 0), b"");
    }

    /// What a directory has, by name, in the order of the host's; read in replies of so many bytes.
    fn list(&mut self, node: u64, size: u32) -> Result<Vec<(String, Dirent)>> {
        let (fh, mut offset, mut all) = (self.opendir(node)?, 0, Vec::new());
        loop {
            let request = ReadIn { fh, offset, size, ..ReadIn::default() };
            let reply = self.raw(opcode::READDIR, node, &[request.as_bytes()], size as usize)?;
            let mut rest = &reply[..];
            if rest.is_empty() {
                self.ask::<()>(opcode::RELEASEDIR, node, &ReleaseIn { fh, ..ReleaseIn::default() }, b"")?;
                return Ok(all);
            }
            while !rest.is_empty() {
                let dirent = Dirent::read_from_prefix(rest).unwrap().0;
                let name = &rest[24..24 + dirent.namelen as usize];
                all.push((String::from_utf8_lossy(name).into_owned(), dirent));
                offset = dirent.off;
                rest = &rest[(24 + dirent.namelen as usize).next_multiple_of(8)..];
            }
        }
    }
}

/// Names as requests have them.
fn zero(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

//! The server of a shared folder: answers FUSE requests.
//!
//! Every request is from somebody hostile: its structures are copied once and checked, its numbers are looked up in
//! tables that only this side fills ([`Inodes`], [`Handles`]), and its names go through [`SharedFolder`]. Errors are the
//! host's own numbers. A request is done before its reply, and one at a time.
//!
//! Nothing is promised to stay valid (all `_valid` are 0): the host's programs use the folder at the same time.
//!
//! Start at `Server::answer`.

use super::folder::SharedFolder;
use super::handles::Handles;
use super::inodes::Inodes;
use super::message::Message;
use crate::devices::chain::{Chain, TooShort};
use hv_abi::fuse::{
    BatchForgetIn, ForgetIn, ForgetOne, InHeader, InitIn, InitOut, MAJOR, MINOR, NAME_MAX, ROOT, StatfsOut,
    init, opcode,
};
use rustix::fd::BorrowedFd;
use rustix::io::{Errno, Result};
use rustix::process::{Resource, getrlimit};

/// Bytes of data that one request reads or writes at most.
pub(super) const MOST_DATA: u32 = 1 << 20;

/// The oldest version of the protocol that a guest may speak: structures changed before.
const OLDEST_MINOR: u32 = 27;

/// What this server can do, if the guest can, too.
const CAPABILITIES: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES;

/// How many files a guest can know of, and have open. Each costs a descriptor of this process, which needs some itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) inodes: usize,
    pub(super) handles: usize,
}

impl Limits {
    /// Those of one of so many servers in this process.
    pub(super) fn of_one_among(servers: usize) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let share = usize::try_from(descriptors).unwrap_or(usize::MAX) / servers.max(1);
        Self { inodes: (share / 2).min(1 << 16), handles: (share / 8).min(1 << 12) }
    }
}

/// Answers requests about one folder.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) folder: SharedFolder,
    pub(super) inodes: Inodes,
    pub(super) handles: Handles,
    /// Where the host puts the entries of a directory.
    pub(super) entries: Vec<u8>,
    limits: Limits,
}

impl Server {
    /// For a folder.
    pub(super) fn new(folder: SharedFolder, limits: Limits) -> Self {
        let (inodes, handles) = (Inodes::new(limits.inodes), Handles::new(limits.handles));
        Self { folder, inodes, handles, entries: Vec::with_capacity(32 << 10), limits }
    }

    /// Forgets and closes all that the guest has.
    pub(super) fn reset(&mut self) {
        self.inodes = Inodes::new(self.limits.inodes);
        self.handles = Handles::new(self.limits.handles);
    }

    /// Does what a request asks for, and replies, unless it is one that has no reply.
    ///
    /// # Errors
    ///
    /// There is no room for a header.
    pub(super) fn answer(&mut self, chain: &mut Chain) -> std::result::Result<(), TooShort> {
        let length = chain.readable();
        let header: InHeader = chain.read_value()?;
        if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
            self.forget(&header, chain);
            return Ok(());
        }
        let mut message = Message::new(chain)?;
        let done = match header.len as usize == length {
            true => self.dispatch(&header, &mut message),
            false => Err(Errno::INVAL),
        };
        message.end(header.unique, done);
        Ok(())
    }

    fn dispatch(&mut self, header: &InHeader, message: &mut Message<'_>) -> Result<()> {
        let node = header.nodeid;
        tracing::trace!(opcode = header.opcode, node, "shared folder");
        match header.opcode {
            opcode::INIT => self.init(message),
            opcode::DESTROY => {
                self.reset();
                Ok(())
            }
            opcode::STATFS => self.statfs(message),

            opcode::LOOKUP => self.lookup(node, message),
            opcode::MKDIR => self.mkdir(node, message),
            opcode::UNLINK => self.unlink(node, message),
            opcode::RMDIR => self.rmdir(node, message),
            opcode::RENAME => self.rename(node, message),
            opcode::RENAME2 => self.rename2(node, message),
            opcode::LINK => self.link(node, message),
            opcode::SYMLINK => self.symlink(),
            opcode::READLINK => self.readlink(node, message),

            opcode::GETATTR => self.getattr(node, message),
            opcode::SETATTR => self.setattr(node, message),

            opcode::CREATE => self.create(node, message),
            opcode::OPEN => self.open(node, message),
            opcode::READ => self.read(message),
            opcode::WRITE => self.write(message),
            opcode::FLUSH => self.flush(message),
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(message),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(message),

            opcode::OPENDIR => self.opendir(node, message),
            opcode::READDIR => self.readdir(message),
            opcode::READDIRPLUS => self.readdirplus(message),
            _ => Err(Errno::NOSYS),
        }
    }

    /// What a node stands for.
    pub(super) fn node(&self, node: u64) -> Result<BorrowedFd<'_>> {
        if node == ROOT { Ok(self.folder.directory()) } else { self.inodes.get(node) }
    }

    /// A guest that begins anew begins with nothing.
    fn init(&mut self, message: &mut Message<'_>) -> Result<()> {
        let asked: InitIn = message.take()?;
        if asked.major < MAJOR || (asked.major == MAJOR && asked.minor < OLDEST_MINOR) {
            return Err(Errno::PROTO);
        }
        self.reset();
        message.put(&InitOut {
            major: MAJOR, // of a later major, the guest then asks again with this
            minor: if asked.major == MAJOR { asked.minor.min(MINOR) } else { MINOR },
            max_readahead: asked.max_readahead,
            flags: asked.flags & CAPABILITIES,
            max_background: 64,
            congestion_threshold: 48,
            max_write: MOST_DATA,
            time_gran: 1,
            max_pages: (u64::from(MOST_DATA) / hv_abi::PAGE_SIZE) as u16,
            ..InitOut::default()
        })
    }

    /// Has no reply, and so no errors.
    fn forget(&mut self, header: &InHeader, chain: &mut Chain) {
        if header.opcode == opcode::FORGET {
            if let Ok(ForgetIn { nlookup }) = chain.read_value() {
                self.inodes.forget(header.nodeid, nlookup);
            }
        } else if let Ok(BatchForgetIn { count, .. }) = chain.read_value() {
            for _ in 0..count {
                let Ok(ForgetOne { nodeid, nlookup }) = chain.read_value() else { break };
                self.inodes.forget(nodeid, nlookup);
            }
        }
    }

    fn statfs(&self, message: &mut Message<'_>) -> Result<()> {
        let host = rustix::fs::fstatvfs(self.folder.directory())?;
        message.put(&StatfsOut {
            blocks: host.f_blocks,
            bfree: host.f_bfree,
            bavail: host.f_bavail,
            files: host.f_files,
            ffree: host.f_ffree,
            bsize: host.f_bsize as u32,
            namelen: (host.f_namemax as u32).min(NAME_MAX as u32),
            frsize: host.f_frsize as u32,
            ..StatfsOut::default()
        })
    }
}

//! The server of a shared folder: answers FUSE requests.
//!
//! Every request is from somebody hostile: its structures are copied once and checked, its numbers are looked up in
//! tables that only this side fills ([`Inodes`], [`Handles`]), and its names go through [`SharedFolder`]. Errors are the
//! host's own numbers. A request is done before its reply, and one at a time.
//!
//! Nothing is promised to stay valid (all `_valid` are 0): the host's programs use the folder at the same time.
//!
//! Start at [`Server::answer`].

use super::folder::SharedFolder;
use super::handles::Handles;
use super::inodes::Inodes;
use super::message::{Body, Reply, Request};
use hv_abi::fuse::{
    BatchForgetIn, ForgetIn, ForgetOne, InHeader, InitIn, InitOut, MAJOR, MINOR, NAME_MAX, OutHeader, ROOT,
    StatfsOut, init, opcode,
};
use rustix::fd::BorrowedFd;
use rustix::io::{Errno, Result};
use rustix::process::{Resource, getrlimit};
use zerocopy::IntoBytes;

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
pub(crate) struct Limits {
    pub(crate) inodes: usize,
    pub(crate) handles: usize,
}

impl Limits {
    /// Those of one of so many servers in this process.
    pub(crate) fn of_one_among(servers: usize) -> Self {
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let share = usize::try_from(descriptors).unwrap_or(usize::MAX) / servers.max(1);
        Self { inodes: (share / 2).min(1 << 16), handles: (share / 8).min(1 << 12) }
    }
}

/// Answers requests about one folder.
#[derive(Debug)]
pub(crate) struct Server {
    pub(super) folder: SharedFolder,
    pub(super) inodes: Inodes,
    pub(super) handles: Handles,
    /// Where the host puts the entries of a directory.
    pub(super) entries: Vec<u8>,
    limits: Limits,
}

impl Server {
    /// For a folder.
    pub(crate) fn new(folder: SharedFolder, limits: Limits) -> Self {
        let (inodes, handles) = (Inodes::new(limits.inodes), Handles::new(limits.handles));
        Self { folder, inodes, handles, entries: Vec::with_capacity(32 << 10), limits }
    }

    /// Forgets and closes all that the guest has.
    pub(crate) fn reset(&mut self) {
        self.inodes = Inodes::new(self.limits.inodes);
        self.handles = Handles::new(self.limits.handles);
    }

    /// Does what a request asks for. Gives how many bytes the reply has: none if there is none.
    pub(crate) fn answer(&mut self, mut request: impl Request, reply: &mut impl Reply) -> usize {
        const HEADER: usize = size_of::<OutHeader>();
        let length = request.remaining();
        let Ok(header) = request.structure::<InHeader>() else { return 0 };
        if matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET) {
            self.forget(&header, &mut request);
            return 0;
        }
        if reply.room() < HEADER {
            return 0;
        }
        let mut body = Body::new(reply, HEADER);
        let done = match header.len as usize == length {
            true => self.dispatch(&header, &mut request, &mut body),
            false => Err(Errno::INVAL),
        };
        let (length, error) = match done {
            Ok(()) => (body.length(), 0),
            Err(error) => (HEADER, -error.raw_os_error()),
        };
        let header = OutHeader { len: length as u32, error, unique: header.unique };
        reply.write(0, header.as_bytes());
        length
    }

    fn dispatch(
        &mut self,
        header: &InHeader,
        request: &mut impl Request,
        body: &mut Body<'_, impl Reply>,
    ) -> Result<()> {
        let node = header.nodeid;
        tracing::trace!(opcode = header.opcode, node, "shared folder");
        match header.opcode {
            opcode::INIT => self.init(request, body),
            opcode::DESTROY => {
                self.reset();
                Ok(())
            }
            opcode::STATFS => self.statfs(body),

            opcode::LOOKUP => self.lookup(node, request, body),
            opcode::MKDIR => self.mkdir(node, request, body),
            opcode::UNLINK => self.unlink(node, request),
            opcode::RMDIR => self.rmdir(node, request),
            opcode::RENAME => self.rename(node, request),
            opcode::RENAME2 => self.rename2(node, request),
            opcode::LINK => self.link(node, request, body),
            opcode::SYMLINK => self.symlink(),
            opcode::READLINK => self.readlink(node, body),

            opcode::GETATTR => self.getattr(node, body),
            opcode::SETATTR => self.setattr(node, request, body),

            opcode::CREATE => self.create(node, request, body),
            opcode::OPEN => self.open(node, request, body),
            opcode::READ => self.read(request, body),
            opcode::WRITE => self.write(request, body),
            opcode::FLUSH => self.flush(request),
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(request),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(request),

            opcode::OPENDIR => self.opendir(node, body),
            opcode::READDIR => self.readdir(request, body),
            opcode::READDIRPLUS => self.readdirplus(request, body),
            _ => Err(Errno::NOSYS),
        }
    }

    /// What a node stands for.
    pub(super) fn node(&self, node: u64) -> Result<BorrowedFd<'_>> {
        if node == ROOT { Ok(self.folder.directory()) } else { self.inodes.get(node) }
    }

    /// A guest that begins anew begins with nothing.
    fn init(&mut self, request: &mut impl Request, body: &mut Body<'_, impl Reply>) -> Result<()> {
        let asked: InitIn = request.structure()?;
        if asked.major < MAJOR || (asked.major == MAJOR && asked.minor < OLDEST_MINOR) {
            return Err(Errno::PROTO);
        }
        self.reset();
        body.structure(&InitOut {
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
    fn forget(&mut self, header: &InHeader, request: &mut impl Request) {
        if header.opcode == opcode::FORGET {
            if let Ok(forget) = request.structure::<ForgetIn>() {
                self.inodes.forget(header.nodeid, forget.nlookup);
            }
        } else if let Ok(BatchForgetIn { count, .. }) = request.structure() {
            for _ in 0..count {
                let Ok(forget) = request.structure::<ForgetOne>() else { break };
                self.inodes.forget(forget.nodeid, forget.nlookup);
            }
        }
    }

    fn statfs(&self, body: &mut Body<'_, impl Reply>) -> Result<()> {
        let host = rustix::fs::fstatvfs(self.folder.directory())?;
        body.structure(&StatfsOut {
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

//! Shared folders: the host's files, by virtio-fs.
//!
//! A [`Node`] stands for a file or directory, a [`Handle`] for one that is open; the host forgets and closes them when they are
//! dropped. What is asked of the host is a [`Call`]: `.await` it, or [`blocking`](Call::blocking). Symbolic links are what the
//! host has them say, and never followed by either side; who walks a path follows them or not.
//!
//! A call that is dropped while it is under way is made all the same; a node or handle that its reply would give is the host's to
//! keep until the driver is dropped.
//!
//! Nothing is kept here of what the host said: its programs change the folder at the same time.
//!
//! Start at [`SharedFolder::find`] and [`SharedFolder::root`].

mod call;
mod reply;

pub use call::Call;
pub use reply::{Attributes, DirectoryEntry, Kind, Room};

use crate::Transport;
use crate::queue::{Device, Queue};
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use call::{Exchange, Farewell};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_sdk::sync::Lock;
use guest_sdk::task::{self, Source};
use hv_abi::device::kind;
use hv_abi::fuse::*;
use reply::Reply;
use zerocopy::IntoBytes;

/// Buffers of the queue: for 21 requests at once, that are small.
const SIZE: usize = 64;

/// The queue of requests; the one before it is for those that must not wait, of which there are none here.
const REQUESTS: u16 = 1;

/// The oldest version of the protocol that a host may speak.
const OLDEST_MINOR: u32 = 27;

/// Permissions of what is made here, before the host takes away what its user does not want.
const FILE_MODE: u32 = 0o666;
const DIRECTORY_MODE: u32 = 0o777;

/// Why something about files failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host refused it, with this error of Linux's; the ones that are likely are in [`errno`].
    #[error("the host refuses it with error {0}")]
    Refused(i32),
    /// A name is empty, too long, or has a slash or a zero byte in it.
    #[error("not a name of a file: it is empty, longer than 255 bytes, or has a slash or zero byte in it")]
    BadName,
    /// The device does not work, or does not answer as it should.
    #[error(transparent)]
    Device(#[from] crate::Error),
}

type Result<T> = core::result::Result<T, Error>;

/// A folder of the host's.
#[derive(Clone)]
pub struct SharedFolder(Arc<Inner>);

struct Inner {
    device: Arc<Device<Exchange, SIZE>>,
    tag: String,
    /// Bytes that one call reads or writes at most.
    most: usize,
    next_unique: AtomicU64,
    /// What is to be closed and forgotten, once there is room.
    farewells: Lock<Vec<Farewell>>,
}

impl SharedFolder {
    /// The VM's first shared folder that has no driver yet.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`](crate::Error::NoDevice) if there is none; [`Error::Unsupported`](crate::Error::Unsupported) if the
    /// host speaks another protocol.
    pub fn find() -> Result<Self> {
        let mut transport = Transport::find(kind::FILE_SYSTEM)?;
        transport.negotiate(0)?;
        let queue = Queue::new(&mut transport, REQUESTS)?;
        let tag: [u8; TAG_MAX] = transport.config(0)?;
        let tag = tag.split(|byte| *byte == 0).next().unwrap_or_default();
        let tag = String::from_utf8_lossy(tag).into_owned();
        let device = Arc::new(Device::new(transport, queue));
        task::register(device.clone());
        let inner = Inner {
            device,
            tag,
            most: 4096,
            next_unique: AtomicU64::new(1),
            farewells: Lock::new(Vec::new()),
        };
        let mut folder = Self(Arc::new(inner));
        let wanted = InitIn {
            major: MAJOR,
            minor: MINOR,
            max_readahead: 0,
            flags: init::ATOMIC_O_TRUNC | init::BIG_WRITES | init::MAX_PAGES,
        };
        let told: InitOut =
            folder.call(opcode::INIT, 0, &[wanted.as_bytes()], |_, reply| reply.structure()).blocking()?;
        if told.major != MAJOR || told.minor < OLDEST_MINOR {
            return Err(crate::Error::Unsupported.into());
        }
        let inner = Arc::get_mut(&mut folder.0).expect("the call is over, and nobody else has it");
        inner.most = (told.max_write as usize).clamp(4096, 1 << 20);
        Ok(folder)
    }

    /// The name that the host has given it.
    pub fn tag(&self) -> &str {
        &self.0.tag
    }

    /// The folder itself.
    pub fn root(&self) -> Node {
        Node { id: ROOT, folder: self.clone() }
    }

    /// How much room there is.
    pub fn room(&self) -> Call<Room> {
        self.call(opcode::STATFS, ROOT, &[], |_, reply| reply.structure::<StatfsOut>().map(Room::from))
    }

    /// Gives a name of one directory to another, or the same one. A file that has the new name is gone.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`].
    pub fn rename(&self, from: (&Node, &str), to: (&Node, &str)) -> Result<Call<()>> {
        let request = RenameIn { newdir: to.0.id };
        let names = [name(from.1)?, name(to.1)?];
        let arguments = [request.as_bytes(), &names[0], &names[1]];
        Ok(self.call(opcode::RENAME, from.0.id, &arguments, |_, reply| reply.nothing()))
    }

    /// A call whose reply is a structure, or nothing.
    fn call<T>(
        &self,
        opcode: u32,
        node: u64,
        arguments: &[&[u8]],
        read: fn(&Self, Reply) -> Result<T>,
    ) -> Call<T> {
        // More than any of them.
        let room = vec![0; size_of::<EntryOut>() + size_of::<OpenOut>()];
        Call::new(self, opcode, node, arguments.concat(), Vec::new(), room, read)
    }

    fn unique(&self) -> u64 {
        self.0.next_unique.fetch_add(1, Ordering::Relaxed)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        task::unregister(&(self.device.clone() as Arc<dyn Source>));
    }
}

/// A file or directory of the host's, open or not.
pub struct Node {
    id: u64,
    folder: SharedFolder,
}

impl Node {
    /// What the host has by a name in this directory.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`].
    pub fn lookup(&self, name: &str) -> Result<Call<(Node, Attributes)>> {
        let name = self::name(name)?;
        Ok(self
            .folder
            .call(opcode::LOOKUP, self.id, &[&name], |folder, reply| entry(folder, &reply.structure()?)))
    }

    /// What is known of it.
    pub fn attributes(&self) -> Call<Attributes> {
        let request = GetattrIn::default();
        self.folder.call(opcode::GETATTR, self.id, &[request.as_bytes()], |_, reply| attributes(reply))
    }

    /// Makes a file so long: cuts it, or adds zeros.
    pub fn set_size(&self, size: u64) -> Call<Attributes> {
        let request = SetattrIn { valid: setattr::SIZE, size, ..SetattrIn::default() };
        self.folder.call(opcode::SETATTR, self.id, &[request.as_bytes()], |_, reply| attributes(reply))
    }

    /// Where a symbolic link leads.
    pub fn read_link(&self) -> Call<Vec<u8>> {
        let room = vec![0; 4096]; // as long as Linux has them
        Call::new(&self.folder, opcode::READLINK, self.id, Vec::new(), Vec::new(), room, |_, reply| {
            Ok(reply.bytes())
        })
    }

    /// Opens a file, with flags of [`open`].
    pub fn open(&self, flags: u32) -> Call<Handle> {
        let request = OpenIn { flags, open_flags: 0 };
        self.folder.call(opcode::OPEN, self.id, &[request.as_bytes()], |folder, reply| {
            let OpenOut { fh, .. } = reply.structure()?;
            Ok(Handle { fh, of_directory: false, folder: folder.clone() })
        })
    }

    /// Makes a file in this directory, or takes the one that is there, and opens it, with flags of [`open`].
    ///
    /// # Errors
    ///
    /// [`Error::BadName`].
    pub fn create(&self, name: &str, flags: u32) -> Result<Call<(Node, Handle)>> {
        let request = CreateIn { flags, mode: mode::REGULAR | FILE_MODE, umask: 0, open_flags: 0 };
        let arguments = [request.as_bytes(), &self::name(name)?];
        Ok(self.folder.call(opcode::CREATE, self.id, &arguments, |folder, reply| {
            let (made, OpenOut { fh, .. }) = reply.two_structures()?;
            let handle = Handle { fh, of_directory: false, folder: folder.clone() };
            Ok((entry(folder, &made)?.0, handle))
        }))
    }

    /// Makes a directory in this one.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`].
    pub fn make_directory(&self, name: &str) -> Result<Call<(Node, Attributes)>> {
        let request = MkdirIn { mode: DIRECTORY_MODE, umask: 0 };
        let arguments = [request.as_bytes(), &self::name(name)?];
        Ok(self
            .folder
            .call(opcode::MKDIR, self.id, &arguments, |folder, reply| entry(folder, &reply.structure()?)))
    }

    /// Removes a file from this directory.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`].
    pub fn remove_file(&self, name: &str) -> Result<Call<()>> {
        Ok(self.folder.call(opcode::UNLINK, self.id, &[&self::name(name)?], |_, reply| reply.nothing()))
    }

    /// Removes an empty directory from this one.
    ///
    /// # Errors
    ///
    /// [`Error::BadName`].
    pub fn remove_directory(&self, name: &str) -> Result<Call<()>> {
        Ok(self.folder.call(opcode::RMDIR, self.id, &[&self::name(name)?], |_, reply| reply.nothing()))
    }

    /// Opens this directory, to [`list`](Handle::list) it.
    pub fn open_directory(&self) -> Call<Handle> {
        let request = OpenIn::default();
        self.folder.call(opcode::OPENDIR, self.id, &[request.as_bytes()], |folder, reply| {
            let OpenOut { fh, .. } = reply.structure()?;
            Ok(Handle { fh, of_directory: true, folder: folder.clone() })
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.id != ROOT {
            self.folder.part(Farewell::Forget(self.id));
        }
    }
}

/// A file or directory that is open.
pub struct Handle {
    fh: u64,
    of_directory: bool,
    folder: SharedFolder,
}

impl Handle {
    /// Reads from `offset` on, as many bytes as the buffer has room for and one call reads; gives the buffer back, as long as
    /// there were bytes. It is empty at the file's end.
    pub fn read(&self, offset: u64, mut buffer: Vec<u8>) -> Call<Vec<u8>> {
        buffer.truncate(self.folder.0.most);
        let request = ReadIn { fh: self.fh, offset, size: buffer.len() as u32, ..ReadIn::default() };
        let arguments = request.as_bytes().to_vec();
        Call::new(&self.folder, opcode::READ, 0, arguments, Vec::new(), buffer, |_, reply| Ok(reply.bytes()))
    }

    /// Writes from `offset` on, as much as one call does; gives how many bytes that was, and the bytes back.
    pub fn write(&self, offset: u64, mut bytes: Vec<u8>) -> Call<(usize, Vec<u8>)> {
        bytes.truncate(self.folder.0.most);
        let size = bytes.len() as u32;
        let request = WriteIn { fh: self.fh, offset, size, ..WriteIn::default() };
        let (arguments, room) = (request.as_bytes().to_vec(), vec![0; size_of::<WriteOut>()]);
        Call::new(&self.folder, opcode::WRITE, 0, arguments, bytes, room, |_, reply| {
            let WriteOut { size, .. } = reply.structure()?;
            let (size, sent) = (size as usize, reply.sent());
            if size <= sent.len() { Ok((size, sent)) } else { Err(crate::Error::Broken.into()) }
        })
    }

    /// Waits until all that was written to it is on the host's disk.
    pub fn sync(&self) -> Call<()> {
        let opcode = if self.of_directory { opcode::FSYNCDIR } else { opcode::FSYNC };
        let request = FsyncIn { fh: self.fh, ..FsyncIn::default() };
        self.folder.call(opcode, 0, &[request.as_bytes()], |_, reply| reply.nothing())
    }

    /// Some entries of a directory; none if there are no more. The first ones are at 0, those behind an entry at its `next`.
    pub fn list(&self, from: u64) -> Call<Vec<DirectoryEntry>> {
        let room = vec![0; 8192];
        let request = ReadIn { fh: self.fh, offset: from, size: room.len() as u32, ..ReadIn::default() };
        let arguments = request.as_bytes().to_vec();
        Call::new(&self.folder, opcode::READDIR, 0, arguments, Vec::new(), room, |_, reply| reply.entries())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.folder.part(Farewell::Release { fh: self.fh, of_directory: self.of_directory });
    }
}

/// A node that the host gives.
fn entry(folder: &SharedFolder, told: &EntryOut) -> Result<(Node, Attributes)> {
    if matches!(told.nodeid, 0 | ROOT) {
        return Err(crate::Error::Broken.into());
    }
    Ok((Node { id: told.nodeid, folder: folder.clone() }, Attributes::from(told.attr)))
}

fn attributes(reply: Reply) -> Result<Attributes> {
    reply.structure::<AttrOut>().map(|told| Attributes::from(told.attr))
}

/// A name as requests have it.
fn name(name: &str) -> Result<Vec<u8>> {
    if name.is_empty() || name.len() > NAME_MAX || name.contains(['/', '\0']) {
        return Err(Error::BadName);
    }
    Ok([name.as_bytes(), b"\0"].concat())
}

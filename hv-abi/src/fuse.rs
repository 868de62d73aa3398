//! The requests and replies of a shared folder: the FUSE protocol, version 7.31, as virtio-fs carries it.
//!
//! This is Linux's protocol (`include/uapi/linux/fuse.h`), not this project's: names and layouts are as there, without
//! the prefix `fuse_`, and `docs/abi.md` does not repeat them. It is here because both sides need the same structures.
//! Only what [`opcode`] names is here; another request gets `ENOSYS`.
//!
//! A request is an [`InHeader`], the structure of its opcode, then names, each ended by a zero byte, or data. A reply is
//! an [`OutHeader`], then, unless it says an error, the structure of the opcode, or data.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol's version.
pub const MAJOR: u32 = 7;
/// See [`MAJOR`].
pub const MINOR: u32 = 31;

/// The folder's own node.
pub const ROOT: u64 = 1;

/// Bytes of a tag at most: the name by which a guest knows a shared folder. The device's configuration space is a tag, padded by
/// zeros, and the number of queues for requests, a `u32`.
pub const TAG_MAX: usize = 36;

/// Bytes of a name at most, without a zero byte.
pub const NAME_MAX: usize = 255;

/// What a request asks for: [`InHeader::opcode`].
#[expect(missing_docs, reason = "the names say it, as file system calls of the same name do")]
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    /// Has no reply, as [`BATCH_FORGET`] has none.
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
}

/// Flags of [`InitIn`] and [`InitOut`]: what both sides can do.
pub mod init {
    /// Several reads of a file at a time.
    pub const ASYNC_READ: u32 = 1 << 0;
    /// `O_TRUNC` of an open is the host's to do.
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    /// Writes of more than a page.
    pub const BIG_WRITES: u32 = 1 << 5;
    /// `READDIRPLUS`.
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    /// The guest may choose between the two ways to read a directory.
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    /// Lookups in a directory while it is read.
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    /// [`InitOut::max_pages`](super::InitOut::max_pages) counts.
    pub const MAX_PAGES: u32 = 1 << 22;
}

/// Bits of [`SetattrIn::valid`]: which of its fields count.
pub mod setattr {
    /// `mode`.
    pub const MODE: u32 = 1 << 0;
    /// `uid`.
    pub const UID: u32 = 1 << 1;
    /// `gid`.
    pub const GID: u32 = 1 << 2;
    /// `size`.
    pub const SIZE: u32 = 1 << 3;
    /// `atime` and `atimensec`.
    pub const ATIME: u32 = 1 << 4;
    /// `mtime` and `mtimensec`.
    pub const MTIME: u32 = 1 << 5;
    /// `fh`.
    pub const FH: u32 = 1 << 6;
    /// The time is now.
    pub const ATIME_NOW: u32 = 1 << 7;
    /// The time is now.
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// Flags of opening a file: Linux's, as x86-64 has them.
pub mod open {
    /// The bits that say what for.
    pub const ACCESS: u32 = 3;
    /// To read.
    pub const READ_ONLY: u32 = 0;
    /// To write.
    pub const WRITE_ONLY: u32 = 1;
    /// To do both.
    pub const READ_WRITE: u32 = 2;
    /// It must not be there yet.
    pub const EXCLUSIVE: u32 = 0o200;
    /// It is made empty.
    pub const TRUNCATE: u32 = 0o1000;
    /// Each write goes to its end.
    pub const APPEND: u32 = 0o2000;
}

/// Flags of `RENAME2`: Linux's.
pub mod rename {
    /// Fails if the new name is there.
    pub const NO_REPLACE: u32 = 1;
    /// The two change places.
    pub const EXCHANGE: u32 = 2;
}

/// Bit of [`FsyncIn::fsync_flags`]: of what `stat` shows, the size alone matters.
pub const FSYNC_DATA_ONLY: u32 = 1;

/// Bits of a mode that say what kind of file it is.
pub mod mode {
    /// All of them.
    pub const KIND: u32 = 0o170_000;
    /// A directory.
    pub const DIRECTORY: u32 = 0o040_000;
    /// A file with bytes.
    pub const REGULAR: u32 = 0o100_000;
    /// A symbolic link.
    pub const SYMLINK: u32 = 0o120_000;
}

/// Numbers of Linux's errors that a guest has words for; a reply has them negative.
#[expect(missing_docs, reason = "the names are POSIX's")]
pub mod errno {
    pub const EPERM: i32 = 1;
    pub const ENOENT: i32 = 2;
    pub const EIO: i32 = 5;
    pub const EACCES: i32 = 13;
    pub const EEXIST: i32 = 17;
    pub const EXDEV: i32 = 18;
    pub const ENOTDIR: i32 = 20;
    pub const EISDIR: i32 = 21;
    pub const EINVAL: i32 = 22;
    pub const ENFILE: i32 = 23;
    pub const EMFILE: i32 = 24;
    pub const EFBIG: i32 = 27;
    pub const ENOSPC: i32 = 28;
    pub const EROFS: i32 = 30;
    pub const ENAMETOOLONG: i32 = 36;
    pub const ENOSYS: i32 = 38;
    pub const ENOTEMPTY: i32 = 39;
    pub const ELOOP: i32 = 40;
    pub const ESTALE: i32 = 116;
    pub const EDQUOT: i32 = 122;
}

macro_rules! structures {
    ($($(#[doc = $text:literal])* $name:ident: $size:literal { $($field:ident: $type:ty,)* })*) => {$(
        $(#[doc = $text])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        #[expect(missing_docs, reason = "the fields are the protocol's")]
        pub struct $name { $(pub $field: $type,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

structures! {
    /// What every request begins with.
    InHeader: 40 {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, padding: u32,
    }
    /// What every reply begins with. `error` is 0, or an error's number, negative.
    OutHeader: 16 { len: u32, error: i32, unique: u64, }
    /// What is known of a file.
    Attr: 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, padding: u32,
    }
    /// Reply with a node, which the guest then has until it forgets it.
    EntryOut: 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    /// `FORGET`: how many replies with the node are forgotten.
    ForgetIn: 8 { nlookup: u64, }
    /// `BATCH_FORGET`: how many [`ForgetOne`] follow.
    BatchForgetIn: 8 { count: u32, dummy: u32, }
    /// See [`BatchForgetIn`].
    ForgetOne: 16 { nodeid: u64, nlookup: u64, }
    /// `GETATTR`.
    GetattrIn: 16 { getattr_flags: u32, dummy: u32, fh: u64, }
    /// Reply of `GETATTR` and `SETATTR`.
    AttrOut: 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    /// `SETATTR`; see [`setattr`].
    SetattrIn: 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// `MKDIR`, then a name.
    MkdirIn: 8 { mode: u32, umask: u32, }
    /// `RENAME`, then two names.
    RenameIn: 8 { newdir: u64, }
    /// `RENAME2`, then two names.
    Rename2In: 16 { newdir: u64, flags: u32, padding: u32, }
    /// `LINK`, then a name.
    LinkIn: 8 { oldnodeid: u64, }
    /// `OPEN` and `OPENDIR`.
    OpenIn: 8 { flags: u32, open_flags: u32, }
    /// `CREATE`, then a name. Its reply is [`EntryOut`] and [`OpenOut`].
    CreateIn: 16 { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    /// Reply of `OPEN` and `OPENDIR`: the handle.
    OpenOut: 16 { fh: u64, open_flags: u32, padding: u32, }
    /// `RELEASE` and `RELEASEDIR`.
    ReleaseIn: 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// `FLUSH`.
    FlushIn: 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    /// `FSYNC` and `FSYNCDIR`.
    FsyncIn: 16 { fh: u64, fsync_flags: u32, padding: u32, }
    /// `READ`, `READDIR` and `READDIRPLUS`.
    ReadIn: 40 {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// `WRITE`, then the data.
    WriteIn: 40 {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    /// Reply of `WRITE`.
    WriteOut: 8 { size: u32, padding: u32, }
    /// Reply of `STATFS`.
    StatfsOut: 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// `INIT`. Later versions append to it.
    InitIn: 16 { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    /// Reply of `INIT`.
    InitOut: 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32,
        max_background: u16, congestion_threshold: u16, max_write: u32, time_gran: u32,
        max_pages: u16, map_alignment: u16, unused: [u32; 8],
    }
    /// An entry of a directory, then its name, then zeros up to a multiple of 8 bytes.
    Dirent: 24 { ino: u64, off: u64, namelen: u32, kind: u32, }
    /// The same with the node, as if it had been looked up; `nodeid` is 0 if it was not.
    Direntplus: 152 { entry: EntryOut, dirent: Dirent, }
}

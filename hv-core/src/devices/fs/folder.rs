//! A folder of the host's, and the ways into it that cannot lead out.
//!
//! A guest names a file by a directory that it was given before and one name in it. So each way in is one step: `openat2`
//! that stays beneath the directory, follows no link and crosses no mount point, and gives a descriptor that names the
//! file without opening it (`O_PATH`). What the descriptor names cannot change afterwards, so its kind is looked at, and
//! only then is the very same file opened, by its descriptor's number in `/proc/self/fd`. No path is ever put together.
//!
//! # What a guest cannot do
//!
//! * Leave: `..` and `/` are no names, links are shown and never followed, and mount points inside are not entered, among
//!   which could be `/proc` and with it this process's memory.
//! * Block or trigger something: FIFOs, sockets and devices are shown and never opened.
//! * Set traps: it makes neither symbolic links, which host programs would follow, nor files that run as their owner, and
//!   writes to none.
//!
//! Start at [`SharedFolder::open`] and [`SharedFolder::lookup`].

use hv_abi::fuse::TAG_MAX;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::ffi::CStr;
use std::path::{Path, PathBuf};

type Result<T, E = Errno> = std::result::Result<T, E>;

/// Permissions that a guest may give a file. Not among them: to run as its owner or group.
const PERMISSIONS: u32 = 0o777;

/// The bits of a mode by which a program runs as its file's owner or group.
const RUNS_AS_OWNER: u32 = 0o6000;

/// `f_type` of `/proc`.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// What a guest may do in a shared folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Look.
    ReadOnly,
    /// Whatever the user who runs the VM may.
    ReadWrite,
}

/// Why a folder cannot be shared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum FolderError {
    #[error("`{path}` cannot be opened as a folder")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("`{path}` is in /proc, where files are processes' memory; share another folder")]
    Proc { path: PathBuf },
    #[error("`{tag}` cannot be a folder's tag, which has 1 to {TAG_MAX} bytes and no zero byte")]
    Tag { tag: String },
}

/// A folder of the host's that a guest sees.
#[derive(Debug)]
pub struct SharedFolder {
    root: OwnedFd,
    /// `/proc/self/fd`.
    descriptors: OwnedFd,
    tag: String,
    access: Access,
}

impl SharedFolder {
    /// Opens a folder, links to it included: this path is the user's, not a guest's. The guest knows it by its tag.
    ///
    /// # Errors
    ///
    /// [`FolderError`] says what is wrong with it. Without `/proc` no folder can be shared.
    pub fn open(path: &Path, tag: &str, access: Access) -> Result<Self, FolderError> {
        if tag.is_empty() || tag.len() > TAG_MAX || tag.contains('\0') {
            return Err(FolderError::Tag { tag: tag.into() });
        }
        let cannot = |error: Errno| FolderError::Open { path: path.into(), source: error.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path| rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(cannot);
        let root = open(path)?;
        if rustix::fs::fstatfs(&root).map_err(cannot)?.f_type as i64 == PROC_SUPER_MAGIC {
            return Err(FolderError::Proc { path: path.into() });
        }
        let descriptors = open(Path::new("/proc/self/fd"))?;
        let folder = Self { root, descriptors, tag: tag.into(), access };
        folder.open_directory(folder.directory()).map_err(cannot)?; // whether it may be read
        Ok(folder)
    }

    /// What the guest knows it by.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The folder itself. It is not open for reading; it names the folder.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What a guest may do.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Fails unless files may be changed.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.access == Access::ReadWrite { Ok(()) } else { Err(Errno::ROFS) }
    }

    /// Names a file of a directory, whatever kind it is.
    pub(super) fn lookup(&self, directory: BorrowedFd<'_>, name: &CStr) -> Result<(OwnedFd, Stat)> {
        let file = beneath(directory, name, OFlags::PATH, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        Ok((file, stat))
    }

    /// Names what a descriptor has open.
    pub(super) fn name_of(&self, open: BorrowedFd<'_>) -> Result<(OwnedFd, Stat)> {
        let file = self.reopen(open, OFlags::PATH)?;
        let stat = rustix::fs::fstat(&file)?;
        Ok((file, stat))
    }

    /// Opens what a descriptor names, if it is a file with bytes; to write, if it does not run as its owner.
    pub(super) fn open_file(&self, file: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
        let stat = rustix::fs::fstat(file)?;
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        match kind(&stat) {
            FileType::RegularFile if writes && stat.st_mode & RUNS_AS_OWNER != 0 => Err(Errno::PERM),
            FileType::RegularFile => self.reopen(file, flags),
            FileType::Directory => Err(Errno::ISDIR),
            FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::ACCESS),
        }
    }

    /// Opens what a descriptor names for reading its entries, if it is a directory.
    pub(super) fn open_directory(&self, directory: BorrowedFd<'_>) -> Result<OwnedFd> {
        // The flag refuses anything else before it is opened.
        self.reopen(directory, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Makes a file and opens it, or opens the one that is there.
    pub(super) fn create(
        &self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        flags: OFlags,
        mode: u32,
    ) -> Result<OwnedFd> {
        // Nothing that is there is opened before it is looked at, so `EXCL` always.
        match beneath(directory, name, flags | OFlags::CREATE | OFlags::EXCL, permissions(mode)) {
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
                self.open_file(self.lookup(directory, name)?.0.as_fd(), flags)
            }
            made => made,
        }
    }

    /// Sets the permissions of what a descriptor names.
    pub(super) fn set_mode(&self, file: BorrowedFd<'_>, mode: u32) -> Result<()> {
        if !matches!(kind(&rustix::fs::fstat(file)?), FileType::RegularFile | FileType::Directory) {
            return Err(Errno::OPNOTSUPP);
        }
        rustix::fs::chmodat(&self.descriptors, number(file), permissions(mode), AtFlags::empty())
    }

    /// Gives a file another name.
    pub(super) fn link(&self, file: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        // The link that is followed is the one in `/proc`.
        rustix::fs::linkat(&self.descriptors, number(file), directory, name, AtFlags::SYMLINK_FOLLOW)
    }

    fn reopen(&self, file: BorrowedFd<'_>, flags: OFlags) -> Result<OwnedFd> {
        // `NONBLOCK` makes no difference to a file, but that one under a lease is refused instead of waited for.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        rustix::fs::openat(&self.descriptors, number(file), flags - OFlags::EXCL, Mode::empty())
    }
}

/// What kind of file it is.
pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The permissions that a file gets, whatever the guest asks for.
pub(super) fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & PERMISSIONS)
}

fn beneath(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(directory, name, flags, mode, resolve)
}

fn number(file: BorrowedFd<'_>) -> String {
    file.as_raw_fd().to_string()
}

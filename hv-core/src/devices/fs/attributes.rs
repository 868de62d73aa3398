//! Requests about what is known of a file: its size, its times, who may do what with it.

use super::message::Message;
use super::server::Server;
use hv_abi::fuse::{Attr, AttrOut, SetattrIn, setattr};
use rustix::fd::BorrowedFd;
use rustix::fs::{AtFlags, OFlags, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::{Errno, Result};

impl Server {
    pub(super) fn getattr(&self, node: u64, message: &mut Message<'_>) -> Result<()> {
        let attr = attributes(&rustix::fs::fstat(self.node(node)?)?);
        message.put(&AttrOut { attr, ..AttrOut::default() })
    }

    /// One after the other, up to the first that fails.
    pub(super) fn setattr(&self, node: u64, message: &mut Message<'_>) -> Result<()> {
        let wanted: SetattrIn = message.take()?;
        let file = self.node(node)?;
        self.folder.check_writable()?;
        check_owner(file, &wanted)?;
        if wanted.valid & setattr::SIZE != 0 {
            match wanted.valid & setattr::FH {
                0 => rustix::fs::ftruncate(self.folder.open_file(file, OFlags::WRONLY)?, wanted.size)?,
                _ => rustix::fs::ftruncate(self.handles.get(wanted.fh)?, wanted.size)?,
            }
        }
        if wanted.valid & setattr::MODE != 0 {
            self.folder.set_mode(file, wanted.mode)?;
        }
        if wanted.valid & (setattr::ATIME | setattr::MTIME) != 0 {
            rustix::fs::utimensat(file, c"", &times(&wanted), AtFlags::EMPTY_PATH)?;
        }
        self.getattr(node, message)
    }
}

/// Files are the user's who runs the VM, and stay so.
fn check_owner(file: BorrowedFd<'_>, wanted: &SetattrIn) -> Result<()> {
    let stat = rustix::fs::fstat(file)?;
    let changes = |bit, asked, is| wanted.valid & bit != 0 && asked != is;
    if changes(setattr::UID, wanted.uid, stat.st_uid) || changes(setattr::GID, wanted.gid, stat.st_gid) {
        return Err(Errno::PERM);
    }
    Ok(())
}

fn times(wanted: &SetattrIn) -> Timestamps {
    let time = |set, now, seconds: u64, nanoseconds: u32| {
        let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        match (wanted.valid & set, wanted.valid & now) {
            (0, _) => special(UTIME_OMIT),
            (_, 0) => Timespec { tv_sec: seconds as i64, tv_nsec: nanoseconds.into() },
            _ => special(UTIME_NOW),
        }
    };
    Timestamps {
        last_access: time(setattr::ATIME, setattr::ATIME_NOW, wanted.atime, wanted.atimensec),
        last_modification: time(setattr::MTIME, setattr::MTIME_NOW, wanted.mtime, wanted.mtimensec),
    }
}

/// What the host knows of a file, as the protocol tells it.
pub(super) fn attributes(stat: &Stat) -> Attr {
    Attr {
        ino: stat.st_ino,
        size: stat.st_size as u64,
        blocks: stat.st_blocks as u64,
        atime: stat.st_atime as u64,
        mtime: stat.st_mtime as u64,
        ctime: stat.st_ctime as u64,
        atimensec: stat.st_atime_nsec as u32,
        mtimensec: stat.st_mtime_nsec as u32,
        ctimensec: stat.st_ctime_nsec as u32,
        mode: stat.st_mode,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: stat.st_rdev as u32,
        blksize: stat.st_blksize as u32,
        padding: 0,
    }
}

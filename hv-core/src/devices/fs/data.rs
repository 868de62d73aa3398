//! Requests about open files: what is in them.

use super::message::Message;
use super::server::{MOST_DATA, Server};
use hv_abi::fuse::{
    CreateIn, FSYNC_DATA_ONLY, FlushIn, FsyncIn, OpenIn, OpenOut, ReadIn, ReleaseIn, WriteIn, WriteOut, open,
};
use rustix::fd::AsFd;
use rustix::fs::OFlags;
use rustix::io::{Errno, Result};
use zerocopy::IntoBytes;

impl Server {
    /// The flags by which the host opens a file. Those that a guest has besides are nothing to the host.
    fn open_flags(&self, flags: u32) -> Result<OFlags> {
        let mut host = match flags & open::ACCESS {
            open::READ_ONLY => OFlags::RDONLY,
            open::WRITE_ONLY => OFlags::WRONLY,
            open::READ_WRITE => OFlags::RDWR,
            _ => return Err(Errno::INVAL),
        };
        host.set(OFlags::EXCL, flags & open::EXCLUSIVE != 0);
        host.set(OFlags::TRUNC, flags & open::TRUNCATE != 0);
        host.set(OFlags::APPEND, flags & open::APPEND != 0);
        if host.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC) {
            self.folder.check_writable()?;
        }
        Ok(host)
    }

    pub(super) fn create(&mut self, node: u64, message: &mut Message<'_>) -> Result<()> {
        let CreateIn { flags, mode, umask, .. } = message.take()?;
        let name = message.name()?;
        self.folder.check_writable()?;
        let flags = self.open_flags(flags)?;
        self.handles.check_room()?;
        let directory = self.node(node)?;
        let file = self.folder.create(directory, &name, flags, mode & !umask)?;
        // Of the file that is open, whatever has that name by now.
        let (named, stat) = self.folder.name_of(file.as_fd())?;
        let entry = self.inodes.entry(named, &stat)?;
        let open = OpenOut { fh: self.handles.add(file), ..OpenOut::default() };
        message.put(&[entry.as_bytes(), open.as_bytes()].concat()[..])
    }

    pub(super) fn open(&mut self, node: u64, message: &mut Message<'_>) -> Result<()> {
        let OpenIn { flags, .. } = message.take()?;
        let flags = self.open_flags(flags)?;
        self.handles.check_room()?;
        let file = self.folder.open_file(self.node(node)?, flags)?;
        message.put(&OpenOut { fh: self.handles.add(file), ..OpenOut::default() })
    }

    pub(super) fn read(&self, message: &mut Message<'_>) -> Result<()> {
        let ReadIn { fh, offset, size, .. } = message.take()?;
        message.put_file(self.handles.get(fh)?, offset, size.min(MOST_DATA) as usize)
    }

    pub(super) fn write(&self, message: &mut Message<'_>) -> Result<()> {
        let WriteIn { fh, offset, size, .. } = message.take()?;
        if size > MOST_DATA || size as usize > message.remaining() {
            return Err(Errno::INVAL);
        }
        let written = message.write_to(self.handles.get(fh)?, offset, size as usize)?;
        message.put(&WriteOut { size: written as u32, padding: 0 })
    }

    /// A program closes its descriptor. All that it wrote is with the host's kernel already.
    pub(super) fn flush(&self, message: &mut Message<'_>) -> Result<()> {
        let FlushIn { fh, .. } = message.take()?;
        self.handles.get(fh).map(drop)
    }

    /// What was written is on the host's disk when this is answered.
    pub(super) fn fsync(&self, message: &mut Message<'_>) -> Result<()> {
        let FsyncIn { fh, fsync_flags, .. } = message.take()?;
        let file = self.handles.get(fh)?;
        if fsync_flags & FSYNC_DATA_ONLY != 0 { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    pub(super) fn release(&mut self, message: &mut Message<'_>) -> Result<()> {
        let ReleaseIn { fh, .. } = message.take()?;
        self.handles.remove(fh)
    }
}

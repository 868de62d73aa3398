//! Requests about open files: what is in them.

use super::message::{Body, Reply, Request};
use super::server::{MOST_DATA, Server};
use hv_abi::fuse::{
    CreateIn, FSYNC_DATA_ONLY, FlushIn, FsyncIn, OpenIn, OpenOut, ReadIn, ReleaseIn, WriteIn, WriteOut, open,
};
use rustix::fd::AsFd;
use rustix::fs::OFlags;
use rustix::io::{Errno, Result};

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

    pub(super) fn create(
        &mut self,
        node: u64,
        request: &mut impl Request,
        body: &mut Body<'_, impl Reply>,
    ) -> Result<()> {
        let CreateIn { flags, mode, umask, .. } = request.structure()?;
        let name = request.name()?;
        self.folder.check_writable()?;
        let flags = self.open_flags(flags)?;
        self.handles.check_room()?;
        let directory = self.node(node)?;
        let file = self.folder.create(directory, &name, flags, mode & !umask)?;
        // Of the file that is open, whatever has that name by now.
        let (named, stat) = self.folder.name_of(file.as_fd())?;
        body.structure(&self.inodes.entry(named, &stat)?)?;
        body.structure(&OpenOut { fh: self.handles.add(file), ..OpenOut::default() })
    }

    pub(super) fn open(
        &mut self,
        node: u64,
        request: &mut impl Request,
        body: &mut Body<'_, impl Reply>,
    ) -> Result<()> {
        let OpenIn { flags, .. } = request.structure()?;
        let flags = self.open_flags(flags)?;
        self.handles.check_room()?;
        let file = self.folder.open_file(self.node(node)?, flags)?;
        body.structure(&OpenOut { fh: self.handles.add(file), ..OpenOut::default() })
    }

    pub(super) fn read(&self, request: &mut impl Request, body: &mut Body<'_, impl Reply>) -> Result<()> {
        let ReadIn { fh, offset, size, .. } = request.structure()?;
        body.file(self.handles.get(fh)?, offset, size.min(MOST_DATA) as usize)
    }

    pub(super) fn write(&self, request: &mut impl Request, body: &mut Body<'_, impl Reply>) -> Result<()> {
        let WriteIn { fh, offset, size, .. } = request.structure()?;
        if size > MOST_DATA || size as usize > request.remaining() {
            return Err(Errno::INVAL);
        }
        let written = request.write_to(self.handles.get(fh)?, offset, size as usize)?;
        body.structure(&WriteOut { size: written as u32, padding: 0 })
    }

    /// A program closes its descriptor. All that it wrote is with the host's kernel already.
    pub(super) fn flush(&self, request: &mut impl Request) -> Result<()> {
        let FlushIn { fh, .. } = request.structure()?;
        self.handles.get(fh).map(drop)
    }

    /// What was written is on the host's disk when this is answered.
    pub(super) fn fsync(&self, request: &mut impl Request) -> Result<()> {
        let FsyncIn { fh, fsync_flags, .. } = request.structure()?;
        let file = self.handles.get(fh)?;
        if fsync_flags & FSYNC_DATA_ONLY != 0 { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    pub(super) fn release(&mut self, request: &mut impl Request) -> Result<()> {
        let ReleaseIn { fh, .. } = request.structure()?;
        self.handles.remove(fh)
    }
}

//! Requests about names: what stands where, and what is to.

use super::message::{Body, Reply, Request};
use super::server::Server;
use hv_abi::fuse::{LinkIn, MkdirIn, Rename2In, RenameIn, rename};
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::{Errno, Result};
use std::ffi::CString;

impl Server {
    pub(super) fn lookup(
        &mut self,
        node: u64,
        request: &mut impl Request,
        body: &mut Body<'_, impl Reply>,
    ) -> Result<()> {
        let (file, stat) = self.folder.lookup(self.node(node)?, &request.name()?)?;
        body.structure(&self.inodes.entry(file, &stat)?)
    }

    pub(super) fn mkdir(
        &mut self,
        node: u64,
        request: &mut impl Request,
        body: &mut Body<'_, impl Reply>,
    ) -> Result<()> {
        let MkdirIn { mode, umask } = request.structure()?;
        let name = request.name()?;
        self.folder.check_writable()?;
        let directory = self.node(node)?;
        rustix::fs::mkdirat(directory, &name, super::folder::permissions(mode & !umask))?;
        let (file, stat) = self.folder.lookup(directory, &name)?;
        body.structure(&self.inodes.entry(file, &stat)?)
    }

    pub(super) fn unlink(&self, node: u64, request: &mut impl Request) -> Result<()> {
        self.remove(node, request, AtFlags::empty())
    }

    pub(super) fn rmdir(&self, node: u64, request: &mut impl Request) -> Result<()> {
        self.remove(node, request, AtFlags::REMOVEDIR)
    }

    fn remove(&self, node: u64, request: &mut impl Request, flags: AtFlags) -> Result<()> {
        let name = request.name()?;
        self.folder.check_writable()?;
        rustix::fs::unlinkat(self.node(node)?, &name, flags)
    }

    pub(super) fn rename(&self, node: u64, request: &mut impl Request) -> Result<()> {
        let RenameIn { newdir } = request.structure()?;
        self.move_name(node, newdir, request, RenameFlags::empty())
    }

    pub(super) fn rename2(&self, node: u64, request: &mut impl Request) -> Result<()> {
        let Rename2In { newdir, flags, .. } = request.structure()?;
        // What Linux has besides makes a device.
        let flags = match flags {
            0 => RenameFlags::empty(),
            rename::NO_REPLACE => RenameFlags::NOREPLACE,
            rename::EXCHANGE => RenameFlags::EXCHANGE,
            _ => return Err(Errno::INVAL),
        };
        self.move_name(node, newdir, request, flags)
    }

    fn move_name(&self, from: u64, to: u64, request: &mut impl Request, flags: RenameFlags) -> Result<()> {
        let [old, new]: [CString; 2] = request.names()?;
        self.folder.check_writable()?;
        rustix::fs::renameat_with(self.node(from)?, &old, self.node(to)?, &new, flags)
    }

    pub(super) fn link(
        &mut self,
        node: u64,
        request: &mut impl Request,
        body: &mut Body<'_, impl Reply>,
    ) -> Result<()> {
        let LinkIn { oldnodeid } = request.structure()?;
        let name = request.name()?;
        self.folder.check_writable()?;
        let directory = self.node(node)?;
        self.folder.link(self.node(oldnodeid)?, directory, &name)?;
        let (file, stat) = self.folder.lookup(directory, &name)?;
        body.structure(&self.inodes.entry(file, &stat)?)
    }

    /// A link that a guest made could lead a program of the host's anywhere.
    pub(super) fn symlink(&self) -> Result<()> {
        self.folder.check_writable()?;
        Err(Errno::PERM)
    }

    pub(super) fn readlink(&self, node: u64, body: &mut Body<'_, impl Reply>) -> Result<()> {
        let target = rustix::fs::readlinkat(self.node(node)?, c"", Vec::new())?;
        body.add(target.as_bytes())
    }
}

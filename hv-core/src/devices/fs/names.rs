//! Requests about names: what stands where, and what is to.

use super::message::Message;
use super::server::Server;
use hv_abi::fuse::{LinkIn, MkdirIn, Rename2In, RenameIn, rename};
use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::{Errno, Result};
use std::ffi::CString;

impl Server {
    pub(super) fn lookup(&mut self, node: u64, message: &mut Message<'_>) -> Result<()> {
        let (file, stat) = self.folder.lookup(self.node(node)?, &message.name()?)?;
        message.put(&self.inodes.entry(file, &stat)?)
    }

    pub(super) fn mkdir(&mut self, node: u64, message: &mut Message<'_>) -> Result<()> {
        let MkdirIn { mode, umask } = message.take()?;
        let name = message.name()?;
        self.folder.check_writable()?;
        let directory = self.node(node)?;
        rustix::fs::mkdirat(directory, &name, super::folder::permissions(mode & !umask))?;
        let (file, stat) = self.folder.lookup(directory, &name)?;
        message.put(&self.inodes.entry(file, &stat)?)
    }

    pub(super) fn unlink(&self, node: u64, message: &mut Message<'_>) -> Result<()> {
        self.remove(node, message, AtFlags::empty())
    }

    pub(super) fn rmdir(&self, node: u64, message: &mut Message<'_>) -> Result<()> {
        self.remove(node, message, AtFlags::REMOVEDIR)
    }

    fn remove(&self, node: u64, message: &mut Message<'_>, flags: AtFlags) -> Result<()> {
        let name = message.name()?;
        self.folder.check_writable()?;
        rustix::fs::unlinkat(self.node(node)?, &name, flags)
    }

    pub(super) fn rename(&self, node: u64, message: &mut Message<'_>) -> Result<()> {
        let RenameIn { newdir } = message.take()?;
        self.move_name(node, newdir, message, RenameFlags::empty())
    }

    pub(super) fn rename2(&self, node: u64, message: &mut Message<'_>) -> Result<()> {
        let Rename2In { newdir, flags, .. } = message.take()?;
        // What Linux has besides makes a device.
        let flags = match flags {
            0 => RenameFlags::empty(),
            rename::NO_REPLACE => RenameFlags::NOREPLACE,
            rename::EXCHANGE => RenameFlags::EXCHANGE,
            _ => return Err(Errno::INVAL),
        };
        self.move_name(node, newdir, message, flags)
    }

    fn move_name(&self, from: u64, to: u64, message: &mut Message<'_>, flags: RenameFlags) -> Result<()> {
        let [old, new]: [CString; 2] = message.names()?;
        self.folder.check_writable()?;
        rustix::fs::renameat_with(self.node(from)?, &old, self.node(to)?, &new, flags)
    }

    pub(super) fn link(&mut self, node: u64, message: &mut Message<'_>) -> Result<()> {
        let LinkIn { oldnodeid } = message.take()?;
        let name = message.name()?;
        self.folder.check_writable()?;
        let directory = self.node(node)?;
        self.folder.link(self.node(oldnodeid)?, directory, &name)?;
        let (file, stat) = self.folder.lookup(directory, &name)?;
        message.put(&self.inodes.entry(file, &stat)?)
    }

    /// A link that a guest made could lead a program of the host's anywhere.
    pub(super) fn symlink(&self) -> Result<()> {
        self.folder.check_writable()?;
        Err(Errno::PERM)
    }

    pub(super) fn readlink(&self, node: u64, message: &mut Message<'_>) -> Result<()> {
        let target = rustix::fs::readlinkat(self.node(node)?, c"", Vec::new())?;
        message.put(target.as_bytes())
    }
}

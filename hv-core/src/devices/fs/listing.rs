//! Requests about what is in a directory.

use super::folder::SharedFolder;
use super::inodes::Inodes;
use super::message::{Body, Reply, Request};
use super::server::Server;
use hv_abi::fuse::{Dirent, Direntplus, EntryOut, OpenOut, ReadIn};
use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, RawDir, SeekFrom};
use rustix::io::{Errno, Result};
use std::ffi::CStr;

impl Server {
    pub(super) fn opendir(&mut self, node: u64, body: &mut Body<'_, impl Reply>) -> Result<()> {
        self.handles.check_room()?;
        let directory = self.folder.open_directory(self.node(node)?)?;
        body.structure(&OpenOut { fh: self.handles.add(directory), ..OpenOut::default() })
    }

    pub(super) fn readdir(
        &mut self,
        request: &mut impl Request,
        body: &mut Body<'_, impl Reply>,
    ) -> Result<()> {
        self.list(request, body, false)
    }

    pub(super) fn readdirplus(
        &mut self,
        request: &mut impl Request,
        body: &mut Body<'_, impl Reply>,
    ) -> Result<()> {
        self.list(request, body, true)
    }

    /// As many entries as fit, from `offset` on, which is where an earlier one said that the next is. The host makes of a
    /// made-up offset what it likes.
    fn list(
        &mut self,
        request: &mut impl Request,
        body: &mut Body<'_, impl Reply>,
        plus: bool,
    ) -> Result<()> {
        let ReadIn { fh, offset, size, .. } = request.structure()?;
        let header = if plus { size_of::<Direntplus>() } else { size_of::<Dirent>() };
        let mut room = body.room().min(size as usize);
        let Self { folder, inodes, handles, entries, .. } = self;
        let directory = handles.get(fh)?;
        rustix::fs::seek(directory, SeekFrom::Start(offset))?;
        let mut found = RawDir::new(directory, entries.spare_capacity_mut());
        let mut any = false;
        while let Some(entry) = found.next() {
            // Those that are in the reply already have been given to the guest, so an error has to wait.
            let (entry, name) = match &entry {
                Err(error) => return if any { Ok(()) } else { Err(*error) },
                Ok(entry) => (entry, entry.file_name()),
            };
            let length = (header + name.count_bytes()).next_multiple_of(8);
            if length > room {
                // An empty reply would be the directory's end.
                return if any { Ok(()) } else { Err(Errno::INVAL) };
            }
            let ino = if name == c".." { rustix::fs::fstat(directory)?.st_ino } else { entry.ino() };
            let dirent = Dirent {
                ino, // what is above the folder is nothing to the guest
                off: entry.next_entry_cookie(),
                namelen: name.count_bytes() as u32,
                kind: kind_number(entry.file_type()),
            };
            if plus {
                let entry = look_up(folder, inodes, directory, name).unwrap_or_default();
                body.structure(&entry)?;
            }
            body.structure(&dirent)?;
            body.add(name.to_bytes())?;
            body.add(&[0; 8][..length - header - name.count_bytes()])?;
            (room, any) = (room - length, true);
        }
        Ok(())
    }
}

/// A file of a directory as the guest gets it. One that has vanished, or cannot be given, is listed without.
fn look_up(
    folder: &SharedFolder,
    inodes: &mut Inodes,
    directory: BorrowedFd<'_>,
    name: &CStr,
) -> Result<EntryOut> {
    if matches!(name.to_bytes(), b"." | b"..") {
        return Err(Errno::INVAL);
    }
    let (file, stat) = folder.lookup(directory, name)?;
    inodes.entry(file, &stat)
}

/// A kind of file as entries tell it.
fn kind_number(kind: FileType) -> u32 {
    // 12 bits of permissions are below it in a mode.
    if kind == FileType::Unknown { 0 } else { kind.as_raw_mode() >> 12 }
}

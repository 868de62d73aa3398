//! Requests about what is in a directory.

use super::folder::SharedFolder;
use super::inodes::Inodes;
use super::message::Message;
use super::server::Server;
use hv_abi::fuse::{Dirent, Direntplus, EntryOut, OpenOut, ReadIn};
use rustix::fd::BorrowedFd;
use rustix::fs::{FileType, RawDir, SeekFrom};
use rustix::io::{Errno, Result};
use std::ffi::CStr;

impl Server {
    pub(super) fn opendir(&mut self, node: u64, message: &mut Message<'_>) -> Result<()> {
        self.handles.check_room()?;
        let directory = self.folder.open_directory(self.node(node)?)?;
        message.put(&OpenOut { fh: self.handles.add(directory), ..OpenOut::default() })
    }

    pub(super) fn readdir(&mut self, message: &mut Message<'_>) -> Result<()> {
        self.list(message, false)
    }

    pub(super) fn readdirplus(&mut self, message: &mut Message<'_>) -> Result<()> {
        self.list(message, true)
    }

    /// As many entries as fit, from `offset` on, which is where an earlier one said that the next is. The host makes of a
    /// made-up offset what it likes.
    fn list(&mut self, message: &mut Message<'_>, plus: bool) -> Result<()> {
        let ReadIn { fh, offset, size, .. } = message.take()?;
        let header = if plus { size_of::<Direntplus>() } else { size_of::<Dirent>() };
        let mut room = message.room().min(size as usize);
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
                message.put(&entry)?;
            }
            message.put(&dirent)?;
            message.put(name.to_bytes())?;
            message.put(&[0_u8; 8][..length - header - name.count_bytes()])?;
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

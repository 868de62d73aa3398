//! A folder of the host's, as a file system.
//!
//! Nothing is remembered: each path is walked from the folder's root, name by name, for the host's programs change it, too. A
//! symbolic link on the way is followed, as long as it does not lead out of the folder.

use crate::file_system::{FileSystem, OpenFile, PAGE_ENTRIES};
use crate::mounts::Mounts;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use guest_sdk::hv_abi::fuse::{errno, open};
use guest_sdk::println;
use guest_sdk::sync::Lock;
use minios_abi::{Error, FileInfo, Opening, file_kind};
use pv_drivers::Error as DeviceError;
use pv_drivers::fs::{self, Attributes, Call, Handle, Kind, Node, SharedFolder};

/// Links that are followed on one path.
const MOST_LINKS: u32 = 8;

type Result<T> = core::result::Result<T, Error>;

/// Mounts each folder that the host shares, at its tag.
pub fn mount_all(mounts: &mut Mounts) {
    loop {
        match SharedFolder::find() {
            Ok(folder) => {
                let tag = String::from(folder.tag());
                mounts.add(&tag, Arc::new(Share(Arc::new(Lock::new(folder)))));
            }
            Err(fs::Error::Device(DeviceError::NoDevice)) => return,
            Err(error) => println!("minios: a shared folder cannot be used: {error}"),
        }
    }
}

/// A shared folder. One vCPU at a time waits for the host; the lock is held meanwhile, and who wants it sleeps.
struct Share(Arc<Lock<SharedFolder>>);

impl FileSystem for Share {
    fn kind(&self) -> &'static str {
        "shared folder"
    }

    fn open(&self, path: &str, how: Opening) -> Result<Arc<dyn OpenFile>> {
        let folder = self.0.lock();
        let flags = flags(how);
        let handle = match walk(&folder, path) {
            Ok((_, found)) if found.kind == Kind::Directory => return Err(Error::IsDirectory),
            Ok((node, _)) => ask(Ok(node.open(flags)))?,
            Err(Error::NotFound) if how.has(Opening::CREATE) => {
                let (directory, name) = parent(&folder, path)?;
                ask(directory.create(name, flags))?.1
            }
            Err(error) => return Err(error),
        };
        Ok(Arc::new(SharedFile { share: self.0.clone(), handle }))
    }

    fn list(&self, path: &str, from: u64) -> Result<(Vec<FileInfo>, Option<u64>)> {
        let folder = self.0.lock();
        let (node, found) = walk(&folder, path)?;
        if found.kind != Kind::Directory {
            return Err(Error::NotDirectory);
        }
        let entries = ask(Ok(ask(Ok(node.open_directory()))?.list(from)))?;
        let next = entries.iter().take(PAGE_ENTRIES).next_back().map(|last| last.next);
        let mut files = Vec::new();
        for entry in entries.iter().take(PAGE_ENTRIES) {
            let name = String::from_utf8_lossy(&entry.name);
            let kind = match entry.kind {
                Kind::File => file_kind::FILE,
                Kind::Directory => file_kind::DIRECTORY,
                Kind::Link | Kind::Other => file_kind::OTHER,
            };
            let size = match kind {
                _ if matches!(&*name, "." | "..") => continue,
                // One that has vanished meanwhile, or has no name here, is listed once more.
                file_kind::FILE => lookup(&node, &name).map_or(0, |(_, found)| found.size),
                _ => 0,
            };
            files.push(FileInfo::new(&name, kind, size));
        }
        Ok((files, next))
    }

    fn make_directory(&self, path: &str) -> Result<()> {
        let folder = self.0.lock();
        let (directory, name) = parent(&folder, path)?;
        ask(directory.make_directory(name)).map(drop)
    }

    fn remove(&self, path: &str) -> Result<()> {
        let folder = self.0.lock();
        let (directory, name) = parent(&folder, path)?;
        match lookup(&directory, name)?.1.kind {
            Kind::Directory => ask(directory.remove_directory(name)),
            _ => ask(directory.remove_file(name)),
        }
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let folder = self.0.lock();
        let (from, to) = (parent(&folder, from)?, parent(&folder, to)?);
        ask(folder.rename((&from.0, from.1), (&to.0, to.1)))
    }
}

/// A file that is open on the host.
struct SharedFile {
    share: Arc<Lock<SharedFolder>>,
    handle: Handle,
}

impl OpenFile for SharedFile {
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<usize> {
        let _waits = self.share.lock();
        let read = ask(Ok(self.handle.read(from, vec![0; bytes.len()])))?;
        bytes[..read.len()].copy_from_slice(&read);
        Ok(read.len())
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<usize> {
        let _waits = self.share.lock();
        ask(Ok(self.handle.write(to, bytes.to_vec()))).map(|(written, _)| written)
    }
}

fn flags(how: Opening) -> u32 {
    let mut flags = if how.has(Opening::WRITE) { open::READ_WRITE } else { open::READ_ONLY };
    for (ours, theirs) in [(Opening::TRUNCATE, open::TRUNCATE), (Opening::APPEND, open::APPEND)] {
        if how.has(ours) {
            flags |= theirs;
        }
    }
    flags
}

fn lookup(directory: &Node, name: &str) -> Result<(Node, Attributes)> {
    ask(directory.lookup(name))
}

/// The directory that a path's last name is in, and that name.
fn parent<'a>(folder: &SharedFolder, path: &'a str) -> Result<(Node, &'a str)> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let (node, found) = walk(folder, directory)?;
    if found.kind == Kind::Directory { Ok((node, name)) } else { Err(Error::NotDirectory) }
}

/// What a path leads to, links followed.
fn walk(folder: &SharedFolder, path: &str) -> Result<(Node, Attributes)> {
    let mut way: Vec<(Node, Attributes)> = Vec::new();
    let mut rest: VecDeque<String> = names(path).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            way.pop(); // only a link says that, and above the folder's root there is nothing
            continue;
        }
        let root = folder.root();
        let (node, found) = lookup(way.last().map_or(&root, |(directory, _)| directory), &name)?;
        if found.kind != Kind::Link {
            way.push((node, found));
            continue;
        }
        links += 1;
        let target = ask(Ok(node.read_link()))?;
        let target = core::str::from_utf8(&target).map_err(|_| Error::NotFound)?;
        if links > MOST_LINKS || target.starts_with('/') {
            return Err(Error::NotFound);
        }
        names(target).rev().for_each(|name| rest.push_front(name));
    }
    if let Some(found) = way.pop() {
        return Ok(found);
    }
    let root = folder.root();
    let found = ask(Ok(root.attributes()))?;
    Ok((root, found))
}

fn names(path: &str) -> impl DoubleEndedIterator<Item = String> {
    path.split('/').filter(|name| !matches!(*name, "" | ".")).map(String::from)
}

/// What a driver says, in minios's words.
fn told(error: fs::Error) -> Error {
    match error {
        fs::Error::BadName => Error::NameTooLong,
        fs::Error::Refused(errno::ENOENT | errno::ESTALE | errno::ELOOP) => Error::NotFound,
        fs::Error::Refused(errno::EEXIST) => Error::Exists,
        fs::Error::Refused(errno::ENOTDIR) => Error::NotDirectory,
        fs::Error::Refused(errno::EISDIR) => Error::IsDirectory,
        fs::Error::Refused(errno::ENOTEMPTY) => Error::NotEmpty,
        fs::Error::Refused(errno::EROFS) => Error::ReadOnly,
        fs::Error::Refused(errno::ENOSPC | errno::EDQUOT | errno::EFBIG) => Error::NoSpace,
        fs::Error::Refused(errno::ENAMETOOLONG) => Error::NameTooLong,
        fs::Error::Refused(errno::EPERM | errno::EACCES) => Error::NotPermitted,
        fs::Error::Refused(errno::ENFILE | errno::EMFILE) => Error::TooManyFiles,
        fs::Error::Refused(errno::EXDEV) => Error::OtherFileSystem,
        fs::Error::Refused(errno::EINVAL) => Error::Invalid,
        _ => Error::Device,
    }
}

/// A call, made and waited for.
fn ask<T>(call: core::result::Result<Call<T>, fs::Error>) -> Result<T> {
    call.and_then(Call::blocking).map_err(told)
}

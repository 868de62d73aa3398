//! What is where: the archive's files at the root, and other file systems at names beside them.
//!
//! There is no current directory: a path begins at the root, with a slash or without. `.` and `..` are taken out of it here,
//! before any file system sees it.

use crate::file_system::{FileSystem, OpenFile};
use crate::files::Files;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use minios_abi::{Error, FileInfo, MountInfo, Name, Opening, file_kind};

type Result<T> = core::result::Result<T, Error>;

/// Where the list of what is at the root goes on with the other file systems.
const OTHERS: u64 = u64::MAX - 1;

/// All file systems.
pub struct Mounts {
    archive: Files,
    /// With the name that each has at the root.
    others: Vec<(String, Arc<dyn FileSystem>)>,
}

impl Mounts {
    /// The archive alone.
    pub fn new(archive: Files) -> Self {
        Self { archive, others: Vec::new() }
    }

    /// Adds another, at a name of one word. It hides a file of that name.
    pub fn add(&mut self, name: &str, other: Arc<dyn FileSystem>) {
        self.others.push((name.to_string(), other));
    }

    /// The archive's files: programs are run from there.
    pub fn archive(&self) -> &Files {
        &self.archive
    }

    /// What is mounted, in order; the archive is the first.
    pub fn get(&self, index: usize) -> Option<MountInfo> {
        let info = |kind: &str, place: &str| MountInfo { kind: Name::new(kind), place: Name::new(place) };
        match index.checked_sub(1) {
            None => Some(info(self.archive.kind(), "/")),
            Some(index) => {
                let (name, other) = self.others.get(index)?;
                Some(info(other.kind(), &alloc::format!("/{name}")))
            }
        }
    }

    /// The file system that a path leads to, and the rest of the path.
    fn find<'a>(&self, path: &'a Path) -> (&dyn FileSystem, &'a str) {
        let (first, rest) = path.0.split_once('/').unwrap_or((&path.0, ""));
        match self.others.iter().find(|(name, _)| name == first) {
            Some((_, other)) => (&**other, rest),
            None => (&self.archive, &path.0),
        }
    }

    /// As [`FileSystem::open`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open(&self, path: &str, how: Opening) -> Result<Arc<dyn OpenFile>> {
        let path = Path::new(path);
        let (system, rest) = self.find(&path);
        system.open(rest, how)
    }

    /// As [`FileSystem::list`]. At the root are the other file systems, too, as directories.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn list(&self, path: &str, from: u64) -> Result<(Vec<FileInfo>, Option<u64>)> {
        let path = Path::new(path);
        let (system, rest) = self.find(&path);
        if !path.0.is_empty() {
            return system.list(rest, from);
        }
        if from == OTHERS {
            let directory = |(name, _): &(String, _)| FileInfo::new(name, file_kind::DIRECTORY, 0);
            return Ok((self.others.iter().map(directory).collect(), None));
        }
        system.list(rest, from).map(|(files, next)| (files, next.or(Some(OTHERS))))
    }

    /// As [`FileSystem::make_directory`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn make_directory(&self, path: &str) -> Result<()> {
        let path = Path::new(path);
        let (system, rest) = self.find(&path);
        if rest.is_empty() { Err(Error::Exists) } else { system.make_directory(rest) }
    }

    /// As [`FileSystem::remove`].
    ///
    /// # Errors
    ///
    /// As there, or something is mounted there.
    pub fn remove(&self, path: &str) -> Result<()> {
        let path = Path::new(path);
        let (system, rest) = self.find(&path);
        if rest.is_empty() { Err(Error::NotPermitted) } else { system.remove(rest) }
    }

    /// As [`FileSystem::rename`].
    ///
    /// # Errors
    ///
    /// As there, or the two are in different file systems.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (Path::new(from), Path::new(to));
        let ((system, from), (other, to)) = (self.find(&from), self.find(&to));
        if !core::ptr::addr_eq(system, other) {
            return Err(Error::OtherFileSystem);
        }
        if from.is_empty() || to.is_empty() { Err(Error::NotPermitted) } else { system.rename(from, to) }
    }
}

impl core::fmt::Debug for Mounts {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.others.iter().map(|(name, other)| (name, other.kind()))).finish()
    }
}

/// A path without anything that means nothing.
struct Path(String);

impl Path {
    fn new(text: &str) -> Self {
        let mut names: Vec<&str> = Vec::new();
        for name in text.split('/') {
            match name {
                "" | "." => {}
                ".." => drop(names.pop()),
                name => names.push(name),
            }
        }
        Self(names.join("/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_mean_what_they_mean_elsewhere() {
        for (text, path) in [
            ("", ""),
            ("/", ""),
            ("a", "a"),
            ("//a/./b/", "a/b"),
            ("/a/../b", "b"),
            ("../../a", "a"),
            ("/a/b/../../..", ""),
            ("a/...", "a/..."),
        ] {
            assert_eq!(Path::new(text).0, path, "{text}");
        }
    }
}

//! What is served.
//!
//! Start at [`Folder`]; the smallest one is an [`Archive`].

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::future::{Future, ready};
use tar_no_std::TarArchiveRef;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<F> {
    /// A file.
    File {
        /// By which its bytes are read.
        file: F,
        /// How many there are.
        size: u64,
        /// Another one as soon as they change.
        tag: u64,
    },
    /// A directory.
    Directory,
}

/// An entry of a directory.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// It is a directory itself.
    pub is_directory: bool,
}

/// A tree of files.
pub trait Folder {
    /// A file that was found.
    type File;

    /// What is there, by names from the top downwards. `None`: nothing.
    fn find(&self, names: &[String]) -> impl Future<Output = Option<Found<Self::File>>>;

    /// Reads bytes of a file from `offset` on; how many. `None`: they cannot be read.
    fn read(&self, file: &Self::File, offset: u64, bytes: &mut [u8]) -> impl Future<Output = Option<usize>>;

    /// What is in a directory. `None`: it cannot be read.
    fn entries(&self, names: &[String]) -> impl Future<Output = Option<Vec<Entry>>>;
}

/// Files of a tar archive in memory.
pub struct Archive {
    files: BTreeMap<String, (&'static [u8], u64)>,
}

impl Archive {
    /// The files of an archive. `None`: it is none.
    pub fn new(archive: &'static [u8]) -> Option<Self> {
        let mut files = BTreeMap::new();
        for entry in TarArchiveRef::new(archive).ok()?.entries() {
            let name = entry.filename();
            // Names that no path can name stay as they are, and are never found.
            let name = name.as_str().ok()?.trim_start_matches("./").trim_matches('/').to_string();
            files.insert(name, (entry.data(), fnv_1a(entry.data())));
        }
        Some(Self { files })
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// Paths of what is in a directory, each without the directory's own.
    fn below(&self, names: &[String]) -> impl Iterator<Item = &str> {
        let mut prefix = names.join("/");
        if !prefix.is_empty() {
            prefix.push('/');
        }
        let from = self.files.range(prefix.clone()..);
        from.map_while(move |(path, _)| path.strip_prefix(prefix.as_str()))
    }
}

/// A hash that tells files apart, of which nothing else is expected (FNV-1a).
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Folder for Archive {
    type File = &'static [u8];

    fn find(&self, names: &[String]) -> impl Future<Output = Option<Found<&'static [u8]>>> {
        let file = self.files.get(&names.join("/"));
        let file = file.map(|(file, tag)| Found::File { file: *file, size: file.len() as u64, tag: *tag });
        let is_directory = || names.is_empty() || self.below(names).next().is_some();
        ready(file.or_else(|| is_directory().then_some(Found::Directory)))
    }

    fn read(
        &self,
        file: &&'static [u8],
        offset: u64,
        bytes: &mut [u8],
    ) -> impl Future<Output = Option<usize>> {
        let from = usize::try_from(offset).ok().and_then(|offset| file.get(offset..));
        ready(from.map(|from| {
            let length = from.len().min(bytes.len());
            bytes[..length].copy_from_slice(&from[..length]);
            length
        }))
    }

    fn entries(&self, names: &[String]) -> impl Future<Output = Option<Vec<Entry>>> {
        let entry = |path: &str| match path.split_once('/') {
            Some((directory, _)) => Entry { name: directory.to_string(), is_directory: true },
            None => Entry { name: path.to_string(), is_directory: false },
        };
        let entries: BTreeSet<Entry> = self.below(names).map(entry).collect();
        ready(Some(entries.into_iter().collect()))
    }
}

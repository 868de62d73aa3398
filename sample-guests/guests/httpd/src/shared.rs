//! A shared folder as what is served: the host's files, as they are at the moment.
//!
//! Symbolic links are not followed, and so are not there: where they lead may be no business of a client's.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use guest_sdk::hv_abi::fuse::open;
use httpd::folder::{Entry, Folder, Found};
use pv_drivers::fs::{Handle, Kind, Node, SharedFolder};

/// The most entries of a directory that are listed.
const ENTRIES_MAX: usize = 10_000;

/// A folder of the host's.
pub struct Shared(pub SharedFolder);

impl Shared {
    /// What is at a path, its kind, and what it has in place of a tag.
    async fn walk(&self, names: &[String]) -> Option<(Node, Kind, u64, u64)> {
        let mut at = (self.0.root(), Kind::Directory, 0, 0);
        for name in names {
            let (node, about) = at.0.lookup(name).ok()?.await.ok()?;
            at = (node, about.kind, about.size, about.modified);
        }
        Some(at)
    }
}

impl Folder for Shared {
    type File = Handle;

    async fn find(&self, names: &[String]) -> Option<Found<Handle>> {
        match self.walk(names).await? {
            (_, Kind::Directory, ..) => Some(Found::Directory),
            (node, Kind::File, size, modified) => {
                let file = node.open(open::READ_ONLY).await.ok()?;
                Some(Found::File { file, size, tag: modified })
            }
            _ => None,
        }
    }

    async fn read(&self, file: &Handle, offset: u64, bytes: &mut [u8]) -> Option<usize> {
        let read = file.read(offset, vec![0; bytes.len()]).await.ok()?;
        bytes[..read.len()].copy_from_slice(&read);
        Some(read.len())
    }

    async fn entries(&self, names: &[String]) -> Option<Vec<Entry>> {
        let (node, Kind::Directory, ..) = self.walk(names).await? else { return None };
        let directory = node.open_directory().await.ok()?;
        let (mut entries, mut from) = (Vec::new(), 0);
        while entries.len() < ENTRIES_MAX {
            let some = directory.list(from).await.ok()?;
            let Some(last) = some.last() else { break };
            from = last.next;
            entries.extend(some.into_iter().filter_map(|entry| {
                let is_directory = match entry.kind {
                    Kind::Directory => true,
                    Kind::File => false,
                    _ => return None,
                };
                let name = String::from_utf8(entry.name).ok()?;
                (name != "." && name != "..").then_some(Entry { name, is_directory })
            }));
        }
        entries.sort();
        Some(entries)
    }
}

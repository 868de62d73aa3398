//! Files: an archive in tar format, read where it lies in memory. They are only read; there are no directories.
//!
//! The archive that is built in holds the programs. What the VM's ramdisk brings, if it has one, comes before it.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use tar_no_std::TarArchiveRef;

/// A file. Its bytes are part of the image or of the ramdisk, and stay.
#[derive(Clone, Debug)]
pub struct File {
    /// Its name, without a slash at the start.
    pub name: String,
    /// All of it.
    pub bytes: &'static [u8],
}

/// All files.
#[derive(Debug, Default)]
pub struct Files(Vec<File>);

impl Files {
    /// What is in these archives. An archive that cannot be read holds nothing.
    pub fn new(archives: &[&'static [u8]]) -> Self {
        let readable = archives.iter().filter_map(|bytes| TarArchiveRef::new(bytes).ok());
        let files = readable.flat_map(|archive| {
            archive.entries().filter_map(|entry| {
                let name = entry.filename();
                let name = name.as_str().ok()?.trim_start_matches(['.', '/']).to_string();
                Some(File { name, bytes: entry.data() })
            })
        });
        Self(files.filter(|file| !file.name.is_empty()).collect())
    }

    /// The file of that name; slashes at the start do not matter.
    pub fn find(&self, name: &str) -> Option<&File> {
        let name = name.trim_start_matches('/');
        self.0.iter().find(|file| file.name == name)
    }

    /// The files, in order.
    pub fn get(&self, index: usize) -> Option<&File> {
        self.0.get(index)
    }
}

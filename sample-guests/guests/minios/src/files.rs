//! The archive's files: in tar format, read where they lie in memory. They are only read; there are no directories.
//!
//! The archive that is built in holds the programs. What the VM's ramdisk brings, if it has one, comes before it.

use crate::file_system::{FileSystem, OpenFile, PAGE_ENTRIES};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use minios_abi::{Error, FileInfo, Opening, file_kind};
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
}

impl FileSystem for Files {
    fn kind(&self) -> &'static str {
        "archive"
    }

    fn open(&self, path: &str, how: Opening) -> Result<Arc<dyn OpenFile>, Error> {
        match self.find(path) {
            _ if path.is_empty() => Err(Error::IsDirectory),
            Some(_) if how != Opening::READ => Err(Error::ReadOnly),
            None if how.has(Opening::CREATE) => Err(Error::ReadOnly),
            Some(file) => Ok(Arc::new(file.clone())),
            None => Err(Error::NotFound),
        }
    }

    fn list(&self, path: &str, from: u64) -> Result<(Vec<FileInfo>, Option<u64>), Error> {
        if !path.is_empty() {
            return Err(if self.find(path).is_some() { Error::NotDirectory } else { Error::NotFound });
        }
        let info = |file: &File| FileInfo::new(&file.name, file_kind::FILE, file.bytes.len() as u64);
        let rest = usize::try_from(from).ok().and_then(|from| self.0.get(from..)).unwrap_or_default();
        let next = (rest.len() > PAGE_ENTRIES).then_some(from + PAGE_ENTRIES as u64);
        Ok((rest.iter().take(PAGE_ENTRIES).map(info).collect(), next))
    }
}

impl OpenFile for File {
    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<usize, Error> {
        let rest = usize::try_from(from).ok().and_then(|from| self.bytes.get(from..)).unwrap_or_default();
        let length = rest.len().min(bytes.len());
        bytes[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

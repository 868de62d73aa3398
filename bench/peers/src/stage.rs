//! The files that a run needs, in a directory of its own that goes with the run: the benchmark program, a file to read, and
//! both as an archive for a kernel's first file system.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Bytes of the file to read.
const DATA: usize = 1 << 20;

/// The directory.
pub(crate) struct Stage {
    directory: TempDir,
    /// Where each of the directories that were asked for is.
    root: PathBuf,
}

impl Stage {
    /// Makes it.
    ///
    /// # Errors
    ///
    /// The directory for temporary files cannot be written.
    pub(crate) fn set() -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("hv-peers-").tempdir()?;
        let root = directory.path().join("root");
        fs::create_dir(&root)?;
        let stage = Self { directory, root };
        let data: Vec<u8> = (0..DATA).map(|i| ((i * 31) >> 3) as u8).collect();
        fs::write(stage.program(), sample_guests::HOST_LAT)?;
        fs::set_permissions(stage.program(), fs::Permissions::from_mode(0o755))?;
        fs::write(stage.data(), &data)?;
        fs::write(stage.archive(), archive(&[("init", sample_guests::HOST_LAT), ("data", &data)]))?;
        Ok(stage)
    }

    /// What is the root directory of a system that has nothing else: the program `lat`, and `data`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.root.join("lat")
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// The same as an initramfs, in which the program is `init`.
    pub(crate) fn archive(&self) -> PathBuf {
        self.directory.path().join("initramfs")
    }

    /// A directory that is there, for what a peer wants to keep.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub(crate) fn scratch(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.directory.path().join(name);
        fs::create_dir_all(&path).map(|()| path)
    }

    /// Where this run's peers say what went wrong.
    pub(crate) fn errors(&self) -> PathBuf {
        self.directory.path().join("errors")
    }
}

/// An archive in the format "newc" of cpio, as kernels take it: for each file a header of 13 numbers in hexadecimal, its name
/// and its content, each padded to a multiple of four bytes.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    const EXECUTABLE: usize = 0o100_755;
    let mut archive = Vec::new();
    let mut add = |number: usize, mode: usize, name: &str, content: &[u8]| {
        let links = 1;
        let numbers = [number, mode, 0, 0, links, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend_from_slice(b"070701");
        numbers.iter().for_each(|number| archive.extend_from_slice(format!("{number:08x}").as_bytes()));
        for part in [&[name.as_bytes(), b"\0"].concat(), content] {
            archive.extend_from_slice(part);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
    };
    for (number, (name, content)) in files.iter().enumerate() {
        add(number + 1, EXECUTABLE, name, content);
    }
    add(0, 0, "TRAILER!!!", &[]);
    archive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_cpio_writes_it() {
        let archive = archive(&[("init", b"hello")]);
        let text = String::from_utf8(archive).unwrap();
        let header = "070701\
            00000001000081ed00000000000000000000000100000000\
            0000000500000000000000000000000000000000\
            0000000500000000";
        assert!(text.starts_with(&format!("{header}init\0\0hello\0\0\0")), "{text:?}");
        assert!(text.ends_with("TRAILER!!!\0\0\0\0") && text.len().is_multiple_of(4));
    }
}

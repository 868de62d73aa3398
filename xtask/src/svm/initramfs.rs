//! The machine's files, as Linux unpacks them when it boots: a `cpio` archive in the format `newc`
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Start at [`write`].

use super::packages::Packages;
use super::{Error, MachineFile, cannot};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const EXECUTABLE: u32 = 0o100_755;
const DIRECTORY: u32 = 0o040_755;

/// Directories that the machine has from the start.
const DIRECTORIES: [&str; 6] = ["bin", "dev", "modules", "proc", "sys", "tmp"];

/// Writes the machine's files: what it boots with, programs, and the script that it runs.
pub(super) fn write(
    to: &Path,
    packages: &Packages,
    files: &[MachineFile],
    script: &str,
) -> Result<(), Error> {
    let file = fs::File::create(to).map_err(cannot(format!("making {}", to.display())))?;
    let mut archive = Archive::new(BufWriter::new(file));
    let mut put =
        |name: &str, bytes: &[u8]| archive.file(name, bytes).map_err(cannot("writing the machine's files"));
    put("init", script.as_bytes())?;
    put("bin/busybox", &read(&packages.busybox)?)?;
    put("bin/sh", &read(&packages.busybox)?)?;
    for (index, module) in packages.modules.iter().enumerate() {
        put(&format!("modules/{index}.ko"), &read(module)?)?;
    }
    for file in files {
        put(&file.machine, &stripped(&file.host)?)?;
    }
    for directory in DIRECTORIES {
        archive.directory(directory).map_err(cannot("writing the machine's files"))?;
    }
    archive.finish().map_err(cannot("writing the machine's files"))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(cannot(format!("reading {}", path.display())))
}

/// A program without what only debuggers read, which is most of it; or all of it, where there is no `strip`.
fn stripped(path: &Path) -> Result<Vec<u8>, Error> {
    let smaller = std::env::temp_dir().join(format!("xtask-stripped-{}", std::process::id()));
    let mut strip = Command::new("strip");
    strip.arg("--strip-debug").arg("-o").arg(&smaller).arg(path).stderr(Stdio::null());
    let done = strip.status().is_ok_and(|status| status.success());
    let bytes = read(if done { &smaller } else { path });
    let _ = fs::remove_file(&smaller);
    bytes
}

/// An archive that is being written.
struct Archive<W> {
    to: W,
    directories: BTreeSet<String>,
    entries: u32,
}

impl<W: Write> Archive<W> {
    fn new(to: W) -> Self {
        Self { to, directories: BTreeSet::new(), entries: 0 }
    }

    /// An executable file, and the directories that it is in.
    fn file(&mut self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        for (end, _) in name.match_indices('/') {
            self.directory(&name[..end])?;
        }
        self.entry(name, EXECUTABLE, bytes)
    }

    fn directory(&mut self, name: &str) -> std::io::Result<()> {
        if self.directories.insert(name.to_owned()) { self.entry(name, DIRECTORY, &[]) } else { Ok(()) }
    }

    fn entry(&mut self, name: &str, mode: u32, bytes: &[u8]) -> std::io::Result<()> {
        self.entries += 1;
        let length = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
        let name_length = name.len() as u32 + 1;
        // Inode, mode, user, group, links, time, length, device, its kind, name's length, no checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
        write!(self.to, "070701")?;
        fields.iter().try_for_each(|field| write!(self.to, "{field:08x}"))?;
        self.padded(format!("{name}\0").as_bytes(), 110)?;
        self.padded(bytes, 0)
    }

    /// Bytes, up to a multiple of four behind so many before them.
    fn padded(&mut self, bytes: &[u8], before: usize) -> std::io::Result<()> {
        self.to.write_all(bytes)?;
        let end = before + bytes.len();
        self.to.write_all(&[0; 3][..end.next_multiple_of(4) - end])
    }

    fn finish(mut self) -> std::io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_headers_names_and_contents_aligned() {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        archive.file("bin/tool", b"hello").unwrap();
        archive.file("bin/other", b"").unwrap();
        archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let starts: Vec<_> = bytes.windows(6).enumerate().filter(|(_, six)| six == b"070701").collect();
        assert_eq!(starts.len(), 4, "a directory, once, two files and the end");
        assert!(starts.iter().all(|(at, _)| at % 4 == 0));
        let (file, _) = starts[1];
        assert_eq!(&bytes[file + 54..file + 62], b"00000005", "its length");
        assert_eq!(&bytes[file + 110..file + 119], b"bin/tool\0");
        assert_eq!(&bytes[file + 120..file + 125], b"hello");
    }
}

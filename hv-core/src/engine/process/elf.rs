//! The tiny ELF file that a sandbox process is started from: one segment, the stub.

use super::layout::STUB_BASE;
use super::stub;
use crate::shared::memory_file;
use object::elf;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use std::io;
use std::sync::OnceLock;

/// Bytes in the file before the stub: one page, so that the segment is page-aligned in the file.
const HEADER: u64 = 4096;

/// The executable, made once for the process.
pub(super) fn executable() -> io::Result<&'static OwnedFd> {
    static EXECUTABLE: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(file) = EXECUTABLE.get() {
        return Ok(file);
    }
    let image = image();
    let file = match memory_file("hv-sandbox", image.len() as u64, true) {
        Ok(file) => {
            write_all(&file, &image)?;
            file
        }
        // `vm.memfd_noexec=2` forbids executable files in memory: then one that never has a name serves.
        Err(refused) => unnamed_file(&image).unwrap_or(Err(refused))?,
    };
    Ok(EXECUTABLE.get_or_init(|| file))
}

fn write_all(file: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        written += rustix::io::pwrite(file, &bytes[written..], written as u64)?;
    }
    Ok(())
}

/// A file without a name, on the first file system that lets one be executed; `None` if there is no such.
fn unnamed_file(bytes: &[u8]) -> Option<io::Result<OwnedFd>> {
    let directories = ["XDG_RUNTIME_DIR", "TMPDIR"].into_iter().filter_map(std::env::var_os);
    directories.chain(["/dev/shm", "/tmp", "/var/tmp"].map(Into::into)).find_map(|directory| {
        let flags = rustix::fs::statvfs(&directory).ok()?.f_flag;
        let create = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&directory, create, Mode::RWXU).ok();
        file.filter(|_| !flags.contains(StatVfsMountFlags::NOEXEC)).map(|file| {
            write_all(&file, bytes)?;
            // A file that is open for writing cannot be executed.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
        })
    })
}

/// The file's bytes.
fn image() -> Vec<u8> {
    let code = stub::code();
    let size = code.len() as u64;
    let mut image = Vec::with_capacity(HEADER as usize + code.len());
    let mut put = |bytes: &[u8]| image.extend_from_slice(bytes);
    put(&elf::ELFMAG);
    put(&[elf::ELFCLASS64.0, elf::ELFDATA2LSB.0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    put(&elf::ET_EXEC.0.to_le_bytes());
    put(&elf::EM_X86_64.0.to_le_bytes());
    put(&1_u32.to_le_bytes()); // version
    put(&stub::start().to_le_bytes());
    put(&64_u64.to_le_bytes()); // program headers
    put(&0_u64.to_le_bytes()); // section headers
    put(&0_u32.to_le_bytes()); // flags
    for half in [64_u16, 56, 1, 64, 0, 0] {
        put(&half.to_le_bytes()); // sizes and counts of headers
    }
    put(&elf::PT_LOAD.0.to_le_bytes());
    put(&(elf::PF_R | elf::PF_X).0.to_le_bytes());
    for word in [HEADER, STUB_BASE, STUB_BASE, size, size, HEADER] {
        put(&word.to_le_bytes()); // offset, addresses, sizes, alignment
    }
    image.resize(HEADER as usize, 0);
    image.extend_from_slice(code);
    image
}

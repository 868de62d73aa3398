//! The tiny ELF file that a sandbox process is started from: one segment, the stub.

use super::layout::STUB_BASE;
use super::stub;
use crate::shared::memory_file;
use object::elf;
use rustix::fd::OwnedFd;
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
    let file = memory_file("hv-sandbox", image.len() as u64, true)?;
    let mut written = 0;
    while written < image.len() {
        written += rustix::io::pwrite(&file, &image[written..], written as u64)?;
    }
    Ok(EXECUTABLE.get_or_init(|| file))
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

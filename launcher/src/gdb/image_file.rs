//! The guest's image as a file that gdb can read over the connection: gdb needs none of its own, and built-in guests have
//! none.

use super::target::Guest;
use gdbstub::common::Pid;
use gdbstub::target::TargetResult;
use gdbstub::target::ext::exec_file::ExecFile;
use gdbstub::target::ext::host_io::{
    FsKind, HostIo, HostIoClose, HostIoCloseOps, HostIoErrno, HostIoError, HostIoFstat, HostIoFstatOps,
    HostIoOpen, HostIoOpenFlags, HostIoOpenMode, HostIoOpenOps, HostIoPread, HostIoPreadOps, HostIoResult,
    HostIoSetfs, HostIoSetfsOps, HostIoStat,
};
use std::borrow::Cow;
use std::path::Path;

/// The only descriptor that there is.
const IMAGE: u32 = 3;

/// The image.
pub(crate) struct ImageFile {
    /// An absolute path, which is none of the host's.
    name: String,
    bytes: Cow<'static, [u8]>,
}

impl ImageFile {
    pub(crate) fn new(image: &Path, bytes: Cow<'static, [u8]>) -> Self {
        let name = image.file_name().unwrap_or(image.as_os_str()).to_string_lossy();
        Self { name: format!("/guest/{name}"), bytes }
    }
}

/// Copies what of `bytes` is behind `offset`; gives how much.
fn copy(bytes: &[u8], offset: u64, length: usize, buffer: &mut [u8]) -> usize {
    let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
    let length = rest.len().min(length).min(buffer.len());
    buffer[..length].copy_from_slice(&rest[..length]);
    length
}

impl ExecFile for Guest {
    fn get_exec_file(
        &self,
        _: Option<Pid>,
        offset: u64,
        length: usize,
        buffer: &mut [u8],
    ) -> TargetResult<usize, Self> {
        Ok(copy(self.image.name.as_bytes(), offset, length, buffer))
    }
}

impl HostIo for Guest {
    fn support_open(&mut self) -> Option<HostIoOpenOps<'_, Self>> {
        Some(self)
    }

    fn support_close(&mut self) -> Option<HostIoCloseOps<'_, Self>> {
        Some(self)
    }

    fn support_pread(&mut self) -> Option<HostIoPreadOps<'_, Self>> {
        Some(self)
    }

    fn support_fstat(&mut self) -> Option<HostIoFstatOps<'_, Self>> {
        Some(self)
    }

    fn support_setfs(&mut self) -> Option<HostIoSetfsOps<'_, Self>> {
        Some(self)
    }
}

impl HostIoOpen for Guest {
    fn open(&mut self, name: &[u8], _: HostIoOpenFlags, _: HostIoOpenMode) -> HostIoResult<u32, Self> {
        match name == self.image.name.as_bytes() {
            true => Ok(IMAGE),
            false => Err(HostIoError::Errno(HostIoErrno::ENOENT)),
        }
    }
}

impl HostIoClose for Guest {
    fn close(&mut self, _: u32) -> HostIoResult<(), Self> {
        Ok(())
    }
}

impl HostIoPread for Guest {
    fn pread(&mut self, _: u32, count: usize, offset: u64, buffer: &mut [u8]) -> HostIoResult<usize, Self> {
        Ok(copy(&self.image.bytes, offset, count, buffer))
    }
}

impl HostIoFstat for Guest {
    fn fstat(&mut self, _: u32) -> HostIoResult<HostIoStat, Self> {
        let size = self.image.bytes.len() as u64;
        Ok(HostIoStat {
            st_dev: 0,
            st_ino: 0,
            st_mode: HostIoOpenMode::S_IFREG | HostIoOpenMode::S_IRUSR,
            st_nlink: 1,
            st_uid: 0,
            st_gid: 0,
            st_rdev: 0,
            st_size: size,
            st_blksize: 4096,
            st_blocks: size.div_ceil(512),
            st_atime: 0,
            st_mtime: 0,
            st_ctime: 0,
        })
    }
}

impl HostIoSetfs for Guest {
    fn setfs(&mut self, _: FsKind) -> HostIoResult<(), Self> {
        Ok(())
    }
}

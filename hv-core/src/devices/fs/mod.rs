//! The shared folder (Virtual I/O Device 1.3, section 5.11): files of the host's that the guest reads and writes.
//!
//! Requests are the FUSE protocol's. The device has two queues that it serves alike, the second when the first is empty.
//!
//! | module | what it is |
//! |---|---|
//! | `folder` | the folder on the host, and why nothing leads out of it |
//! | `inodes`, `handles` | what the guest knows of, and has open |
//! | `message` | a request and its reply |
//! | `server` | requests: which there are, and what becomes of each |
//! | `names`, `attributes`, `data`, `listing` | what they do |
//!
//! Start at `server`. Why this is no library: `docs/decisions/0009-a-file-server-of-its-own.md`.

mod attributes;
mod data;
mod folder;
mod handles;
mod inodes;
mod listing;
mod message;
mod names;
mod server;
#[cfg(test)]
mod tests;

pub use folder::{Access, FolderError, SharedFolder};

use super::chain::TooShort;
use super::line::Line;
use super::ring::Ring;
use super::{Broken, Device};
use hv_abi::device::kind;
use hv_abi::fuse::TAG_MAX;
use server::{Limits, Server};

/// Descriptors of its queues: what must not wait, and the rest, of which one may have a mebibyte in single pages.
const QUEUES: &[u16] = &[64, 512];
/// Requests that are served in one go.
const BATCH: usize = 64;

/// The device.
pub(super) struct FileSystem {
    server: Server,
    tag: String,
}

impl FileSystem {
    /// One of so many in the VM.
    pub(super) fn new(folder: SharedFolder, among: usize) -> Self {
        let tag = folder.tag().to_owned();
        Self { server: Server::new(folder, Limits::of_one_among(among)), tag }
    }
}

impl Device for FileSystem {
    fn kind(&self) -> u32 {
        kind::FILE_SYSTEM
    }

    fn queues(&self) -> &'static [u16] {
        QUEUES
    }

    /// `struct virtio_fs_config`.
    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; TAG_MAX + 4];
        config[..self.tag.len()].copy_from_slice(self.tag.as_bytes());
        config[TAG_MAX..].copy_from_slice(&1_u32.to_le_bytes()); // num_request_queues
        config
    }

    fn reset(&mut self) {
        self.server.reset();
    }

    fn process(&mut self, rings: &mut [Option<Ring>], _: &Line, _: bool) -> Result<bool, Broken> {
        for ring in rings.iter_mut().flatten() {
            let mut served = 0;
            while served < BATCH
                && let Some(mut chain) = ring.pop()?
            {
                let short =
                    |TooShort| Broken("a request about files has no header, or no room for its reply's");
                self.server.answer(&mut chain).map_err(short)?;
                ring.push(chain);
                served += 1;
            }
            if served > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

//! The VM's disks, with the file systems on them: the first at `/disk`, the others at `/disk2` and so on.

use crate::fat::Fat;
use crate::mounts::Mounts;
use crate::page_cache::{Disk, DiskError};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use guest_sdk::println;
use pv_drivers::Error;
use pv_drivers::block::Block;

/// Mounts each disk of the VM.
pub fn mount_all(mounts: &mut Mounts) {
    for number in 1_u32.. {
        let name = if number == 1 { String::from("disk") } else { format!("disk{number}") };
        let disk = match Block::find() {
            Ok(disk) => disk,
            Err(Error::NoDevice) => return,
            Err(error) => {
                println!("minios: {name} cannot be used: {error}");
                continue;
            }
        };
        let writable = !disk.is_read_only();
        match Fat::mount(disk, writable) {
            Ok(fat) => mounts.add(&name, Arc::new(fat)),
            Err(error) => println!("minios: {name} has no FAT file system: {error}"),
        }
    }
}

impl Disk for Block {
    fn sectors(&self) -> u64 {
        self.sectors()
    }

    fn read(&mut self, sector: u64, bytes: &mut [u8]) -> Result<(), DiskError> {
        self.read_blocking(sector, bytes).map_err(|_| DiskError)
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), DiskError> {
        self.write_blocking(sector, bytes).map_err(|_| DiskError)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.flush_blocking().map_err(|_| DiskError)
    }
}

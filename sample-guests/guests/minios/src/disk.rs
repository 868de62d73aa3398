//! The VM's disks, with the file systems on them: the first at `/disk`, the others at `/disk2` and so on.

use crate::fat::Fat;
use crate::mounts::Mounts;
use crate::page_cache::{Disk, DiskError};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use guest_sdk::println;
use pv_drivers::Error;
use pv_drivers::block::Block;

/// Mounts each disk of the VM.
pub fn mount_all(mounts: &mut Mounts) {
    // All are taken before any is given back for want of a file system: it would be found again.
    let mut disks = Vec::new();
    loop {
        match Block::find() {
            Ok(disk) => disks.push(disk),
            Err(Error::NoDevice) => break,
            Err(error) => {
                println!("minios: a disk cannot be used: {error}");
                break;
            }
        }
    }
    for (disk, number) in disks.into_iter().zip(1..) {
        let name = if number == 1 { String::from("disk") } else { format!("disk{number}") };
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

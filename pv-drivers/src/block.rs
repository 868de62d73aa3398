//! Disks.
//!
//! A write that is done is the host's to keep; after a [`flush`](Block::flush) that is done, all writes that were done before it
//! are on the disk, whatever happens to the host.
//!
//! Start at [`Block::find`].

#![expect(unsafe_code, reason = "requests on memory that is borrowed until they are done")]

use crate::queue::{Buffers, Device, Parts, Queue};
use crate::{Error, Transport};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use guest_sdk::task::{self, Source};
use hv_abi::device::kind;
use zerocopy::{Immutable, IntoBytes};

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// Buffers of the queue: for 42 requests at once.
const SIZE: usize = 128;

mod feature {
    pub(super) const READ_ONLY: u64 = 1 << 5;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

mod operation {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    operation: u32,
    reserved: u32,
    sector: u64,
}

/// A run of sectors to discard or to make zero.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Range {
    sector: u64,
    sectors: u32,
    flags: u32,
}

/// The bytes of a request.
enum Data {
    Owned(Vec<u8>),
    /// Memory of somebody who waits until the request is done.
    Borrowed(NonNull<[u8]>),
}

// SAFETY: what is borrowed is used by the device alone until the request is done.
unsafe impl Send for Data {}

struct Sectors {
    header: Header,
    data: Data,
    status: u8,
}

impl Buffers for Sectors {
    fn parts<'a>(&'a mut self, parts: &mut Parts<'a>) {
        let into_memory = self.header.operation == operation::IN;
        parts.read(self.header.as_bytes());
        match (&mut self.data, into_memory) {
            (Data::Owned(bytes), true) => parts.write(bytes),
            (Data::Owned(bytes), false) => parts.read(bytes),
            // SAFETY: who lent it, as `&mut`, waits until the request is done, or the device is reset (`blocking`).
            (Data::Borrowed(bytes), true) => parts.write(unsafe { bytes.as_mut() }),
            // SAFETY: as above, but as `&`.
            (Data::Borrowed(bytes), false) => parts.read(unsafe { bytes.as_ref() }),
        }
        parts.write(core::slice::from_mut(&mut self.status));
    }
}

/// A disk.
pub struct Block {
    device: Arc<Device<Sectors, SIZE>>,
    sectors: u64,
    features: u64,
}

impl Block {
    /// The VM's first disk that has no driver yet.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if there is none.
    pub fn find() -> Result<Self, Error> {
        let mut transport = Transport::find(kind::BLOCK)?;
        let wanted = feature::READ_ONLY | feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES;
        let features = transport.negotiate(wanted)?;
        let queue = Queue::new(&mut transport, 0)?;
        let sectors = transport.config(0)?;
        let device = Arc::new(Device::new(transport, queue));
        task::register(device.clone());
        Ok(Self { device, sectors, features })
    }

    /// Its sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it cannot be written to.
    pub fn is_read_only(&self) -> bool {
        self.features & feature::READ_ONLY != 0
    }

    /// Reads whole sectors from `sector` on, as many as `buffer` has room for; gives it back.
    ///
    /// # Errors
    ///
    /// [`Error::BadRequest`] if that is not inside the disk, or no whole sectors; [`Error::Io`]; [`Error::Broken`].
    pub async fn read(&self, sector: u64, buffer: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.transfer(operation::IN, sector, buffer).await
    }

    /// Writes whole sectors from `sector` on; gives the buffer back.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); [`Error::Unsupported`] if the disk is read-only.
    pub async fn write(&self, sector: u64, buffer: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.transfer(operation::OUT, sector, buffer).await
    }

    /// Waits until all writes that are done are on the disk.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Broken`].
    pub async fn flush(&self) -> Result<(), Error> {
        if self.features & feature::FLUSH == 0 {
            return Ok(()); // nothing is kept back
        }
        self.send(request(operation::FLUSH, 0, Data::Owned(Vec::new()))).await.map(drop)
    }

    /// Says that `sectors` sectors from `sector` on are not needed: what is read from them is anything.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn discard(&self, sector: u64, sectors: u32) -> Result<(), Error> {
        self.range(feature::DISCARD, operation::DISCARD, sector, sectors).await
    }

    /// Makes `sectors` sectors from `sector` on zero.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn write_zeroes(&self, sector: u64, sectors: u32) -> Result<(), Error> {
        self.range(feature::WRITE_ZEROES, operation::WRITE_ZEROES, sector, sectors).await
    }

    /// As [`read`](Self::read); the vCPU sleeps until it is done.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_blocking(&self, sector: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.check(operation::IN, sector, buffer.len())?;
        self.blocking(operation::IN, sector, NonNull::from(buffer))
    }

    /// As [`write`](Self::write); the vCPU sleeps until it is done.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn write_blocking(&self, sector: u64, buffer: &[u8]) -> Result<(), Error> {
        self.check(operation::OUT, sector, buffer.len())?;
        self.blocking(operation::OUT, sector, NonNull::from(buffer))
    }

    /// As [`flush`](Self::flush); the vCPU sleeps until it is done.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub fn flush_blocking(&self) -> Result<(), Error> {
        if self.features & feature::FLUSH == 0 {
            return Ok(());
        }
        self.blocking(operation::FLUSH, 0, NonNull::from(&mut []))
    }

    fn check(&self, operation: u32, sector: u64, bytes: usize) -> Result<(), Error> {
        if operation == operation::OUT && self.is_read_only() {
            return Err(Error::Unsupported);
        }
        let end = sector.checked_add((bytes / SECTOR) as u64);
        let inside = bytes.is_multiple_of(SECTOR) && end.is_some_and(|end| end <= self.sectors);
        if inside { Ok(()) } else { Err(Error::BadRequest) }
    }

    async fn transfer(&self, operation: u32, sector: u64, buffer: Vec<u8>) -> Result<Vec<u8>, Error> {
        self.check(operation, sector, buffer.len())?;
        match self.send(request(operation, sector, Data::Owned(buffer))).await?.data {
            Data::Owned(buffer) => Ok(buffer),
            Data::Borrowed(_) => unreachable!("it was owned"),
        }
    }

    async fn range(&self, feature: u64, operation: u32, sector: u64, sectors: u32) -> Result<(), Error> {
        if self.features & feature == 0 {
            return Err(Error::Unsupported);
        }
        let range = Range { sector, sectors, flags: 0 };
        self.send(request(operation, 0, Data::Owned(range.as_bytes().to_vec()))).await.map(drop)
    }

    async fn send(&self, sectors: Box<Sectors>) -> Result<Box<Sectors>, Error> {
        let (sectors, _) = self.device.queue.request(sectors).await?;
        outcome(sectors.status).map(|()| sectors)
    }

    /// Borrows the memory until the request is done: it comes back when the device has given it back, or was reset.
    fn blocking(&self, operation: u32, sector: u64, memory: NonNull<[u8]>) -> Result<(), Error> {
        let sectors = request(operation, sector, Data::Borrowed(memory));
        let (sectors, _) = self.device.queue.request_blocking(&*self.device, sectors)?;
        outcome(sectors.status)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        task::unregister(&(self.device.clone() as Arc<dyn Source>));
    }
}

fn request(operation: u32, sector: u64, data: Data) -> Box<Sectors> {
    // No device answers with this.
    const NO_STATUS: u8 = 0xff;
    Box::new(Sectors { header: Header { operation, reserved: 0, sector }, data, status: NO_STATUS })
}

fn outcome(status: u8) -> Result<(), Error> {
    match status {
        0 => Ok(()),
        1 => Err(Error::Io),
        2 => Err(Error::Unsupported),
        _ => Err(Error::Broken),
    }
}

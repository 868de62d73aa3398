//! What the log needs of a block device.

/// Bytes of a sector: what a device writes whole or not at all.
pub const SECTOR: usize = 512;

/// A block device. Places and lengths are whole sectors, within it.
pub trait Disk {
    /// Why it failed.
    type Error;

    /// Sectors that it has.
    fn sectors(&self) -> u64;

    /// Reads from a sector on.
    ///
    /// # Errors
    ///
    /// The device failed.
    fn read(&mut self, sector: u64, bytes: &mut [u8]) -> Result<(), Self::Error>;

    /// Writes from a sector on. What was written survives from the next [`flush`](Self::flush) on; until then, any of its
    /// sectors may be there or not.
    ///
    /// # Errors
    ///
    /// The device failed.
    fn write(&mut self, sector: u64, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Returns when everything that was written will survive.
    ///
    /// # Errors
    ///
    /// The device failed.
    fn flush(&mut self) -> Result<(), Self::Error>;
}

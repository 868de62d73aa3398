//! A port of a console.

use super::Ports;
use crate::Error;
use crate::registered::Registered;
use alloc::sync::Arc;
use guest_sdk::task::Source;

/// A stream of bytes to and from the host. Nothing that the host sends is taken before somebody has the port.
pub struct Port {
    ports: Arc<Registered<Ports>>,
    number: usize,
}

impl Port {
    pub(super) fn new(ports: Arc<Registered<Ports>>, number: usize) -> Self {
        Self { ports, number }
    }

    /// Whether somebody is at the other end.
    pub fn is_open(&self) -> bool {
        self.ports.look();
        self.ports.state().is_open(self.number)
    }

    /// Waits until somebody is at the other end.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub async fn opened(&self) -> Result<(), Error> {
        self.ports.ready(|ports, waker| ports.state().try_open(self.number, waker)).await
    }

    /// As [`opened`](Self::opened); the vCPU sleeps meanwhile.
    ///
    /// # Errors
    ///
    /// As [`opened`](Self::opened).
    pub fn opened_blocking(&self) -> Result<(), Error> {
        self.ports.wait(|ports| ports.state().try_open(self.number, None))
    }

    /// Reads what has come, at least a byte; 0: nobody is at the other end any more, or yet.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub async fn read(&self, bytes: &mut [u8]) -> Result<usize, Error> {
        self.ports.ready(|ports, waker| ports.state().try_read(self.number, bytes, waker)).await
    }

    /// As [`read`](Self::read); the vCPU sleeps until there is something.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_blocking(&self, bytes: &mut [u8]) -> Result<usize, Error> {
        self.ports.wait(|ports| ports.state().try_read(self.number, bytes, None))
    }

    /// Hands some of `bytes` to the host, at least one; gives how many. It waits while the other end does not read.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if nobody is at the other end; [`Error::Broken`].
    pub async fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        self.ports.ready(|ports, waker| ports.state().try_write(self.number, bytes, waker)).await
    }

    /// As [`write`](Self::write); the vCPU sleeps until there is room.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn write_blocking(&self, bytes: &[u8]) -> Result<usize, Error> {
        self.ports.wait(|ports| ports.state().try_write(self.number, bytes, None))
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub async fn write_all(&self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            bytes = &bytes[self.write(bytes).await?..];
        }
        Ok(())
    }

    /// Waits until the other end has been given all that was written.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub async fn flush(&self) -> Result<(), Error> {
        self.ports.ready(|ports, waker| ports.state().try_flush(self.number, waker)).await
    }

    /// As [`flush`](Self::flush); the vCPU sleeps meanwhile.
    ///
    /// # Errors
    ///
    /// As [`flush`](Self::flush).
    pub fn flush_blocking(&self) -> Result<(), Error> {
        self.ports.wait(|ports| ports.state().try_flush(self.number, None))
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ports.state().close(self.number);
    }
}

impl embedded_io::ErrorType for Port {
    type Error = Error;
}

impl embedded_io::Read for Port {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Error> {
        self.read_blocking(bytes)
    }
}

impl embedded_io::Write for Port {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        self.write_blocking(bytes)
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.flush_blocking()
    }
}

impl embedded_io::ReadReady for Port {
    fn read_ready(&mut self) -> Result<bool, Error> {
        self.ports.look();
        Ok(self.ports.state().can_read(self.number))
    }
}

impl embedded_io::WriteReady for Port {
    fn write_ready(&mut self) -> Result<bool, Error> {
        self.ports.look();
        Ok(self.ports.state().can_write(self.number))
    }
}

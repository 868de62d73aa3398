//! A connection's end, and a port that connections are made to.

use super::Sockets;
use super::packet::{Ports, closed};
use crate::Error;
use crate::registered::Registered;
use alloc::sync::Arc;
use guest_sdk::task::Source;

/// A connection. Dropping it closes it: what was written before still arrives, unless the VM ends first.
pub struct VsockStream {
    sockets: Arc<Registered<Sockets>>,
    ports: Ports,
}

impl VsockStream {
    pub(super) fn new(sockets: Arc<Registered<Sockets>>, ports: Ports) -> Self {
        Self { sockets, ports }
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// The port of its other end.
    pub fn peer_port(&self) -> u32 {
        self.ports.host
    }

    /// Reads what has come, at least a byte; 0: there will be no more.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the other end has gone without saying that this is all; [`Error::Broken`].
    pub async fn read(&self, bytes: &mut [u8]) -> Result<usize, Error> {
        self.sockets.ready(|sockets, waker| sockets.state().try_read(self.ports, bytes, waker)).await
    }

    /// As [`read`](Self::read); the vCPU sleeps until there is something.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_blocking(&self, bytes: &mut [u8]) -> Result<usize, Error> {
        self.sockets.wait(|sockets| sockets.state().try_read(self.ports, bytes, None))
    }

    /// Sends some of `bytes`, at least one; gives how many. It waits while the other end does not read.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`] if the other end wants no more; [`Error::Broken`].
    pub async fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        self.sockets.ready(|sockets, waker| sockets.state().try_write(self.ports, bytes, waker)).await
    }

    /// As [`write`](Self::write); the vCPU sleeps until there is room.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn write_blocking(&self, bytes: &[u8]) -> Result<usize, Error> {
        self.sockets.wait(|sockets| sockets.state().try_write(self.ports, bytes, None))
    }

    /// Sends all of `bytes`.
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

    /// Closes it, and waits until a program of the host's can have all that was written.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub async fn close(self) -> Result<(), Error> {
        self.sockets.state().close(self.ports, closed::BOTH);
        self.sockets.ready(|sockets, waker| sockets.state().try_over(self.ports, waker)).await
    }

    /// As [`close`](Self::close); the vCPU sleeps meanwhile.
    ///
    /// # Errors
    ///
    /// As [`close`](Self::close).
    pub fn close_blocking(self) -> Result<(), Error> {
        self.sockets.state().close(self.ports, closed::BOTH);
        self.sockets.wait(|sockets| sockets.state().try_over(self.ports, None))
    }

    /// Says that nothing more will be written. The other end may go on.
    pub fn finish(&self) {
        self.sockets.state().close(self.ports, closed::SENDS);
    }
}

impl Drop for VsockStream {
    fn drop(&mut self) {
        self.sockets.state().close(self.ports, closed::BOTH);
    }
}

impl embedded_io::ErrorType for VsockStream {
    type Error = Error;
}

impl embedded_io::Read for VsockStream {
    fn read(&mut self, bytes: &mut [u8]) -> Result<usize, Error> {
        self.read_blocking(bytes)
    }
}

impl embedded_io::Write for VsockStream {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        self.write_blocking(bytes)
    }

    /// What was written is the host's.
    fn flush(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl embedded_io::ReadReady for VsockStream {
    fn read_ready(&mut self) -> Result<bool, Error> {
        self.sockets.look();
        Ok(self.sockets.state().can_read(self.ports))
    }
}

impl embedded_io::WriteReady for VsockStream {
    fn write_ready(&mut self) -> Result<bool, Error> {
        self.sockets.look();
        Ok(self.sockets.state().can_write(self.ports))
    }
}

/// A port that programs of the host connect to. Dropping it refuses those that were not accepted.
pub struct VsockListener {
    sockets: Arc<Registered<Sockets>>,
    port: u32,
}

impl VsockListener {
    pub(super) fn new(sockets: Arc<Registered<Sockets>>, port: u32) -> Self {
        Self { sockets, port }
    }

    /// The next connection.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub async fn accept(&self) -> Result<VsockStream, Error> {
        let ports = self.sockets.ready(|sockets, waker| sockets.state().try_accept(self.port, waker)).await?;
        Ok(VsockStream::new(self.sockets.clone(), ports))
    }

    /// As [`accept`](Self::accept); the vCPU sleeps until there is one.
    ///
    /// # Errors
    ///
    /// As [`accept`](Self::accept).
    pub fn accept_blocking(&self) -> Result<VsockStream, Error> {
        let ports = self.sockets.wait(|sockets| sockets.state().try_accept(self.port, None))?;
        Ok(VsockStream::new(self.sockets.clone(), ports))
    }
}

impl Drop for VsockListener {
    fn drop(&mut self) {
        self.sockets.state().unlisten(self.port);
    }
}

//! The entropy source: random bytes from the host's generator.

use crate::buffers::Inbound;
use crate::queue::{Device, Queue};
use crate::{Error, Transport};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use guest_sdk::task::{self, Source};
use hv_abi::device::kind;

/// The most bytes that are asked for at once.
const MOST: usize = 4096;

/// The entropy source.
pub struct Rng(Arc<Device<Inbound, 8>>);

impl Rng {
    /// The VM's.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] if it has none, or another driver has it.
    pub fn find() -> Result<Self, Error> {
        let mut transport = Transport::find(kind::ENTROPY)?;
        transport.negotiate(0)?;
        let queue = Queue::new(&mut transport, 0)?;
        let device = Arc::new(Device::new(transport, queue));
        task::register(device.clone());
        Ok(Self(device))
    }

    /// Fills `bytes`. The vCPU sleeps until it is done.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub fn fill_blocking(&self, bytes: &mut [u8]) -> Result<(), Error> {
        self.fill_with(bytes, |request| self.0.queue.request_blocking(&*self.0, request))
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::Broken`].
    pub async fn fill(&self, bytes: &mut [u8]) -> Result<(), Error> {
        let mut at = 0;
        while at < bytes.len() {
            let request = Box::new(Inbound(vec![0; (bytes.len() - at).min(MOST)]));
            at += take(self.0.queue.request(request).await?, &mut bytes[at..])?;
        }
        Ok(())
    }

    fn fill_with(
        &self,
        bytes: &mut [u8],
        mut make: impl FnMut(Box<Inbound>) -> Result<(Box<Inbound>, u32), Error>,
    ) -> Result<(), Error> {
        let mut at = 0;
        while at < bytes.len() {
            let request = Box::new(Inbound(vec![0; (bytes.len() - at).min(MOST)]));
            at += take(make(request)?, &mut bytes[at..])?;
        }
        Ok(())
    }
}

/// Copies what the device has filled. A device that fills nothing would be asked forever.
fn take((request, written): (Box<Inbound>, u32), bytes: &mut [u8]) -> Result<usize, Error> {
    let filled = &request.0[..written as usize];
    bytes[..filled.len()].copy_from_slice(filled);
    if filled.is_empty() { Err(Error::Broken) } else { Ok(filled.len()) }
}

impl Drop for Rng {
    fn drop(&mut self) {
        task::unregister(&(self.0.clone() as Arc<dyn Source>));
    }
}

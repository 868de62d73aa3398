//! A network card as `smoltcp` sees one.

use super::super::{ETHERNET, Net, Outgoing, Received};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;

impl Device for Net {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Outgoing<'a>;

    /// What has come is taken only while an answer could be sent.
    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Outgoing<'_>)> {
        if !self.card.has_received() {
            return None;
        }
        let outgoing = self.try_outgoing()?;
        Some((self.try_receive()?, outgoing))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        self.try_outgoing()
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET + self.mtu();
        capabilities
    }
}

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, length: usize, fill: F) -> R {
        let result = fill(&mut self[..length]);
        self.send(length);
        result
    }
}

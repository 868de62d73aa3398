//! The way to the guest: frames that wait for its socket, and smoltcp's view of that.

use super::super::frames::{FrameError, FrameWriter, LONGEST_FRAME};
use super::GUEST;
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol, Ipv4Packet,
    Ipv4Repr, UDP_HEADER_LEN, UdpPacket, UdpRepr,
};
use std::net::SocketAddrV4;
use std::os::unix::net::UnixStream;

/// The gateway's address on the link: locally administered, as nobody else's.
pub(super) const GATEWAY_ADDRESS: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);

/// Bytes that wait for the guest. As much is sent in one go, and shared by the connections that have something.
const WAITING: usize = 1 << 20;

/// What is sent to the guest.
pub(super) struct ToGuest {
    writer: FrameWriter,
    /// Where the guest is: who sent the last frame, and everybody until then.
    pub(super) address: EthernetAddress,
}

impl ToGuest {
    pub(super) fn new() -> Self {
        Self { writer: FrameWriter::new(WAITING), address: EthernetAddress::BROADCAST }
    }

    /// Whether any one frame can be sent. Without that, nothing is done that may have an answer.
    pub(super) fn has_room(&self) -> bool {
        self.writer.has_room()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.writer.is_empty()
    }

    pub(super) fn flush(&mut self, socket: &UnixStream) -> Result<(), FrameError> {
        self.writer.flush(socket)
    }

    /// Sends a datagram. Without room, it is lost, as datagrams may be.
    pub(super) fn datagram(&mut self, from: SocketAddrV4, guest_port: u16, payload: &[u8]) {
        self.datagram_to(SocketAddrV4::new(GUEST, guest_port), from, payload);
    }

    /// As [`datagram`](Self::datagram), to an address that the guest may not have yet.
    pub(super) fn datagram_to(&mut self, to: SocketAddrV4, from: SocketAddrV4, payload: &[u8]) {
        let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
        let ip = Ipv4Repr {
            src_addr: *from.ip(),
            dst_addr: *to.ip(),
            next_header: IpProtocol::Udp,
            payload_len: UDP_HEADER_LEN + payload.len(),
            hop_limit: 64,
        };
        let dst_addr = if to.ip().is_broadcast() { EthernetAddress::BROADCAST } else { self.address };
        let link = EthernetRepr { src_addr: GATEWAY_ADDRESS, dst_addr, ethertype: EthernetProtocol::Ipv4 };
        let length = EthernetFrame::<&[u8]>::header_len() + ip.buffer_len() + ip.payload_len;
        if !self.has_room() || length > LONGEST_FRAME {
            return;
        }
        let (source, destination) = (IpAddress::Ipv4(*from.ip()), IpAddress::Ipv4(*to.ip()));
        let checksums = ChecksumCapabilities::default();
        self.writer.push(length, |frame| {
            let mut frame = EthernetFrame::new_unchecked(frame);
            link.emit(&mut frame);
            let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
            ip.emit(&mut packet, &checksums);
            let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
            let write = |to: &mut [u8]| to.copy_from_slice(payload);
            udp.emit(&mut datagram, &source, &destination, payload.len(), write, &checksums);
        });
    }
}

/// smoltcp's device for one call of it: what has come, and where to send.
pub(super) struct Link<'a> {
    pub(super) frame: Option<&'a [u8]>,
    pub(super) to_guest: &'a mut ToGuest,
}

impl Device for Link<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sending<'t>
    where
        Self: 't;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let frame = self.frame.take()?;
        Some((Received(frame), Sending(&mut self.to_guest.writer)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        self.to_guest.has_room().then_some(Sending(&mut self.to_guest.writer))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = LONGEST_FRAME;
        capabilities
    }
}

pub(super) struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Sending<'a>(&'a mut FrameWriter);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        self.0.push(length, f)
    }
}

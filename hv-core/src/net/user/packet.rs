//! What a frame of the guest's is: the one place where its bytes are taken apart for all but smoltcp.

use super::{DNS, GATEWAY, GUEST, Key};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpPacket, ArpRepr, DHCP_SERVER_PORT, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet, Ipv4Repr, TcpPacket, UdpPacket, UdpRepr,
};
use std::net::SocketAddrV4;

/// A frame that there is something to do for.
pub(super) enum Packet<'a> {
    /// For the gateway itself, to be answered by smoltcp: ARP, and ICMP echo.
    Local,
    Tcp {
        key: Key,
        /// It opens a connection.
        syn: bool,
        /// It ends one.
        rst: bool,
    },
    Dhcp(&'a [u8]),
    Udp {
        key: Key,
        payload: &'a [u8],
    },
}

impl<'a> Packet<'a> {
    /// Who sent it, and what it is. `None` for what is broken, not from the guest's address, or of no known kind.
    pub(super) fn parse(frame: &'a [u8]) -> Option<(EthernetAddress, Self)> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        let sender = frame.src_addr();
        let packet = match frame.ethertype() {
            _ if !sender.is_unicast() => None,
            EthernetProtocol::Arp => Self::parse_arp(frame.payload()),
            EthernetProtocol::Ipv4 => Self::parse_ip(frame.payload()),
            _ => None,
        };
        Some((sender, packet?))
    }

    /// Whether it asks for an address that is served here. For all others there is silence: also for the guest's own, which it
    /// asks for to see whether it is taken.
    fn parse_arp(payload: &[u8]) -> Option<Self> {
        let arp = ArpRepr::parse(&ArpPacket::new_checked(payload).ok()?).ok()?;
        let ArpRepr::EthernetIpv4 { target_protocol_addr, .. } = arp else { return None };
        [GATEWAY, *DNS.ip()].contains(&target_protocol_addr).then_some(Self::Local)
    }

    fn parse_ip(payload: &'a [u8]) -> Option<Self> {
        let packet = Ipv4Packet::new_checked(payload).ok()?;
        if packet.more_frags() || packet.frag_offset() != 0 {
            return None;
        }
        let ip = Ipv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()?;
        let payload = packet.payload();
        if ip.next_header == IpProtocol::Udp {
            return Self::parse_udp(&ip, payload);
        }
        if ip.src_addr != GUEST {
            return None;
        }
        match ip.next_header {
            IpProtocol::Icmp => [GATEWAY, *DNS.ip()].contains(&ip.dst_addr).then_some(Self::Local),
            IpProtocol::Tcp => {
                let tcp = TcpPacket::new_checked(payload).ok()?;
                let peer = SocketAddrV4::new(ip.dst_addr, tcp.dst_port());
                let key = Key { guest_port: tcp.src_port(), peer };
                Some(Self::Tcp { key, syn: tcp.syn() && !tcp.ack(), rst: tcp.rst() })
            }
            _ => None,
        }
    }

    fn parse_udp(ip: &Ipv4Repr, payload: &'a [u8]) -> Option<Self> {
        let packet = UdpPacket::new_checked(payload).ok()?;
        let (source, destination) = (ip.src_addr.into(), ip.dst_addr.into());
        let udp = UdpRepr::parse(&packet, &source, &destination, &ChecksumCapabilities::default()).ok()?;
        let payload = packet.payload();
        if udp.dst_port == DHCP_SERVER_PORT && (ip.dst_addr.is_broadcast() || ip.dst_addr == GATEWAY) {
            return Some(Self::Dhcp(payload)); // from a guest that may not have its address yet
        }
        let key = Key { guest_port: udp.src_port, peer: SocketAddrV4::new(ip.dst_addr, udp.dst_port) };
        (ip.src_addr == GUEST).then_some(Self::Udp { key, payload })
    }
}

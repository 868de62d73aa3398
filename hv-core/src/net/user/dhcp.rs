//! A DHCP server with one address to give.

use super::link::ToGuest;
use super::{DNS, GATEWAY, GUEST, PREFIX_LENGTH};
use smoltcp::wire::{DHCP_CLIENT_PORT, DHCP_SERVER_PORT, DhcpMessageType, DhcpPacket, DhcpRepr, Ipv4Cidr};
use std::net::{Ipv4Addr, SocketAddrV4};

/// A day. The address is nobody else's, but a client has to be told some time.
const LEASE_SECONDS: u32 = 86_400;

/// Answers a message, if that wants an answer.
pub(super) fn answer(message: &[u8], to_guest: &mut ToGuest) {
    let Ok(packet) = DhcpPacket::new_checked(message) else { return };
    let Ok(asked) = DhcpRepr::parse(&packet) else { return };
    let wanted = asked.requested_ip.unwrap_or(asked.client_ip);
    let message_type = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        // Meant for a server that there is not.
        DhcpMessageType::Request if asked.server_identifier.is_some_and(|server| server != GATEWAY) => return,
        DhcpMessageType::Request if wanted == GUEST => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        _ => return,
    };
    let given = message_type != DhcpMessageType::Nak;
    let answer = DhcpRepr {
        message_type,
        your_ip: if given { GUEST } else { Ipv4Addr::UNSPECIFIED },
        client_ip: Ipv4Addr::UNSPECIFIED,
        router: given.then_some(GATEWAY),
        subnet_mask: given.then(|| Ipv4Cidr::new(GATEWAY, PREFIX_LENGTH).netmask()),
        server_identifier: Some(GATEWAY),
        dns_servers: given.then(|| [*DNS.ip()].into_iter().collect()),
        lease_duration: given.then_some(LEASE_SECONDS),
        requested_ip: None,
        client_identifier: None,
        parameter_request_list: None,
        max_size: None,
        ..asked
    };
    let mut bytes = vec![0; answer.buffer_len()];
    if answer.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).is_ok() {
        // To all: the guest need not know its address before it reads this.
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, DHCP_CLIENT_PORT);
        to_guest.datagram_to(to, SocketAddrV4::new(GATEWAY, DHCP_SERVER_PORT), &bytes);
    }
}

//! What the guest may reach, and where on the host's side that is.

use super::{DNS, GATEWAY, Options, PREFIX_LENGTH};
use smoltcp::wire::Ipv4Cidr;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

/// The rules. See `docs/networking.md`, which is for those who have to rely on them.
pub(super) struct Policy {
    host_loopback: bool,
    resolver: Option<SocketAddr>,
}

impl Policy {
    pub(super) fn new(options: &Options) -> Self {
        Self { host_loopback: options.host_loopback, resolver: options.resolvers.first().copied() }
    }

    /// Where a packet for `to` goes; `None` if the guest may not send there.
    pub(super) fn destination(&self, to: SocketAddrV4) -> Option<SocketAddr> {
        if to == DNS {
            return self.resolver; // over TCP, that is: datagrams are the forwarder's
        }
        if *to.ip() == GATEWAY {
            return self.host_loopback.then(|| (Ipv4Addr::LOCALHOST, to.port()).into());
        }
        (!is_refused(*to.ip())).then_some(to.into())
    }
}

/// Addresses that mean this host itself, the guest's own network, or many receivers. And link-local ones, for there clouds
/// give away a machine's credentials.
fn is_refused(address: Ipv4Addr) -> bool {
    let own = Ipv4Cidr::new(GATEWAY, PREFIX_LENGTH);
    address.octets()[0] == 0
        || address.is_loopback()
        || address.is_link_local()
        || address.octets()[0] >= 224 // multicast, reserved, broadcast
        || own.contains_addr(&address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_itself_is_out_of_reach_unless_asked_for() {
        let resolver: SocketAddr = "192.0.2.53:53".parse().unwrap();
        let by_default = Policy::new(&Options { resolvers: vec![resolver], ..Options::default() });
        let open = Policy::new(&Options { host_loopback: true, ..Options::default() });
        for refused in [
            "127.0.0.1:22",
            "127.255.0.9:80",
            "0.0.0.0:22",
            "0.1.2.3:22",
            "169.254.169.254:80",
            "10.0.2.15:80",
            "10.0.2.3:80",
            "10.0.2.255:80",
            "224.0.0.251:5353",
            "239.255.255.250:1900",
            "255.255.255.255:67",
            "240.0.0.1:1",
        ] {
            let to = refused.parse().unwrap();
            assert_eq!(by_default.destination(to), None, "{refused}");
            assert_eq!(open.destination(to), None, "{refused}");
        }
        for allowed in ["192.0.2.1:80", "10.0.3.1:80", "8.8.8.8:53", "172.16.0.1:443"] {
            let to: SocketAddrV4 = allowed.parse().unwrap();
            assert_eq!(by_default.destination(to), Some(to.into()), "{allowed}");
        }
        let gateway = "10.0.2.2:5432".parse().unwrap();
        assert_eq!(by_default.destination(gateway), None);
        assert_eq!(open.destination(gateway), Some("127.0.0.1:5432".parse().unwrap()));
        assert_eq!(by_default.destination(DNS), Some(resolver));
        assert_eq!(open.destination(DNS), None, "there is no resolver");
    }
}

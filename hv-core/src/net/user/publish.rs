//! Ports of the host that lead to the guest, as one writes them: `[ADDRESS:]HOST:GUEST[/udp]`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to one of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Connections or datagrams.
    pub protocol: Protocol,
    /// Where on the host; port 0 is any that is free.
    pub host: SocketAddr,
    /// Which port of the guest.
    pub guest_port: u16,
}

const FORM: &str =
    "expected [ADDRESS:]HOSTPORT:GUESTPORT[/udp], such as 8080:80, 0.0.0.0:8080:80 or 5353:53/udp";

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = match text.rsplit_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Protocol::Tcp),
            Some((ports, "udp")) => (ports, Protocol::Udp),
            Some((_, other)) => return Err(format!("`{other}` is neither tcp nor udp; {FORM}")),
        };
        let (host, guest) = ports.rsplit_once(':').ok_or(FORM)?;
        let port =
            |text: &str| text.parse().map_err(|_| format!("`{text}` is not a port, from 0 to 65535; {FORM}"));
        let (address, host) = match host.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), host),
            Some((address, host)) => {
                let bare =
                    address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
                let parsed = bare.parse().map_err(|_| format!("`{address}` is not an address; {FORM}"))?;
                (parsed, host)
            }
        };
        match port(guest)? {
            0 => Err(format!("the guest has no port 0; {FORM}")),
            guest_port => Ok(Self { protocol, host: SocketAddr::new(address, port(host)?), guest_port }),
        }
    }
}

impl fmt::Display for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.protocol == Protocol::Udp { "/udp" } else { "" };
        write!(f, "{}:{}{suffix}", self.host, self.guest_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_they_are_written() {
        for (text, shown) in [
            ("8080:80", "127.0.0.1:8080:80"),
            ("8080:80/tcp", "127.0.0.1:8080:80"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080:80"),
            ("5353:53/udp", "127.0.0.1:5353:53/udp"),
            ("[::1]:8080:80", "[::1]:8080:80"),
            ("0:80", "127.0.0.1:0:80"),
        ] {
            let publish: Publish = text.parse().unwrap();
            assert_eq!(publish.to_string(), shown);
            assert_eq!(shown.parse(), Ok(publish));
        }
        for text in
            ["", "80", ":", "a:80", "80:a", "80:0", "70000:80", "8080:80/sctp", "host:8080:80", "8080:80/"]
        {
            let error = text.parse::<Publish>().unwrap_err();
            assert!(error.contains("such as 8080:80"), "{text}: {error}");
        }
    }
}

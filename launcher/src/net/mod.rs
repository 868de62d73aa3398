//! The networks of `hv run`: `--net user`, `--net tap=NAME`, `--net switch=NAME`, and `--publish`; and its sockets, `--vsock`.
//!
//! The monitor itself only moves frames. What is at the other end, the user-mode network ([`user`]) or a switch ([`switch`]), is a
//! process of its own, which is started here, while the monitor still may, and gives up even more than the monitor does ([`lockdown`]).
//! What connects its sockets is another ([`vsock`]). All are this program again, by a subcommand that is not shown.
//!
//! Start at [`open`].

mod lockdown;
mod process;
mod switch;
mod tap;
mod user;
mod vsock;

pub(crate) use switch::{SwitchOptions, serve as serve_switch};
pub(crate) use user::{UserNetOptions, serve as serve_user};
pub(crate) use vsock::{ConnectorOptions, VsockOption, open as open_vsock, serve as serve_connector};

use crate::control::Name;
use crate::failure::Failure;
use clap::Args;
use hv_core::devices::{Net, NetLink};
use hv_core::net::user::Publish;
use std::str::FromStr;

/// Options that give a guest networks.
#[derive(Args, Debug)]
pub(crate) struct NetOptions {
    /// A network card, and what it is connected to; more than once for more cards
    ///
    /// `user` reaches what this host reaches, but not the host itself, and needs no rights; it is passt's if that is installed, and
    /// else built in: `user:passt` and `user:builtin` choose. With `,host-loopback` the guest finds services of the host's
    /// loopback at 10.0.2.2.
    /// `switch=NAME` connects all VMs of yours that name it. `tap=NAME` is an interface of the host's, and needs root or an interface
    /// made for you.
    #[arg(long, value_name = "user|switch=NAME|tap=NAME")]
    pub(crate) net: Vec<NetOption>,
    /// A port of this host that leads to one of the guest, with `--net user`; more than once for more ports
    ///
    /// Without ADDRESS it is 127.0.0.1, which only this host reaches.
    #[arg(long, short, value_name = "[ADDRESS:]PORT:GUESTPORT[/udp]", requires = "net")]
    pub(crate) publish: Vec<Publish>,
}

/// What `--net` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetOption {
    /// The user-mode network.
    User { stack: Stack, host_loopback: bool },
    /// An interface of the host's.
    Tap(String),
    /// A switch between VMs.
    Switch(Name),
}

/// Whose user-mode network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stack {
    /// passt's if it is installed, or the one built in.
    Any,
    Builtin,
    Passt,
}

const FORM: &str = "expected user, user:builtin, user:passt, switch=NAME or tap=NAME";

impl FromStr for NetOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("switch=") {
            return name.parse().map(Self::Switch);
        }
        if let Some(name) = text.strip_prefix("tap=") {
            return tap::check_name(name).map(|()| Self::Tap(name.into()));
        }
        let (network, option) =
            text.split_once(',').map_or((text, None), |(network, option)| (network, Some(option)));
        let stack = match network {
            "user" => Stack::Any,
            "user:builtin" => Stack::Builtin,
            "user:passt" => Stack::Passt,
            _ => return Err(FORM.into()),
        };
        match option {
            None => Ok(Self::User { stack, host_loopback: false }),
            Some("host-loopback") => Ok(Self::User { stack, host_loopback: true }),
            Some(other) => Err(format!("expected `host-loopback` behind `{network}`, found `{other}`")),
        }
    }
}

/// The longest IP packet between VMs, and to a user-mode network; passt takes no longer ones.
const LONGEST_PACKET: u16 = u16::MAX;
const LONGEST_TO_USER: u16 = 65_520;

/// Starts or finds what is asked for, and gives the cards that are connected to it. Ports lead to the first user-mode network.
///
/// # Errors
///
/// Something cannot be had.
pub(crate) fn open(options: &NetOptions) -> Result<Vec<Net>, Failure> {
    let is_user = |option: &&NetOption| matches!(option, NetOption::User { .. });
    if !options.publish.is_empty() && !options.net.iter().any(|option| is_user(&option)) {
        let failure =
            Failure::new(crate::exit_code::Cause::CannotStart, "only `--net user` can publish ports");
        return Err(
            failure.advise("Other VMs and the host reach a guest on a switch or a tap by its own address.")
        );
    }
    let mut published = &options.publish[..];
    let open = |option: &NetOption| {
        let (link, mtu) = match option {
            NetOption::User { stack, host_loopback } => {
                let ports = std::mem::take(&mut published);
                (NetLink::Stream(user::start(*stack, *host_loopback, ports)?), LONGEST_TO_USER)
            }
            NetOption::Switch(name) => (NetLink::Stream(switch::join(name)?), LONGEST_PACKET),
            NetOption::Tap(name) => (NetLink::Tap(tap::open(name)?), tap::mtu(name)),
        };
        Ok(Net { link, mac: random_address()?, mtu })
    };
    options.net.iter().map(open).collect()
}

/// An Ethernet address for a card: locally administered, and so many that no two on a network are the same.
fn random_address() -> Result<[u8; 6], Failure> {
    let mut address = [0; 6];
    rustix::rand::getrandom(&mut address, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Failure::cannot("the host has no address for a network card", error))?;
    address[0] = address[0] & 0xfc | 2; // locally administered, and not a group's
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_as_they_are_written() {
        let user = |stack, host_loopback| NetOption::User { stack, host_loopback };
        for (text, option) in [
            ("user", user(Stack::Any, false)),
            ("user:builtin", user(Stack::Builtin, false)),
            ("user:passt,host-loopback", user(Stack::Passt, true)),
            ("switch=room", NetOption::Switch("room".parse().unwrap())),
            ("tap=tap0", NetOption::Tap("tap0".into())),
        ] {
            assert_eq!(text.parse(), Ok(option));
        }
        for text in
            ["", "usr", "user:slirp", "user,loopback", "switch", "switch=", "switch=../x", "tap=", "tap=a/b"]
        {
            assert!(text.parse::<NetOption>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_of_one_card_and_local() {
        for _ in 0..100 {
            assert_eq!(random_address().unwrap()[0] & 3, 2);
        }
    }
}

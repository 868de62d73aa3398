//! TCP/IP on a network card, by the crate `smoltcp`.
//!
//! One task runs the stack ([`Stack::run`]); other tasks of the same vCPU have sockets: [`TcpListener`], [`TcpStream`], [`UdpSocket`].
//! The stack is run when a frame has come, when a socket was used, and when a timer of TCP's asks for it; otherwise everybody sleeps.
//!
//! ```no_run
//! # use pv_drivers::net::{Net, stack::{Addressing, Buffers, Stack, TcpListener}};
//! # use guest_sdk::task::Executor;
//! # fn main() -> Result<(), pv_drivers::Error> {
//! let executor = Executor::new();
//! let stack = Stack::new(Net::find()?, Addressing::Dhcp);
//! executor.spawner().spawn(stack.clone().run());
//! executor.spawner().spawn(async move {
//!     stack.address().await;
//!     let listener = TcpListener::bind(&stack, 7, 4, Buffers::default()).expect("the port is free");
//!     loop {
//!         let stream = listener.accept().await;
//!         let mut bytes = [0; 512];
//!         while let Ok(length @ 1..) = stream.read(&mut bytes).await {
//!             let _ = stream.write_all(&bytes[..length]).await;
//!         }
//!     }
//! });
//! executor.run();
//! # Ok(())
//! # }
//! ```
//!
//! Start at [`Stack::new`], then at [`Inner::poll`].

mod listen;
mod phy;
mod resolve;
mod tcp;
mod udp;

pub use listen::TcpListener;
pub use resolve::ResolveError;
pub use smoltcp::wire::{IpAddress, IpEndpoint, Ipv4Address, Ipv4Cidr};
pub use tcp::{Buffers, ConnectError, TcpError, TcpStream};
pub use udp::{UdpError, UdpSocket};

use super::Net;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::task::{Poll, Waker};
use guest_sdk::boot;
use guest_sdk::task::Alarm;
use guest_sdk::time::{Duration, Instant};
use listen::Port;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::{dhcpv4, dns, tcp as tcp_socket};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

/// How the stack comes by its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// It asks the network.
    Dhcp,
    /// It is told.
    Fixed {
        /// Its address, and its network's length.
        address: Ipv4Cidr,
        /// Where what is not on its network goes.
        gateway: Option<Ipv4Address>,
        /// Who knows names.
        dns: Option<Ipv4Address>,
    },
}

/// A network card with TCP/IP. Clones are the same one.
#[derive(Clone)]
pub struct Stack(Rc<RefCell<Inner>>);

struct Inner {
    net: Net,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    dns: SocketHandle,
    /// Where connections are accepted.
    ports: BTreeMap<u16, Port>,
    /// The task that runs the stack, once it does.
    runner: Option<Waker>,
    /// Who waits for an address.
    addressed: Vec<Waker>,
    /// Streams that nobody has any more and that are yet to be closed, and until when they may take for it.
    closing: VecDeque<(SocketHandle, Instant)>,
    next_port: u16,
}

/// Frames that are taken in one go.
const BATCH: usize = 64;
/// Ports of connections that are made from here.
const DYNAMIC_PORTS: core::ops::RangeInclusive<u16> = 49_152..=65_535;
/// The most streams that are closed at a time, and the longest that one may take.
const CLOSING_MAX: usize = 256;
const CLOSING_TIME: Duration = Duration::from_secs(30);

/// A guest's moment as `smoltcp` has it.
fn moment(at: Instant) -> smoltcp::time::Instant {
    smoltcp::time::Instant::from_micros((at.as_nanos() / 1000) as i64)
}

impl Stack {
    /// On that card, which it is alone to use.
    pub fn new(mut net: Net, addressing: Addressing) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(net.mac())));
        let seed = boot::info().seed.first_chunk().copied().expect("a seed is 32 bytes long");
        config.random_seed = u64::from_ne_bytes(seed) ^ Instant::now().as_nanos();
        let interface = Interface::new(config, &mut net, moment(Instant::now()));
        let mut sockets = SocketSet::new(Vec::new());
        let dns = sockets.add(dns::Socket::new(&[], Vec::new()));
        let dhcp = (addressing == Addressing::Dhcp).then(|| {
            let mut socket = dhcpv4::Socket::new();
            let mut retry = socket.get_retry_config();
            // A guest has just started, and somebody waits.
            retry.discover_timeout = smoltcp::time::Duration::from_secs(1);
            socket.set_retry_config(retry);
            sockets.add(socket)
        });
        let ports = DYNAMIC_PORTS.end() - DYNAMIC_PORTS.start();
        let mut inner = Inner {
            net,
            interface,
            sockets,
            dhcp,
            dns,
            ports: BTreeMap::new(),
            runner: None,
            addressed: Vec::new(),
            closing: VecDeque::new(),
            next_port: DYNAMIC_PORTS.start() + u16::from_ne_bytes([seed[6], seed[7]]) % ports,
        };
        if let Addressing::Fixed { address, gateway, dns } = addressing {
            inner.configure(Some(address), gateway, dns.as_slice());
        }
        Self(Rc::new(RefCell::new(inner)))
    }

    /// Runs the stack, for as long as its device works. From here on connections are refused where nobody listens.
    pub async fn run(self) {
        let mut alarm = Alarm::new();
        core::future::poll_fn(|context| {
            let inner = &mut *self.0.borrow_mut();
            inner.runner = Some(context.waker().clone());
            inner.poll();
            if inner.net.is_broken() {
                return Poll::Ready(());
            }
            inner.net.wake_at_change(context.waker());
            alarm.set(inner.next_poll(), context.waker());
            Poll::Pending
        })
        .await;
    }

    /// Waits until the stack has an address, and gives it.
    pub async fn address(&self) -> Ipv4Cidr {
        core::future::poll_fn(|context| {
            let mut inner = self.0.borrow_mut();
            let address = inner.interface.ip_addrs().first().map(|IpCidr::Ipv4(address)| *address);
            if address.is_none() {
                inner.addressed.push(context.waker().clone());
            }
            address.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Waits until all that can be sent now has left this machine: before it ends.
    pub async fn flush(&self) {
        core::future::poll_fn(|context| {
            let inner = &mut *self.0.borrow_mut();
            let to_send = inner.next_poll().is_some_and(|at| at <= Instant::now());
            if inner.net.is_flushed() && !to_send {
                return Poll::Ready(());
            }
            inner.net.wake_at_change(context.waker());
            if to_send {
                inner.used();
                context.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await;
    }

    /// The card's address.
    pub fn mac(&self) -> [u8; 6] {
        self.0.borrow().net.mac()
    }

    /// Whether there is somebody at the other end of the card.
    pub fn is_up(&self) -> bool {
        self.0.borrow().net.is_up()
    }
}

impl Inner {
    /// Takes what has come, and sends what is to be sent, as far as the device takes it.
    fn poll(&mut self) {
        let now = Instant::now();
        let mut frames = 0;
        while frames < BATCH && self.take_frame(now) {
            frames += 1;
        }
        if frames == BATCH {
            self.used(); // there may be more
        }
        while self.interface.poll_egress(moment(now), &mut self.net, &mut self.sockets) != PollResult::None {}
        self.take_lease();
        self.bury(now);
    }

    /// Takes one frame. Whether there was one.
    fn take_frame(&mut self, now: Instant) -> bool {
        let taken = self.interface.poll_ingress_single(moment(now), &mut self.net, &mut self.sockets);
        if taken == PollIngressSingleResult::SocketStateChanged {
            self.listen_again();
        }
        taken != PollIngressSingleResult::None
    }

    /// When to poll next, if nothing happens before. While the device takes no more, only that can help.
    fn next_poll(&mut self) -> Option<Instant> {
        self.net.try_outgoing()?;
        let at = self.interface.poll_at(moment(Instant::now()), &self.sockets)?;
        Some(Instant::START + Duration::from_micros(at.total_micros().max(0) as u64))
    }

    /// A socket was used: there may be something to send.
    fn used(&self) {
        self.runner.iter().for_each(Waker::wake_by_ref);
    }

    /// Looks whether DHCP has come to something.
    fn take_lease(&mut self) {
        let Some(dhcp) = self.dhcp else { return };
        match self.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll() {
            None => {}
            Some(dhcpv4::Event::Configured(lease)) => {
                let (address, router, dns) = (lease.address, lease.router, lease.dns_servers.clone());
                self.configure(Some(address), router, &dns);
            }
            Some(dhcpv4::Event::Deconfigured) => self.configure(None, None, &[]),
        }
    }

    fn configure(&mut self, address: Option<Ipv4Cidr>, gateway: Option<Ipv4Address>, dns: &[Ipv4Address]) {
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            addresses.extend(address.map(IpCidr::Ipv4));
        });
        self.interface.routes_mut().remove_default_ipv4_route();
        if let Some(gateway) = gateway {
            let added = self.interface.routes_mut().add_default_ipv4_route(gateway);
            added.expect("it is the only route");
        }
        let servers: Vec<IpAddress> = dns.iter().copied().take(1).map(IpAddress::Ipv4).collect();
        self.sockets.get_mut::<dns::Socket<'_>>(self.dns).update_servers(&servers);
        if address.is_some() {
            self.addressed.drain(..).for_each(Waker::wake);
        }
    }

    /// Nobody has this stream any more: it is closed in good order, if its peer allows that.
    fn close_later(&mut self, stream: SocketHandle) {
        tcp::close(self.sockets.get_mut::<tcp_socket::Socket<'_>>(stream));
        self.closing.push_back((stream, Instant::now() + CLOSING_TIME));
        self.used();
    }

    /// Removes streams that are closed, and aborts those that take too long.
    fn bury(&mut self, now: Instant) {
        use tcp_socket::State;
        let mut too_many = self.closing.len().saturating_sub(CLOSING_MAX);
        let (sockets, mut aborted) = (&mut self.sockets, false);
        self.closing.retain(|(stream, deadline)| {
            let socket = sockets.get_mut::<tcp_socket::Socket<'_>>(*stream);
            if matches!(socket.state(), State::Closed | State::TimeWait) {
                sockets.remove(*stream);
                return false;
            }
            if too_many > 0 || *deadline <= now {
                // The peer is told when the stack is polled next, and then it is closed.
                socket.abort();
                aborted = true;
                too_many = too_many.saturating_sub(1);
            }
            true
        });
        if aborted {
            self.used();
        }
    }

    /// A port for a connection that is made from here.
    fn dynamic_port(&mut self) -> u16 {
        let port = self.next_port;
        self.next_port = if port == *DYNAMIC_PORTS.end() { *DYNAMIC_PORTS.start() } else { port + 1 };
        port
    }
}

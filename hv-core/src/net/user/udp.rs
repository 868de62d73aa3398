//! Datagrams: a socket of the host's for each pair of ends, for as long as there is traffic.
//!
//! The socket is connected, so nobody but whom the guest wrote to can answer. When there are too many, the one that was
//! silent for longest goes: a guest that writes to ever new places loses its own answers.
//!
//! Start at [`Flows::send`].

use super::link::ToGuest;
use super::policy::Policy;
use super::publish::Publish;
use super::{GATEWAY, Key, Source, Wanted};
use rustix::event::PollFlags;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

/// Flows at once.
pub(super) const FLOWS: usize = 256;

/// A flow without a datagram for so long is forgotten.
const IDLE: Duration = Duration::from_secs(120);

/// Datagrams that are taken from one socket before others have their turn.
const BURST: usize = 64;

/// The longest datagram there is.
const LONGEST: usize = 65_507;

/// The gateway's ports that stand for those who write to a published port.
const FIRST_OWN_PORT: u16 = 49_152;

/// All flows of datagrams.
pub(super) struct Flows {
    flows: HashMap<Key, Flow>,
    listeners: Vec<(UdpSocket, u16)>,
    next_port: u16,
    received: Box<[u8]>,
}

struct Flow {
    host: Host,
    used: Instant,
}

/// The host's end of a flow.
enum Host {
    /// A socket that is connected to the guest's peer.
    Own(UdpSocket),
    /// Somebody who wrote to a published port.
    Published { listener: usize, peer: SocketAddr },
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            flows: HashMap::new(),
            listeners: Vec::new(),
            next_port: FIRST_OWN_PORT,
            received: vec![0; LONGEST].into(),
        }
    }
}

impl Flows {
    /// Publishes a port of the guest's.
    pub(super) fn listen(&mut self, publish: &Publish) -> io::Result<()> {
        let socket = UdpSocket::bind(publish.host)?;
        socket.set_nonblocking(true)?;
        self.listeners.push((socket, publish.guest_port));
        Ok(())
    }

    pub(super) fn sources<'a>(&'a self, wanted: &mut Wanted<'a>) {
        for (index, (listener, _)) in self.listeners.iter().enumerate() {
            wanted.add(Source::UdpListener(index), listener, PollFlags::IN);
        }
        for (key, flow) in &self.flows {
            if let Host::Own(socket) = &flow.host {
                wanted.add(Source::Udp(*key), socket, PollFlags::IN);
            }
        }
    }

    /// How long until the next flow is forgotten.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let oldest = self.flows.values().map(|flow| flow.used).min()?;
        Some((oldest + IDLE).saturating_duration_since(Instant::now()))
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.flows.retain(|_, flow| now.saturating_duration_since(flow.used) < IDLE);
    }

    /// Sends a datagram of the guest's on. It may be lost.
    pub(super) fn send(&mut self, key: Key, payload: &[u8], policy: &Policy, now: Instant) {
        if !self.flows.contains_key(&key) {
            let Some(to) = policy.destination(key.peer) else { return };
            self.make_room();
            let Ok(socket) = connected_to(to) else { return };
            self.flows.insert(key, Flow { host: Host::Own(socket), used: now });
        }
        let Some(flow) = self.flows.get_mut(&key) else { return };
        flow.used = now;
        let sent = match &flow.host {
            Host::Own(socket) => socket.send(payload),
            Host::Published { listener, peer } => self.listeners[*listener].0.send_to(payload, *peer),
        };
        if let Err(error) = sent {
            tracing::trace!(peer = %key.peer, %error, "a datagram of the guest's was lost");
        }
    }

    /// If there are too many flows, forgets the one that was silent for longest.
    fn make_room(&mut self) {
        if self.flows.len() >= FLOWS
            && let Some(oldest) = self.flows.iter().min_by_key(|(_, flow)| flow.used).map(|(key, _)| *key)
        {
            self.flows.remove(&oldest);
        }
    }

    /// Passes on what has come for a flow.
    pub(super) fn receive(&mut self, key: Key, now: Instant, to_guest: &mut ToGuest) {
        let Some(Flow { host: Host::Own(socket), used }) = self.flows.get_mut(&key) else { return };
        for _ in 0..BURST {
            if !to_guest.has_room() {
                return;
            }
            match socket.recv(&mut self.received) {
                Ok(length) => {
                    *used = now;
                    to_guest.datagram(key.peer, key.guest_port, &self.received[..length]);
                }
                // An error is of an earlier datagram, such as that nobody listens, and is told once.
                Err(_) => return,
            }
        }
    }

    /// Passes on what has come to a published port.
    pub(super) fn receive_published(&mut self, index: usize, now: Instant, to_guest: &mut ToGuest) {
        for _ in 0..BURST {
            if !to_guest.has_room() {
                return;
            }
            let (socket, guest_port) = &self.listeners[index];
            let guest_port = *guest_port;
            let Ok((length, peer)) = socket.recv_from(&mut self.received) else { return };
            let key = self.published_key(index, guest_port, peer, now);
            to_guest.datagram(key.peer, guest_port, &self.received[..length]);
        }
    }

    /// The flow that stands for somebody who writes to a published port; a new one if there is none.
    fn published_key(&mut self, listener: usize, guest_port: u16, from: SocketAddr, now: Instant) -> Key {
        let known = self.flows.iter_mut().find(|(key, flow)| {
            let Host::Published { listener: its, peer } = flow.host else { return false };
            its == listener && peer == from && key.guest_port == guest_port
        });
        if let Some((key, flow)) = known {
            flow.used = now;
            return *key;
        }
        self.make_room();
        loop {
            let key = Key { guest_port, peer: SocketAddrV4::new(GATEWAY, self.next_port) };
            self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_OWN_PORT);
            if let Entry::Vacant(entry) = self.flows.entry(key) {
                entry.insert(Flow { host: Host::Published { listener, peer: from }, used: now });
                return key;
            }
        }
    }
}

/// A socket that only `to` can answer.
pub(super) fn connected_to(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    Ok(socket)
}

/// What tests look at.
#[cfg(test)]
impl Flows {
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }

    pub(super) fn published(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|(listener, _)| listener.local_addr().expect("it is bound"))
    }
}

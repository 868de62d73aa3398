//! A learning Ethernet switch between VMs: frames go where their address was last seen, or to all.
//!
//! VMs are not trusted. Each harms its own traffic at most: what a slow receiver does not take is dropped, nobody waits for
//! it; a peer whose framing is broken is let go; and a VM can fill only its own share of the table of addresses. As with any
//! such switch, VMs on one are one network: each can send in the name of another, and sees what is sent to all.
//!
//! # Why it is fast
//!
//! One read takes as many frames as there are. Neighbours among them for the same receiver are one run, which is written
//! from where it was read to, in one call.
//!
//! Start at [`Switch::serve`], and at [`Switch::forward`] for what is done with frames.

use super::frames::{self, FrameError, FrameReader, FrameWriter, PREFIX};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::sockopt;
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

/// VMs at once.
const PORTS: usize = 512;

/// Addresses that are remembered of one VM. More are not learned: frames to them go to all.
const ADDRESSES: usize = 64;

/// After so long without a frame from it, where an address is counts as unknown.
const AGE: Duration = Duration::from_secs(300);

/// Bytes read at once: few calls, and they are still in the processor's cache when they are written.
const READ: usize = 256 << 10;

/// Bytes that wait for a receiver, behind what its socket holds, before frames to it are dropped.
const WAITING: usize = 2 << 20;

/// What sockets are asked to hold; the host may give less.
const SOCKET_BUFFER: usize = 1 << 20;

/// The listener's mark among events; ports have their index.
const LISTENER: u64 = u64::MAX;

/// An Ethernet address.
type Address = [u8; 6];

/// A switch, and the VMs on it.
pub struct Switch {
    listener: UnixListener,
    epoll: OwnedFd,
    ports: Vec<Option<Port>>,
    table: Table,
}

struct Port {
    socket: UnixStream,
    reader: FrameReader,
    writer: FrameWriter,
    /// It is waited for the socket to take more.
    stuck: bool,
}

/// Where frames go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Port(usize),
    All,
    /// The sender itself, or it is not a frame.
    Nobody,
}

impl Switch {
    /// One on which VMs come by `listener`.
    ///
    /// # Errors
    ///
    /// The host refuses what it takes to wait.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Self { listener, epoll, ports: Vec::new(), table: Table::default() })
    }

    /// Forwards frames, until the last VM has gone. Call [`accept`](Self::accept) before, or there is none.
    ///
    /// # Errors
    ///
    /// The host fails to wait or to take a VM in.
    pub fn serve(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(64);
        while self.ports.iter().any(Option::is_some) {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let now = Instant::now();
            for event in &events {
                match event.data.u64() {
                    LISTENER => _ = self.accept()?,
                    port => self.attend(port as usize, event.flags, now),
                }
            }
        }
        Ok(())
    }

    /// Takes in those VMs that wait for it; whether there was one.
    ///
    /// # Errors
    ///
    /// The host's.
    pub fn accept(&mut self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => any |= self.plug_in(socket)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives a VM a port, if it is the user's own and there is a port.
    fn plug_in(&mut self, socket: UnixStream) -> io::Result<bool> {
        let free = self.ports.iter().position(Option::is_none).unwrap_or(self.ports.len());
        let peer = sockopt::socket_peercred(&socket)?;
        if peer.uid != rustix::process::geteuid() || free == PORTS {
            tracing::warn!(uid = peer.uid.as_raw(), "a connection to the switch was refused");
            return Ok(false);
        }
        sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER)?;
        epoll::add(&self.epoll, &socket, EventData::new_u64(free as u64), EventFlags::IN)?;
        let port =
            Port { socket, reader: FrameReader::new(READ), writer: FrameWriter::new(WAITING), stuck: false };
        if free == self.ports.len() {
            self.ports.push(None);
        }
        self.ports[free] = Some(port);
        Ok(true)
    }

    /// Does what a port's events ask for. A port whose peer has gone is closed.
    fn attend(&mut self, index: usize, flags: EventFlags, now: Instant) {
        // It is out of the table meanwhile: no frame goes back to where it came from.
        let Some(mut port) = self.ports[index].take() else { return };
        let attended = (|| {
            if flags.contains(EventFlags::OUT) {
                port.writer.flush(&port.socket)?;
                self.wait_for_room(index, &mut port)?;
            }
            if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                port.reader.fill(&port.socket)?;
                self.forward(index, port.reader.run()?, now);
            }
            Ok::<_, FrameError>(())
        })();
        match attended {
            Ok(()) => self.ports[index] = Some(port),
            Err(error) => {
                tracing::debug!(index, %error, "a VM left the switch");
                self.table.forget(index);
            }
        }
    }

    /// Sends each frame of a run where it belongs, neighbours for the same place together.
    fn forward(&mut self, from: usize, run: &[u8], now: Instant) {
        let (mut begin, mut end) = (0, 0);
        let (mut header, mut target): (&[u8], _) = (&[], Target::Nobody);
        for frame in frames::frames(run) {
            let addresses = frame.get(PREFIX..PREFIX + 12).unwrap_or_default();
            if addresses != header || addresses.is_empty() {
                let next = self.route(from, addresses, now);
                if next != target {
                    self.deliver(from, target, &run[begin..end]);
                    begin = end;
                }
                (header, target) = (addresses, next);
            }
            end += frame.len();
        }
        self.deliver(from, target, &run[begin..end]);
    }

    /// Where a frame with these addresses, the receiver's and the sender's, goes; learns where the sender is.
    fn route(&mut self, from: usize, addresses: &[u8], now: Instant) -> Target {
        let Some((&receiver, rest)) = addresses.split_first_chunk() else { return Target::Nobody };
        let Some(&sender) = rest.first_chunk() else { return Target::Nobody };
        self.table.learn(sender, from, now);
        match self.table.port(receiver, now) {
            Some(port) if port == from => Target::Nobody,
            Some(port) => Target::Port(port),
            None => Target::All,
        }
    }

    fn deliver(&mut self, from: usize, target: Target, run: &[u8]) {
        match target {
            _ if run.is_empty() => {}
            Target::Nobody => {}
            Target::Port(port) => self.send(port, run),
            Target::All => {
                (0..self.ports.len()).filter(|port| *port != from).for_each(|port| self.send(port, run))
            }
        }
    }

    /// Sends to a port, if there is one. That its peer has gone is told by the port's own events.
    fn send(&mut self, index: usize, run: &[u8]) {
        let Some(mut port) = self.ports[index].take() else { return };
        match port.writer.send(&port.socket, run) {
            Ok(0) => {}
            Ok(dropped) => tracing::trace!(index, dropped, "a slow receiver"),
            Err(error) => tracing::debug!(index, %error, "a VM does not take frames"),
        }
        match self.wait_for_room(index, &mut port) {
            Ok(()) => self.ports[index] = Some(port),
            Err(error) => tracing::warn!(index, %error, "a VM cannot be waited for, and is let go"),
        }
    }

    /// Asks to be told when the socket takes more, while something waits for that.
    fn wait_for_room(&self, index: usize, port: &mut Port) -> Result<(), FrameError> {
        let stuck = !port.writer.is_empty();
        if stuck != port.stuck {
            let flags = if stuck { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(&self.epoll, &port.socket, EventData::new_u64(index as u64), flags)?;
            port.stuck = stuck;
        }
        Ok(())
    }
}

/// Where addresses were last seen.
#[derive(Default)]
struct Table {
    seen: HashMap<Address, Seen>,
    /// How many are of each port.
    counts: HashMap<usize, usize>,
}

struct Seen {
    port: usize,
    at: Instant,
}

impl Table {
    fn learn(&mut self, address: Address, port: usize, now: Instant) {
        if is_group(address) {
            return;
        }
        if let Some(seen) = self.seen.get_mut(&address)
            && seen.port == port
        {
            seen.at = now;
            return;
        }
        if self.count(port) >= ADDRESSES {
            self.drop_where(|seen| seen.port == port && now - seen.at > AGE);
        }
        if self.count(port) >= ADDRESSES {
            return;
        }
        if let Some(moved) = self.seen.insert(address, Seen { port, at: now }) {
            self.counts.entry(moved.port).and_modify(|count| *count -= 1);
        }
        *self.counts.entry(port).or_default() += 1;
    }

    fn port(&self, address: Address, now: Instant) -> Option<usize> {
        self.seen.get(&address).filter(|seen| now - seen.at <= AGE).map(|seen| seen.port)
    }

    /// A port has gone, and its index is for another.
    fn forget(&mut self, port: usize) {
        self.drop_where(|seen| seen.port == port);
        self.counts.remove(&port);
    }

    fn count(&self, port: usize) -> usize {
        self.counts.get(&port).copied().unwrap_or(0)
    }

    fn drop_where(&mut self, which: impl Fn(&Seen) -> bool) {
        let counts = &mut self.counts;
        self.seen.retain(|_, seen| {
            let dropped = which(seen);
            if dropped {
                counts.entry(seen.port).and_modify(|count| *count -= 1);
            }
            !dropped
        });
    }
}

/// Whether it is for many receivers, as broadcast is.
fn is_group(address: Address) -> bool {
    address[0] & 1 != 0
}

#[cfg(test)]
mod tests;

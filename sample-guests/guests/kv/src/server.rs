//! Clients over TCP, on a network device.
//!
//! One turn takes what has come from all clients, carries it out, commits it with one write and one flush, and sends the
//! replies. The more clients send while a commit is made, the more share the next one.
//!
//! Start at [`Server::turn`].

use crate::connection::Connection;
use crate::database::Database;
use crate::disk::Disk;
use alloc::vec;
use alloc::vec::Vec;
use smoltcp::iface::{Interface, PollIngressSingleResult, SocketHandle, SocketSet};
use smoltcp::phy::Device;
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::IpCidr;

/// The port of a Redis server.
pub const PORT: u16 = 6379;
/// Clients at a time. Others are refused by TCP.
pub const MOST_CLIENTS: usize = 128;
/// Bytes on their way to or from a client.
const BUFFER: usize = 64 << 10;
/// Frames that a turn takes; more wait for the next one, so that no flood of them keeps replies back.
const MOST_FRAMES: usize = 256;
/// A client of which nothing was heard for so long is asked whether it is there, and later given up.
const ASK_AFTER: Duration = Duration::from_secs(60);
const GIVE_UP_AFTER: Duration = Duration::from_secs(180);

/// What the time is.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// On a clock that never goes back.
    pub monotonic: Instant,
    /// In milliseconds since 1970.
    pub epoch_ms: u64,
}

/// What to do after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for the network device, at most until this moment.
    Wait(Option<Instant>),
    /// End: a client asked for it.
    Shutdown,
}

/// The clients.
pub struct Server {
    sockets: SocketSet<'static>,
    clients: Vec<(SocketHandle, Connection)>,
    dhcp: Option<SocketHandle>,
    /// Bytes that clients' commands and replies may take together.
    memory: usize,
}

impl Server {
    /// Without clients. `memory` is what their commands and replies may take, beside the buffers of TCP.
    pub fn new(memory: usize) -> Self {
        let mut sockets = SocketSet::new(Vec::with_capacity(MOST_CLIENTS));
        let clients = (0..MOST_CLIENTS).map(|_| (sockets.add(socket()), Connection::default())).collect();
        Self { sockets, clients, dhcp: None, memory }
    }

    /// Has it ask the network for the interface's address.
    pub fn with_dhcp(mut self) -> Self {
        let mut dhcp = dhcpv4::Socket::new();
        let mut retry = dhcp.get_retry_config();
        // A guest has just started, and somebody waits.
        retry.discover_timeout = Duration::from_secs(1);
        dhcp.set_retry_config(retry);
        self.dhcp = Some(self.sockets.add(dhcp));
        self
    }

    /// Serves all clients once.
    ///
    /// # Errors
    ///
    /// The disk failed; nothing that was not committed has been answered.
    pub fn turn<D: Disk>(
        &mut self,
        interface: &mut Interface,
        device: &mut impl Device,
        database: &mut Database<D>,
        now: Now,
    ) -> Result<Next, D::Error> {
        interface.poll_maintenance(now.monotonic);
        let mut frames =
            (0..MOST_FRAMES).map(|_| interface.poll_ingress_single(now.monotonic, device, &mut self.sockets));
        let all_taken = frames.any(|result| result == PollIngressSingleResult::None);
        self.take_lease(interface);
        let mut shutdown = false;
        for (handle, connection) in &mut self.clients {
            let socket = self.sockets.get_mut::<tcp::Socket<'_>>(*handle);
            shutdown |= serve(socket, connection, database, now.epoch_ms)?;
        }
        database.commit()?;
        for (handle, connection) in &mut self.clients {
            send(self.sockets.get_mut(*handle), connection);
        }
        self.cut_off();
        interface.poll_egress(now.monotonic, device, &mut self.sockets);
        if shutdown {
            return Ok(Next::Shutdown);
        }
        let deadline = interface.poll_at(now.monotonic, &self.sockets);
        Ok(Next::Wait(if !all_taken || self.is_more_to_do() { Some(now.monotonic) } else { deadline }))
    }

    /// Gives the interface the address that the network has given, if that has changed.
    fn take_lease(&mut self, interface: &mut Interface) {
        let event = self.dhcp.and_then(|dhcp| self.sockets.get_mut::<dhcpv4::Socket<'_>>(dhcp).poll());
        let (address, router) = match event {
            None => return,
            Some(dhcpv4::Event::Configured(lease)) => (Some(lease.address), lease.router),
            Some(dhcpv4::Event::Deconfigured) => (None, None),
        };
        interface.update_ip_addrs(|addresses| {
            addresses.clear();
            addresses.extend(address.map(IpCidr::Ipv4));
        });
        interface.routes_mut().remove_default_ipv4_route();
        if let Some(router) = router {
            // There is room: it is the only one.
            let _ = interface.routes_mut().add_default_ipv4_route(router);
        }
    }

    /// Whether another turn would find something to do, though nothing comes from the network.
    fn is_more_to_do(&self) -> bool {
        self.clients.iter().any(|(handle, connection)| {
            let socket = self.sockets.get::<tcp::Socket<'_>>(*handle);
            connection.is_ready() && (socket.can_recv() || connection.waits()) || !socket.is_open()
        })
    }

    /// Lets go of the client that holds the most, while all together hold too much.
    fn cut_off(&mut self) {
        let held = |clients: &[(SocketHandle, Connection)]| -> usize {
            clients.iter().map(|(_, connection)| connection.held()).sum()
        };
        while held(&self.clients) > self.memory {
            let most = self.clients.iter_mut().max_by_key(|(_, connection)| connection.held());
            let Some((handle, connection)) = most else {
                return;
            };
            self.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort();
            *connection = Connection::default();
        }
    }
}

fn socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    // Replies are sent whole; there is nothing to wait for.
    socket.set_nagle_enabled(false);
    socket.set_keep_alive(Some(ASK_AFTER));
    socket.set_timeout(Some(GIVE_UP_AFTER));
    listen(&mut socket);
    socket
}

fn listen(socket: &mut tcp::Socket<'_>) {
    let listening = socket.listen(PORT);
    debug_assert_eq!(listening, Ok(()), "a socket that is not open can listen");
}

/// Takes what a client has sent, and carries it out; says whether the server is to end.
fn serve<D: Disk>(
    socket: &mut tcp::Socket<'_>,
    connection: &mut Connection,
    database: &mut Database<D>,
    now: u64,
) -> Result<bool, D::Error> {
    if !socket.is_open() {
        *connection = Connection::default();
        listen(socket);
        return Ok(false);
    }
    if connection.closing {
        // So that the other side's end is seen, whatever it sends before.
        let _ = socket.recv(|bytes| (bytes.len(), ()));
        return Ok(false);
    }
    // Twice, for the buffer is a ring.
    for _ in 0..2 {
        if connection.is_ready() && socket.can_recv() {
            let _ = socket.recv(|bytes| {
                connection.receive(bytes);
                (bytes.len(), ())
            });
        }
    }
    let shutdown = connection.run(database, now)?;
    if !socket.may_recv() && socket.state() != tcp::State::Listen && socket.state() != tcp::State::SynReceived
    {
        // The client will send no more, and everything that has come has been carried out, but for what waits for room.
        connection.closing |= !connection.waits();
    }
    Ok(shutdown)
}

/// Sends replies as far as there is room, and closes a connection that is to be closed after them.
fn send(socket: &mut tcp::Socket<'_>, connection: &mut Connection) {
    while !connection.reply.bytes().is_empty() && socket.can_send() {
        match socket.send_slice(connection.reply.bytes()) {
            Ok(count) => connection.reply.sent(count),
            Err(_) => return,
        }
    }
    if connection.closing && connection.reply.bytes().is_empty() {
        socket.close();
    }
}

#[cfg(test)]
mod tests;

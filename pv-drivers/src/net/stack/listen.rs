//! Who waits for connections.
//!
//! A socket of `smoltcp`'s that listens becomes the first connection to its port. So after each frame that has come the stack looks
//! whether another one is needed ([`Inner::listen_again`]); a burst of connections is refused only where it is longer than the
//! backlog, and memory is taken for connections that there are.
//!
//! Start at [`TcpListener::accept`].

use super::tcp::{Buffers, ConnectError, TcpStream, new_socket};
use super::{Inner, Stack};
use alloc::collections::VecDeque;
use core::task::{Context, Poll, Waker};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, State};

/// A port at which connections are accepted.
pub(super) struct Port {
    buffers: Buffers,
    backlog: usize,
    /// What becomes the next connection.
    listening: Option<SocketHandle>,
    /// Connections that were not accepted; some are not complete yet.
    made: VecDeque<SocketHandle>,
    /// Who accepts them.
    waiting: Option<Waker>,
}

/// Accepts connections to a port.
pub struct TcpListener {
    stack: Stack,
    port: u16,
}

impl TcpListener {
    /// At a port. There can be so many connections that were not accepted yet; further ones are refused.
    ///
    /// # Errors
    ///
    /// [`ConnectError::NoAddress`] if the port is 0; [`ConnectError::InUse`].
    pub fn bind(stack: &Stack, port: u16, backlog: usize, buffers: Buffers) -> Result<Self, ConnectError> {
        let mut inner = stack.0.borrow_mut();
        if port == 0 {
            return Err(ConnectError::NoAddress);
        }
        if inner.ports.contains_key(&port) {
            return Err(ConnectError::InUse);
        }
        let backlog = backlog.max(1);
        let state = Port { buffers, backlog, listening: None, made: VecDeque::new(), waiting: None };
        inner.ports.insert(port, state);
        inner.listen_again();
        Ok(Self { stack: stack.clone(), port })
    }

    /// The next connection.
    pub async fn accept(&self) -> TcpStream {
        core::future::poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&self, context: &Context<'_>) -> Poll<TcpStream> {
        let inner = &mut *self.stack.0.borrow_mut();
        let (sockets, ports) = (&mut inner.sockets, &mut inner.ports);
        let port = ports.get_mut(&self.port).expect("it is there for as long as its listener");
        // Those that their clients have given up.
        port.made.retain(|handle| {
            let given_up = matches!(state(sockets, *handle), State::Listen | State::Closed);
            if given_up {
                sockets.remove(*handle);
            }
            !given_up
        });
        let complete = |handle: &SocketHandle| state(sockets, *handle) != State::SynReceived;
        let Some(place) = port.made.iter().position(complete) else {
            for handle in &port.made {
                let socket = sockets.get_mut::<Socket<'_>>(*handle);
                socket.register_send_waker(context.waker()); // it is woken by any change of its state
            }
            port.waiting = Some(context.waker().clone());
            return Poll::Pending;
        };
        let handle = port.made.remove(place).expect("it is there");
        inner.listen_again();
        Poll::Ready(TcpStream::new(&self.stack, handle))
    }
}

fn state(sockets: &smoltcp::iface::SocketSet<'static>, handle: SocketHandle) -> State {
    sockets.get::<Socket<'_>>(handle).state()
}

impl Inner {
    /// Has a socket listen at each port that takes connections and has none that does.
    pub(super) fn listen_again(&mut self) {
        for (number, port) in &mut self.ports {
            if let Some(listening) = port.listening
                && state(&self.sockets, listening) != State::Listen
            {
                port.listening = None;
                port.made.push_back(listening);
                port.waiting.take().into_iter().for_each(Waker::wake);
            }
            if port.listening.is_none() && port.made.len() < port.backlog {
                let mut socket = new_socket(port.buffers);
                socket.listen(*number).expect("a new socket, and a port that is not 0");
                port.listening = Some(self.sockets.add(socket));
            }
        }
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        let inner = &mut *self.stack.0.borrow_mut();
        let port = inner.ports.remove(&self.port);
        for handle in port.into_iter().flat_map(|port| port.listening.into_iter().chain(port.made)) {
            inner.close_later(handle);
        }
    }
}

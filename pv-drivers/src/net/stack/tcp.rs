//! TCP streams.
//!
//! Start at [`TcpStream::read`] and [`TcpStream::write_all`].

use super::{Inner, IpEndpoint, Stack};
use alloc::vec;
use core::task::{Poll, Waker};
use guest_sdk::time::Duration;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

/// A peer from whom nothing is heard for so long, though it should answer, has gone.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How much a stream holds that was received and not read, and written and not received by its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// Bytes for what comes.
    pub receive: usize,
    /// Bytes for what goes.
    pub send: usize,
}

impl Default for Buffers {
    /// Enough for a network whose round trips are short.
    fn default() -> Self {
        Self { receive: 64 << 10, send: 64 << 10 }
    }
}

/// Why nothing more can be read from a stream, or written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TcpError {
    /// The peer has reset the connection, or does not answer any more, or it was closed here.
    #[error("the connection was reset, or is closed")]
    Closed,
}

/// Why there is no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// This side has no address yet, or the other's is none.
    #[error("there is no address to connect from, or to")]
    NoAddress,
    /// Nobody accepts connections there, or nobody answers.
    #[error("the connection was refused, or nobody answers")]
    Refused,
    /// The port is in use.
    #[error("the port is in use")]
    InUse,
}

/// A socket that is not connected.
pub(super) fn new_socket(buffers: Buffers) -> Socket<'static> {
    let buffer = |bytes: usize| SocketBuffer::new(vec![0; bytes]);
    let mut socket = Socket::new(buffer(buffers.receive), buffer(buffers.send));
    // What is written is a message as a rule, and not a key that was hit.
    socket.set_nagle_enabled(false);
    socket.set_timeout(Some(smoltcp::time::Duration::from_secs(TIMEOUT.as_secs())));
    socket
}

/// Says that nothing more is written. From here on nothing is gained by acknowledging late, and whoever ends soon would not.
pub(super) fn close(socket: &mut Socket<'_>) {
    socket.close();
    socket.set_ack_delay(None);
}

/// A connection. One task at a time can read from it, and one can write to it.
///
/// When it is dropped, what was written is still sent, and then the connection is closed.
pub struct TcpStream {
    stack: Stack,
    handle: SocketHandle,
}

impl TcpStream {
    pub(super) fn new(stack: &Stack, handle: SocketHandle) -> Self {
        Self { stack: stack.clone(), handle }
    }

    /// Makes a connection.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub async fn connect(
        stack: &Stack,
        peer: impl Into<IpEndpoint>,
        buffers: Buffers,
    ) -> Result<Self, ConnectError> {
        let peer = peer.into();
        let stream = {
            let inner = &mut *stack.0.borrow_mut();
            let port = inner.dynamic_port();
            let mut socket = new_socket(buffers);
            let connected = socket.connect(inner.interface.context(), peer, port);
            connected.map_err(|_| ConnectError::NoAddress)?;
            Self::new(stack, inner.sockets.add(socket))
        };
        stream.stack.0.borrow().used();
        let connected = core::future::poll_fn(|context| {
            stream.with(|socket, _| match socket.state() {
                State::SynSent | State::SynReceived => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
                State::Closed => Poll::Ready(Err(ConnectError::Refused)),
                _ => Poll::Ready(Ok(())),
            })
        });
        connected.await.map(|()| stream)
    }

    /// Waits until something can be read, and has `take` look at it, which says how much of it is done with. It is given nothing
    /// when the peer will write nothing more. It must not use the stack.
    ///
    /// # Errors
    ///
    /// [`TcpError`].
    pub async fn read_with<R>(&self, mut take: impl FnMut(&[u8]) -> (usize, R)) -> Result<R, TcpError> {
        core::future::poll_fn(|context| {
            self.with(|socket, inner| {
                if socket.can_recv() {
                    inner.used = true; // its window has grown
                    let taken = socket.recv(|bytes| take(bytes));
                    return Poll::Ready(taken.map_err(|_| TcpError::Closed));
                }
                if ends(socket.state()) {
                    return Poll::Ready(Ok(take(&[]).1));
                }
                if !socket.may_recv() {
                    return Poll::Ready(Err(TcpError::Closed));
                }
                socket.register_recv_waker(context.waker());
                Poll::Pending
            })
        })
        .await
    }

    /// Waits until something can be read, and reads it. Zero: the peer will write nothing more.
    ///
    /// # Errors
    ///
    /// [`TcpError`].
    pub async fn read(&self, bytes: &mut [u8]) -> Result<usize, TcpError> {
        let mut length = 0;
        let copy = |from: &[u8]| {
            length = from.len().min(bytes.len());
            bytes[..length].copy_from_slice(&from[..length]);
            (length, length)
        };
        self.read_with(copy).await
    }

    /// Waits until there is room, and has `fill` write to it, which says how much it wrote. It must not
    /// use the stack.
    ///
    /// # Errors
    ///
    /// [`TcpError`].
    pub async fn write_with<R>(&self, mut fill: impl FnMut(&mut [u8]) -> (usize, R)) -> Result<R, TcpError> {
        core::future::poll_fn(|context| {
            self.with(|socket, inner| {
                if socket.can_send() {
                    inner.used = true;
                    return Poll::Ready(socket.send(&mut fill).map_err(|_| TcpError::Closed));
                }
                if !socket.may_send() {
                    return Poll::Ready(Err(TcpError::Closed));
                }
                socket.register_send_waker(context.waker());
                Poll::Pending
            })
        })
        .await
    }

    /// Writes all of it. What is written is sent as soon as the peer has room for it.
    ///
    /// # Errors
    ///
    /// [`TcpError`]; some of it may have been received.
    pub async fn write_all(&self, mut bytes: &[u8]) -> Result<(), TcpError> {
        while !bytes.is_empty() {
            let written = self
                .write_with(|room| {
                    let length = room.len().min(bytes.len());
                    room[..length].copy_from_slice(&bytes[..length]);
                    (length, length)
                })
                .await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Says that nothing more is written, and waits until the peer has received everything.
    ///
    /// # Errors
    ///
    /// [`TcpError`].
    pub async fn finish(&self) -> Result<(), TcpError> {
        self.with(|socket, inner| {
            close(socket);
            inner.used = true;
        });
        core::future::poll_fn(|context| {
            self.with(|socket, _| match socket.state() {
                State::FinWait2 | State::TimeWait => Poll::Ready(Ok(())),
                // After the last acknowledgement of a close that the peer has begun.
                State::Closed if socket.send_queue() == 0 => Poll::Ready(Ok(())),
                State::Closed => Poll::Ready(Err(TcpError::Closed)),
                _ => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
            })
        })
        .await
    }

    /// Ends the connection at once: the peer finds it reset.
    pub fn abort(&self) {
        self.with(|socket, inner| {
            socket.abort();
            inner.used = true;
        });
    }

    /// Who is at the other end; `None` once the connection is closed.
    pub fn peer(&self) -> Option<IpEndpoint> {
        self.with(|socket, _| socket.remote_endpoint())
    }

    /// Runs something on the socket, and then has the stack look at it if it was used.
    fn with<R>(&self, run: impl FnOnce(&mut Socket<'static>, &mut Use) -> R) -> R {
        let inner: &mut Inner = &mut self.stack.0.borrow_mut();
        let mut use_of = Use { used: false };
        let result = run(inner.sockets.get_mut::<Socket<'static>>(self.handle), &mut use_of);
        if use_of.used {
            inner.runner.iter().for_each(Waker::wake_by_ref);
        }
        result
    }
}

/// What was done to a socket.
struct Use {
    /// There may be something to send.
    used: bool,
}

/// Whether the peer has said that it writes nothing more.
fn ends(state: State) -> bool {
    matches!(state, State::CloseWait | State::LastAck | State::Closing | State::TimeWait)
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        self.stack.0.borrow_mut().close_later(self.handle);
    }
}

//! UDP: datagrams.

use super::{IpEndpoint, Stack};
use alloc::vec;
use core::task::Poll;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp::{PacketBuffer, PacketMetadata, SendError, Socket};

/// Datagrams that a socket holds, each way, and the bytes in all of them.
const DATAGRAMS: usize = 64;
const BYTES: usize = 64 << 10;

/// Why a datagram cannot be sent, or a port not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UdpError {
    /// The port is 0, or this side has no address yet, or the other's is none.
    #[error("there is no address to send from, or to")]
    NoAddress,
    /// It is longer than a socket can hold.
    #[error("the datagram is too long")]
    TooLong,
}

/// A port for datagrams.
pub struct UdpSocket {
    stack: Stack,
    handle: SocketHandle,
}

impl UdpSocket {
    /// At a port; 0: any.
    ///
    /// # Errors
    ///
    /// [`UdpError::NoAddress`].
    pub fn bind(stack: &Stack, port: u16) -> Result<Self, UdpError> {
        let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; DATAGRAMS], vec![0; BYTES]);
        let mut socket = Socket::new(buffer(), buffer());
        let mut inner = stack.0.borrow_mut();
        let port = if port == 0 { inner.dynamic_port() } else { port };
        socket.bind(port).map_err(|_| UdpError::NoAddress)?;
        Ok(Self { stack: stack.clone(), handle: inner.sockets.add(socket) })
    }

    /// Sends a datagram, once there is room for it.
    ///
    /// # Errors
    ///
    /// [`UdpError`].
    pub async fn send_to(&self, bytes: &[u8], peer: impl Into<IpEndpoint>) -> Result<(), UdpError> {
        let peer = peer.into();
        if bytes.len() > BYTES {
            return Err(UdpError::TooLong);
        }
        core::future::poll_fn(|context| {
            let inner = &mut *self.stack.0.borrow_mut();
            let socket = inner.sockets.get_mut::<Socket<'_>>(self.handle);
            match socket.send_slice(bytes, peer) {
                Ok(()) => {
                    inner.used();
                    Poll::Ready(Ok(()))
                }
                Err(SendError::Unaddressable) => Poll::Ready(Err(UdpError::NoAddress)),
                Err(SendError::BufferFull) => {
                    socket.register_send_waker(context.waker());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The next datagram: as much of it as fits, how long that is, and who sent it.
    pub async fn receive_from(&self, bytes: &mut [u8]) -> (usize, IpEndpoint) {
        core::future::poll_fn(|context| {
            let mut inner = self.stack.0.borrow_mut();
            let socket = inner.sockets.get_mut::<Socket<'_>>(self.handle);
            let Ok((datagram, about)) = socket.recv() else {
                socket.register_recv_waker(context.waker());
                return Poll::Pending;
            };
            let length = datagram.len().min(bytes.len());
            bytes[..length].copy_from_slice(&datagram[..length]);
            Poll::Ready((length, about.endpoint))
        })
        .await
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.stack.0.borrow_mut().sockets.remove(self.handle);
    }
}

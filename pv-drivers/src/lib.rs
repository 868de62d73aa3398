#![doc = include_str!("../README.md")]
#![no_std]

#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
extern crate std;

extern crate alloc;

pub mod block;
mod buffers;
#[cfg(test)]
mod fake;
pub mod fs;
mod hal;
#[cfg(test)]
mod hostile;
pub mod queue;
mod registered;
pub mod rng;
pub mod transport;
pub mod vsock;

pub use hal::GuestHal;
pub use transport::Transport;
pub use virtio_drivers;

use hv_abi::Status;

/// Why a device does not do what is asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The VM has no such device, or another driver has it.
    #[error("there is no such device, or another driver has it")]
    NoDevice,
    /// It does not agree on features that its driver needs.
    #[error("the device does not have what its driver needs")]
    Unsupported,
    /// It could not do it.
    #[error("the device reports an error")]
    Io,
    /// What is asked for is not in it, or makes no sense.
    #[error("the request is outside of the device, or malformed")]
    BadRequest,
    /// The device broke the rules of virtio; it was reset, and is of no use any more.
    #[error("the device broke the rules of virtio, and was reset")]
    Broken,
    /// The other end of a connection is not there, or takes none.
    #[error("the connection is refused")]
    Refused,
    /// The other end of a connection has gone, or wants no more.
    #[error("the other end has closed the connection")]
    Closed,
    /// Somebody else has it.
    #[error("it is in use")]
    InUse,
    /// There is no memory for its rings.
    #[error("no memory is left for the device's rings")]
    NoMemory,
    /// The host refused a register.
    #[error("the host refuses a register of the device: {0}")]
    Host(Status),
}

impl From<virtio_drivers::Error> for Error {
    fn from(error: virtio_drivers::Error) -> Self {
        match error {
            virtio_drivers::Error::DmaError => Self::NoMemory,
            virtio_drivers::Error::IoError => Self::Io,
            virtio_drivers::Error::Unsupported => Self::Unsupported,
            _ => Self::BadRequest,
        }
    }
}

impl embedded_io::Error for Error {
    fn kind(&self) -> embedded_io::ErrorKind {
        use embedded_io::ErrorKind;
        match self {
            Self::NoDevice => ErrorKind::NotFound,
            Self::Unsupported => ErrorKind::Unsupported,
            Self::BadRequest => ErrorKind::InvalidInput,
            Self::NoMemory => ErrorKind::OutOfMemory,
            Self::Refused => ErrorKind::ConnectionRefused,
            Self::Closed => ErrorKind::BrokenPipe,
            Self::InUse => ErrorKind::AddrInUse,
            Self::Io | Self::Broken | Self::Host(_) => ErrorKind::Other,
        }
    }
}

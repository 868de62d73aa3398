//! Unix sockets that programs of the host connect to.

use std::io::{self, ErrorKind};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum ListenError {
    #[error("`{path}` cannot be listened on")]
    Listen { path: PathBuf, source: io::Error },
    #[error("`{path}` is the socket of a program that listens on it")]
    InUse { path: PathBuf },
}

/// Listens on a Unix socket. One that nobody listens on any more is replaced.
///
/// # Errors
///
/// [`ListenError`].
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let cannot = |source| ListenError::Listen { path: path.to_owned(), source };
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            match UnixStream::connect(path) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(cannot(error)),
                Ok(_) => return Err(ListenError::InUse { path: path.to_owned() }),
            }
            std::fs::remove_file(path).and_then(|()| UnixListener::bind(path)).map_err(cannot)?
        }
        bound => bound.map_err(cannot)?,
    };
    listener.set_nonblocking(true).map_err(cannot)?;
    Ok(listener)
}

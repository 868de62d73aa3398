//! The directory of control sockets, and the names in it.
//!
//! It is private to its user: nobody else can list, reach or forge what is in it. A name is taken by whoever listens on
//! its socket; a socket on which nobody listens was left by a monitor that was killed, and counts for nothing. Who takes
//! a name or clears such a socket away holds the directory's lock meanwhile, and who ends removes its own while it still
//! listens: so at no moment can two have one name, or one remove another's.
//!
//! Start at [`listen`] and [`Directory::names`].

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::geteuid;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const LONGEST_NAME: usize = 64;
const SUFFIX: &str = ".sock";
const LOCK: &str = ".lock";

/// A VM's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(String);

impl Name {
    /// One for a VM that was given none: which image, and which process.
    pub(crate) fn of_image(image: &Path) -> Self {
        let stem = image.file_stem().unwrap_or_default().to_string_lossy();
        let plain: String = stem.chars().filter(|c| is_plain(*c)).take(LONGEST_NAME / 2).collect();
        let plain = plain.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let plain = if plain.is_empty() { "vm" } else { plain };
        Self(format!("{plain}-{}", std::process::id()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// The control socket's.
    pub(super) fn file(&self) -> String {
        format!("{self}{SUFFIX}")
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST_NAME {
            return Err(format!("a name has at most {LONGEST_NAME} characters, this one has {}", text.len()));
        }
        if !text.chars().all(is_plain) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err(
                "a name is of letters, digits, `-`, `_` and `.`, and begins with a letter or a digit".into(),
            );
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Why a directory or a name in it cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DirectoryError {
    #[error("the directory of control sockets, `{path}`, cannot be {done}; HV_RUNTIME_DIR names another")]
    Host { path: PathBuf, done: &'static str, source: io::Error },
    #[error(
        "`{path}` is not a directory, or is a symbolic link; remove it, or name another directory by HV_RUNTIME_DIR"
    )]
    NotDirectory { path: PathBuf },
    #[error(
        "`{path}` belongs to user {found}, and control sockets are kept only in a directory of one's own (user {expected}); \
         name another by HV_RUNTIME_DIR"
    )]
    Foreign { path: PathBuf, expected: u32, found: u32 },
    #[error("`{path}` has mode {mode:04o}, and others must have no access to it: `chmod 700 {path}`")]
    Open { path: PathBuf, mode: u32 },
    #[error("a VM called `{name}` is running; `hv ps` lists them")]
    Taken { name: Name },
    #[error("a control socket called `{name}` cannot be made in `{path}`")]
    Socket { name: Name, path: PathBuf, source: io::Error },
}

/// The directory of control sockets.
pub(crate) struct Directory {
    path: PathBuf,
    file: OwnedFd,
}

/// Where it is, as the environment says.
fn path() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let of_session = || set("XDG_RUNTIME_DIR").map(|path| path.join("hv"));
    let fallback = || PathBuf::from(format!("/tmp/hv-{}", geteuid().as_raw()));
    set("HV_RUNTIME_DIR").or_else(of_session).unwrap_or_else(fallback)
}

/// A file of that name in the directory, for what VMs of one user agree on.
///
/// # Errors
///
/// The directory cannot be had, or is not private to this user.
pub(crate) fn shared_file(name: &str) -> Result<PathBuf, DirectoryError> {
    Ok(Directory::open()?.path.join(name))
}

impl Directory {
    /// Opens it, and makes it if need be.
    ///
    /// # Errors
    ///
    /// It cannot be had, or is not private to this user.
    pub(crate) fn open() -> Result<Self, DirectoryError> {
        let path = path();
        let failed = |done| {
            let path = path.clone();
            move |error: Errno| DirectoryError::Host { path, done, source: error.into() }
        };
        match rustix::fs::mkdir(&path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("made")(error)),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(DirectoryError::NotDirectory { path }),
            result => result.map_err(failed("opened"))?,
        };
        let found = rustix::fs::fstat(&file).map_err(failed("looked at"))?;
        let expected = geteuid().as_raw();
        let mode = found.st_mode & 0o777;
        if found.st_uid != expected {
            return Err(DirectoryError::Foreign { path, expected, found: found.st_uid });
        }
        if mode & 0o077 != 0 {
            return Err(DirectoryError::Open { path, mode });
        }
        Ok(Self { path, file })
    }

    /// The names for which there is a socket, in order. Nobody may listen on some.
    pub(super) fn names(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.file)? {
            let entry = entry?;
            let name = entry.file_name().to_str().ok().and_then(|name| name.strip_suffix(SUFFIX));
            names.extend(name.and_then(|name| name.parse::<Name>().ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Connects to whoever listens on the socket of that file; `None` if nobody does.
    ///
    /// # Errors
    ///
    /// There may be one, and it does not take connections.
    pub(crate) fn connect(&self, file: &str) -> io::Result<Option<UnixStream>> {
        // Not blocking, for one whose queue is full would be waited for.
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        match rustix::net::connect(&socket, &self.address(file)?) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                Ok(Some(stream))
            }
            Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Where a socket is, by the directory's descriptor: nobody can put another directory in its place, and no path is too
    /// long for it.
    fn address(&self, file: &str) -> io::Result<SocketAddrUnix> {
        let directory = self.file.as_raw_fd();
        Ok(SocketAddrUnix::new(format!("/proc/self/fd/{directory}/{file}"))?)
    }

    /// Removes the socket of a name if nobody listens on it.
    pub(super) fn clear(&self, name: &Name) -> io::Result<()> {
        let _lock = self.lock()?;
        self.clear_locked(&name.file()).map(drop)
    }

    /// As [`clear`](Self::clear), with the lock held. Whether the file's name is free.
    fn clear_locked(&self, file: &str) -> io::Result<bool> {
        match self.connect(file) {
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return Ok(false), // it does not take connections, so it is there
        }
        self.remove(file).map(|()| true)
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, file: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.file, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Held until it is dropped.
    pub(crate) fn lock(&self) -> io::Result<OwnedFd> {
        let lock = self.lock_file()?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)?;
        Ok(lock)
    }

    /// What is locked, for a process that can open nothing later.
    pub(crate) fn lock_file(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.file, LOCK, flags, Mode::RUSR | Mode::WUSR)?)
    }

    /// Takes a name: whether it was free, and then the socket.
    fn bind(&self, name: &Name) -> io::Result<Option<UnixListener>> {
        let _lock = self.lock()?;
        let file = name.file();
        if !self.clear_locked(&file)? { Ok(None) } else { self.listen_at(&file).map(Some) }
    }

    /// Listens on a new socket, in the place of one that nobody listens on. The lock must be held.
    pub(crate) fn listen_at(&self, file: &str) -> io::Result<UnixListener> {
        self.remove(file)?;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &self.address(file)?)?;
        // Until it listens, the lock keeps others from taking it for one that was left.
        let private = Mode::RUSR | Mode::WUSR;
        rustix::fs::chmodat(&self.file, file, private, AtFlags::empty())?;
        rustix::net::listen(&socket, BACKLOG)?;
        Ok(UnixListener::from(socket))
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Connections that wait to be accepted; many commands may come at once.
const BACKLOG: i32 = 128;

/// A name that is taken, and the socket on which it is listened. Dropping it gives the name back.
pub(crate) struct Listening {
    pub(super) socket: UnixListener,
    pub(super) entry: Arc<Entry>,
}

impl Listening {
    /// The directory, in which this process will want to remove its socket.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.entry.directory.file.as_fd()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.entry.remove();
    }
}

/// A socket's place in the directory.
pub(crate) struct Entry {
    directory: Directory,
    pub(super) name: Name,
    removed: AtomicBool,
}

impl Entry {
    /// Gives the name back. It must still be listened on its socket: later, the name may be somebody else's.
    pub(crate) fn remove(&self) {
        if !self.removed.swap(true, SeqCst) {
            let _ = self.directory.remove(&self.name.file()); // if it fails, it is removed with the next `hv ps`
        }
    }
}

/// Takes a name and listens on its socket.
///
/// # Errors
///
/// The directory cannot be had, or the name is another VM's.
pub(crate) fn listen(name: Name) -> Result<Listening, DirectoryError> {
    let directory = Directory::open()?;
    match directory.bind(&name) {
        Ok(Some(socket)) => {
            let entry = Arc::new(Entry { directory, name, removed: AtomicBool::new(false) });
            Ok(Listening { socket, entry })
        }
        Ok(None) => Err(DirectoryError::Taken { name }),
        Err(source) => Err(DirectoryError::Socket { name, path: directory.path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["a", "minios-12", "0.1_x", &"x".repeat(64)] {
            assert_eq!(name.parse::<Name>().unwrap().as_str(), name);
        }
        for name in ["", "-x", ".lock", "..", "a/b", "a b", "ä", "a\n", "a\0", &"x".repeat(65)] {
            assert!(name.parse::<Name>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn any_image_gives_a_name() {
        let long = "x".repeat(300);
        for (image, start) in [
            ("hello", "hello-"),
            ("/a/b/my guest.elf", "myguest-"),
            ("..", "vm-"),
            ("ä", "vm-"),
            (&long, "xxx"),
        ] {
            let name = Name::of_image(Path::new(image));
            assert!(name.as_str().starts_with(start), "{name}");
            assert_eq!(name.as_str().parse(), Ok(name.clone()));
        }
    }
}

//! What the processes beside the monitor give up: they take guests' bytes apart, so they keep what they are for and no more.
//!
//! None opens a file, starts a program or makes a process or thread. The user-mode network connects anywhere, by sockets of the
//! internet's; it listens at no port but those that it has. A switch and a guard make no socket at all; a switch can remove its own
//! from the directory of control sockets. The connector of a guest's sockets connects to Unix sockets.

use crate::lockdown::DENIED;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope,
};
use rustix::fd::BorrowedFd;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::error::Error;

const LANDLOCK: ABI = ABI::V6;

/// System calls that none of them makes, besides those that the monitor does not.
const ALSO_DENIED: &[i64] = &[
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_creat,
    libc::SYS_execveat,
    libc::SYS_memfd_create,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_listen,
    libc::SYS_socketpair,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
];

/// Which process.
pub(super) enum Process<'a> {
    UserNetwork,
    /// The guard before another program's user-mode network.
    Guard,
    /// Its socket is in this directory.
    Switch {
        directory: BorrowedFd<'a>,
    },
    /// It connects to Unix sockets.
    Connector,
}

/// Gives up this thread's rights, for ever. There is no other thread.
///
/// # Errors
///
/// The host refused. That it has no Landlock is no error.
pub(super) fn apply(process: &Process<'_>) -> Result<(), Box<dyn Error + Send + Sync>> {
    restrict_files(process)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().chain(ALSO_DENIED).map(|call| (*call, Vec::new())).collect();
    match process {
        Process::UserNetwork => {
            rules.insert(libc::SYS_socket, vec![of_other_families(&[libc::AF_INET, libc::AF_INET6])?]);
        }
        Process::Connector => {
            rules.insert(libc::SYS_socket, vec![of_other_families(&[libc::AF_UNIX])?]);
            rules.insert(libc::SYS_bind, vec![]);
        }
        Process::Guard | Process::Switch { .. } => {
            rules.extend([(libc::SYS_connect, vec![]), (libc::SYS_bind, vec![])])
        }
    }
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?; // sets no_new_privs, too
    Ok(())
}

/// A rule for sockets of all families but these.
fn of_other_families(families: &[i32]) -> Result<SeccompRule, seccompiler::BackendError> {
    let is_not =
        |family: &i32| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, *family as u64);
    SeccompRule::new(families.iter().map(is_not).collect::<Result<_, _>>()?)
}

fn restrict_files(process: &Process<'_>) -> Result<(), RulesetError> {
    let (network, directory) = match process {
        Process::UserNetwork => (AccessNet::BindTcp.into(), None),
        Process::Guard => (AccessNet::from_all(LANDLOCK), None),
        Process::Switch { directory } => (AccessNet::from_all(LANDLOCK), Some(directory)),
        Process::Connector => (AccessNet::from_all(LANDLOCK), None),
    };
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(network)?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rules(
            directory
                .map(|directory| Ok::<_, RulesetError>(PathBeneath::new(directory, AccessFs::RemoveFile))),
        )?
        .restrict_self()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::ErrorKind::PermissionDenied;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
    use std::process::Command;

    /// Runs `attack` on a thread that has given its rights up.
    fn locked_down(process: &Process<'_>, attack: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                apply(process).expect("this host has seccomp");
                attack();
            });
            thread.join().expect("the attack is repelled");
        });
    }

    /// What is denied to all.
    fn no_files_and_no_processes() {
        for path in ["/etc/passwd", "/proc/self/status", "/dev/null"] {
            assert_eq!(fs::read(path).unwrap_err().kind(), PermissionDenied, "reading {path}");
        }
        let made = std::env::temp_dir().join("hv-must-not-exist");
        assert_eq!(fs::write(&made, "x").unwrap_err().kind(), PermissionDenied);
        assert_eq!(Command::new("/bin/true").status().unwrap_err().kind(), PermissionDenied);
        assert!(std::thread::Builder::new().spawn(|| {}).is_err(), "no thread can be made");
        assert_eq!(UnixStream::pair().unwrap_err().kind(), PermissionDenied);
    }

    fn no_unix_sockets() {
        assert_eq!(UnixStream::connect("/tmp/none").unwrap_err().kind(), PermissionDenied);
    }

    #[test]
    fn the_user_mode_network_has_sockets_of_the_internet_and_nothing_else() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        locked_down(&Process::UserNetwork, || {
            no_files_and_no_processes();
            no_unix_sockets();
            assert_eq!(UnixDatagram::unbound().unwrap_err().kind(), PermissionDenied);
            assert_eq!(TcpListener::bind("127.0.0.1:0").unwrap_err().kind(), PermissionDenied);
            TcpStream::connect(address).expect("it connects");
            UdpSocket::bind("127.0.0.1:0")
                .and_then(|socket| socket.connect(address))
                .expect("and sends datagrams");
        });
    }

    #[test]
    fn a_guard_has_no_sockets() {
        locked_down(&Process::Guard, || {
            no_files_and_no_processes();
            assert_eq!(TcpStream::connect("127.0.0.1:9").unwrap_err().kind(), PermissionDenied);
            assert_eq!(UdpSocket::bind("127.0.0.1:0").unwrap_err().kind(), PermissionDenied);
        });
    }

    #[test]
    fn a_switch_has_no_sockets_and_can_remove_its_own() {
        let path = std::env::temp_dir().join(format!("hv-net-lockdown-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("its-own"), "").unwrap();
        let directory = fs::File::open(&path).unwrap();
        locked_down(&Process::Switch { directory: directory.as_fd() }, || {
            no_files_and_no_processes();
            no_unix_sockets();
            assert_eq!(TcpListener::bind("127.0.0.1:0").unwrap_err().kind(), PermissionDenied);
            assert_eq!(UdpSocket::bind("127.0.0.1:0").unwrap_err().kind(), PermissionDenied);
            fs::remove_file(path.join("its-own")).expect("it may");
        });
        fs::remove_dir(&path).unwrap();
    }

    #[test]
    fn the_connector_connects_to_unix_sockets_and_does_nothing_else() {
        let path = std::env::temp_dir().join(format!("hv-connector-{}", std::process::id()));
        let listener = UnixListener::bind(&path).unwrap();
        locked_down(&Process::Connector, || {
            no_files_and_no_processes();
            UnixStream::connect(&path).expect("it may");
            assert_eq!(UdpSocket::bind("127.0.0.1:0").unwrap_err().kind(), PermissionDenied);
            assert_eq!(TcpStream::connect("127.0.0.1:1").unwrap_err().kind(), PermissionDenied);
            assert_eq!(UnixListener::bind(path.with_extension("b")).unwrap_err().kind(), PermissionDenied);
            assert_eq!(fs::remove_file(&path).unwrap_err().kind(), PermissionDenied);
        });
        drop(listener);
        fs::remove_file(path).unwrap();
    }
}

//! The monitor gives up what it does not need, before the first guest instruction.
//!
//! A guest that found a fault in the monitor would run as the monitor. So `hv run`, once it has read the image,
//! lets go of the file system but for reading `/proc` (Landlock), of new network connections (Landlock), of system
//! calls that only an attacker would make (seccomp), and of gaining privileges. What it starts inherits that.
//!
//! Both act on the calling thread and the threads that it starts later, so [`apply`] comes before there are others.
//! What the host does not know it cannot do; `hv doctor` tells.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::error::Error;
use std::os::fd::BorrowedFd;

/// The newest Landlock whose rights this program knows; an older kernel applies those that it has.
const LANDLOCK: ABI = ABI::V6;

/// System calls that the monitor never makes. Not a list of what it makes: that would differ between C libraries and
/// versions, and break where nobody tested.
const DENIED: &[i64] = &[
    libc::SYS_execve,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_socket,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
];

/// How far the host went along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Landlocked {
    /// With all rights that this program knows.
    Fully,
    /// With those that this kernel knows.
    Partly,
    /// This kernel has no Landlock.
    No,
}

/// Locks this thread, and all that it will start, down. It may remove files of one directory: its control socket is there.
///
/// # Errors
///
/// The host refused a filter. That it has no Landlock is no error.
pub(crate) fn apply(control: Option<BorrowedFd<'_>>) -> Result<Landlocked, Box<dyn Error + Send + Sync>> {
    let landlocked = restrict_files(&["/proc"], control)?;
    deny(DENIED.iter().map(|call| (*call, Vec::new())).collect())?;
    Ok(landlocked)
}

/// As [`apply`], for a process that connects to Unix sockets and needs nothing else, not even `/proc`.
///
/// # Errors
///
/// As [`apply`].
pub(crate) fn apply_to_connector() -> Result<Landlocked, Box<dyn Error + Send + Sync>> {
    let landlocked = restrict_files(&[], None)?;
    let mut rules: BTreeMap<i64, _> = DENIED.iter().map(|call| (*call, Vec::new())).collect();
    let elsewhere =
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::AF_UNIX as u64)?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![elsewhere])?]);
    deny(rules)?;
    Ok(landlocked)
}

/// Has these system calls fail from now on, all or those that match a rule.
fn deny(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<(), Box<dyn Error + Send + Sync>> {
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, std::env::consts::ARCH.try_into()?)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?) // sets no_new_privs, too
}

/// How far [`apply`] would get, tried on a thread of its own.
///
/// # Errors
///
/// As [`apply`].
pub(crate) fn try_out() -> Result<Landlocked, String> {
    let tried = std::thread::spawn(|| apply(None).map_err(|error| error.to_string()));
    tried.join().unwrap_or_else(|_| Err("the trial panicked".into()))
}

/// No file but to read in `readable` and to remove in `control`, no connection, no signal and no abstract socket outside. Files that are open stay open.
fn restrict_files(readable: &[&str], control: Option<BorrowedFd<'_>>) -> Result<Landlocked, RulesetError> {
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rules(path_beneath_rules(readable, AccessFs::from_read(LANDLOCK)))?
        .add_rules(
            control.map(|directory| Ok::<_, RulesetError>(PathBeneath::new(directory, AccessFs::RemoveFile))),
        )?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Landlocked::Fully,
        RulesetStatus::PartiallyEnforced => Landlocked::Partly,
        RulesetStatus::NotEnforced => Landlocked::No,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::ErrorKind::PermissionDenied;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::process::Command;

    /// Runs `attack` on a thread that is locked down, with how far that went.
    fn locked_down(attack: impl FnOnce(Landlocked) + Send + 'static) {
        locked_down_but_for(None, attack);
    }

    fn locked_down_but_for(control: Option<fs::File>, attack: impl FnOnce(Landlocked) + Send + 'static) {
        let thread = std::thread::spawn(move || {
            let control = control.as_ref().map(AsFd::as_fd);
            attack(apply(control).expect("this host has seccomp"));
        });
        thread.join().expect("the attack is repelled");
    }

    #[test]
    fn no_file_can_be_opened_but_proc_read() {
        locked_down(|landlocked| {
            fs::read_to_string("/proc/self/status").expect("the monitor needs /proc");
            if landlocked == Landlocked::No {
                eprintln!("this kernel has no Landlock: not tested");
                return;
            }
            for path in ["/etc/passwd", "/", "/tmp"] {
                let error = fs::read_dir(path).map(drop).or_else(|_| fs::read(path).map(drop)).unwrap_err();
                assert_eq!(error.kind(), PermissionDenied, "reading {path}");
            }
            let made = std::env::temp_dir().join("hv-must-not-exist");
            assert_eq!(fs::write(&made, "x").unwrap_err().kind(), PermissionDenied);
        });
    }

    #[test]
    fn files_of_the_control_directory_can_be_removed_and_nothing_else_done() {
        let outer = std::env::temp_dir().join(format!("hv-lockdown-{}", std::process::id()));
        let control = outer.join("control");
        fs::create_dir_all(&control).expect("a directory");
        fs::write(control.join("mine"), "").expect("a file");
        fs::write(outer.join("another"), "").expect("a file");
        let (directory, attacked) = (fs::File::open(&control).expect("it is there"), control.clone());
        locked_down_but_for(Some(directory), move |landlocked| {
            if landlocked != Landlocked::No {
                let outer = attacked.parent().expect("it has one");
                for result in [
                    fs::read(attacked.join("mine")).map(drop),
                    fs::write(attacked.join("mine"), "x"),
                    fs::write(attacked.join("new"), "x"),
                    fs::read_dir(&attacked).map(drop),
                    fs::rename(attacked.join("mine"), attacked.join("renamed")),
                    fs::create_dir(attacked.join("new")),
                    fs::remove_file(outer.join("another")),
                    fs::remove_dir(&attacked),
                ] {
                    assert_eq!(result.unwrap_err().kind(), PermissionDenied);
                }
            }
            fs::remove_file(attacked.join("mine")).expect("it may");
        });
        fs::remove_dir_all(outer).expect("it is empty but for one file");
    }

    #[test]
    fn no_program_can_be_started_and_no_socket_opened() {
        locked_down(|_| {
            assert_eq!(Command::new("/bin/true").status().unwrap_err().kind(), PermissionDenied);
            assert_eq!(UnixStream::connect("/tmp/none").unwrap_err().kind(), PermissionDenied);
            assert_eq!(std::net::UdpSocket::bind("127.0.0.1:0").unwrap_err().kind(), PermissionDenied);
        });
    }

    #[test]
    fn the_connector_can_connect_to_unix_sockets_and_do_nothing_else() {
        let path = std::env::temp_dir().join(format!("hv-connector-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
        let connected = path.clone();
        let thread = std::thread::spawn(move || {
            let landlocked = apply_to_connector().expect("this host has seccomp");
            UnixStream::connect(&connected).expect("it may");
            assert_eq!(Command::new("/bin/true").status().unwrap_err().kind(), PermissionDenied);
            assert_eq!(std::net::UdpSocket::bind("127.0.0.1:0").unwrap_err().kind(), PermissionDenied);
            if landlocked == Landlocked::No {
                eprintln!("this kernel has no Landlock: not tested");
                return;
            }
            for path in ["/etc/passwd", "/", "/proc/self/status"] {
                let error = fs::read_dir(path).map(drop).or_else(|_| fs::read(path).map(drop)).unwrap_err();
                assert_eq!(error.kind(), PermissionDenied, "reading {path}");
            }
            assert_eq!(fs::remove_file(&connected).unwrap_err().kind(), PermissionDenied);
        });
        thread.join().expect("the attack is repelled");
        drop(listener);
        fs::remove_file(path).expect("it is there");
    }
}

//! The monitor gives up what it does not need, before the first guest instruction.
//!
//! A guest that found a fault in the monitor would run as the monitor. So `hv run`, once it has read the image,
//! lets go of the file system but for reading `/proc` (Landlock), of new network connections (Landlock), of system
//! calls that only an attacker would make (seccomp), and of gaining privileges. What it starts inherits that. Directories that
//! it needs yet are [`Kept`], each for what it is needed for.
//!
//! Both act on the calling thread and the threads that it starts later, so [`apply`] comes before there are others.
//! What the host does not know it cannot do; `hv doctor` tells.

use hv_core::devices::Access;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use seccompiler::{SeccompAction, SeccompFilter};
use std::collections::BTreeMap;
use std::error::Error;
use std::os::fd::BorrowedFd;

/// The newest Landlock whose rights this program knows; an older kernel applies those that it has.
const LANDLOCK: ABI = ABI::V6;

/// System calls that the monitor never makes. Not a list of what it makes: that would differ between C libraries and
/// versions, and break where nobody tested.
pub(crate) const DENIED: &[i64] = &[
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

/// Directories to which some of the rights remain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kept<'a> {
    /// Where its control socket is: files in it can be removed.
    pub(crate) control: Option<BorrowedFd<'a>>,
    /// Those that it shares with its guest: files beneath can be read and, if the guest may, be changed.
    pub(crate) shares: &'a [(BorrowedFd<'a>, Access)],
    /// For a debugger: `perf_event_open`, by which the host lends its debug registers.
    pub(crate) watchpoints: bool,
}

/// Locks this thread, and all that it will start, down.
///
/// # Errors
///
/// The host refused a filter. That it has no Landlock is no error.
pub(crate) fn apply(kept: &Kept<'_>) -> Result<Landlocked, Box<dyn Error + Send + Sync>> {
    let landlocked = restrict_files(kept)?;
    let is_kept = |call: i64| kept.watchpoints && call == libc::SYS_perf_event_open;
    let denied = DENIED.iter().filter(|call| !is_kept(**call));
    let rules: BTreeMap<i64, _> = denied.map(|call| (*call, Vec::new())).collect();
    let denied = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, std::env::consts::ARCH.try_into()?)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    seccompiler::apply_filter(&program)?; // sets no_new_privs, too
    Ok(landlocked)
}

/// How far [`apply`] would get, tried on a thread of its own.
///
/// # Errors
///
/// As [`apply`].
pub(crate) fn try_out() -> Result<Landlocked, String> {
    let tried = std::thread::spawn(|| apply(&Kept::default()).map_err(|error| error.to_string()));
    tried.join().unwrap_or_else(|_| Err("the trial panicked".into()))
}

/// What is needed to serve a shared folder. Not among it: to run a program, and to make anything but files and directories.
fn rights_to_share(access: Access) -> BitFlags<AccessFs> {
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let change = AccessFs::WriteFile | AccessFs::Truncate | AccessFs::Refer;
    let make = AccessFs::MakeReg | AccessFs::MakeDir | AccessFs::RemoveFile | AccessFs::RemoveDir;
    match access {
        Access::ReadOnly => read,
        Access::ReadWrite => read | change | make,
    }
}

/// No file but to read in `/proc`, and what is kept; no connection, no signal and no abstract socket outside. Files that are open stay
/// open.
fn restrict_files(kept: &Kept<'_>) -> Result<Landlocked, RulesetError> {
    let control = kept.control.map(|directory| (directory, AccessFs::RemoveFile.into()));
    let shares = kept.shares.iter().map(|(directory, access)| (*directory, rights_to_share(*access)));
    let rules = control.into_iter().chain(shares);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rules(path_beneath_rules(["/proc"], AccessFs::from_read(LANDLOCK)))?
        .add_rules(
            rules.map(|(directory, rights)| Ok::<_, RulesetError>(PathBeneath::new(directory, rights))),
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
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::process::Command;

    /// Runs `attack` on a thread that is locked down, with how far that went.
    fn locked_down(attack: impl FnOnce(Landlocked) + Send + 'static) {
        locked_down_but_for(None, &[], attack);
    }

    fn locked_down_but_for(
        control: Option<fs::File>,
        shares: &[(&Path, Access)],
        attack: impl FnOnce(Landlocked) + Send + 'static,
    ) {
        let open = |(path, access): &(&Path, Access)| (fs::File::open(path).expect("it is there"), *access);
        let shares: Vec<_> = shares.iter().map(open).collect();
        let thread = std::thread::spawn(move || {
            let shares: Vec<_> = shares.iter().map(|(file, access)| (file.as_fd(), *access)).collect();
            let kept =
                Kept { control: control.as_ref().map(AsFd::as_fd), shares: &shares, ..Kept::default() };
            attack(apply(&kept).expect("this host has seccomp"));
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
        locked_down_but_for(Some(directory), &[], move |landlocked| {
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
    fn shared_folders_can_be_used_as_they_say_and_nothing_beside_them() {
        let outer = std::env::temp_dir().join(format!("hv-lockdown-shares-{}", std::process::id()));
        let (shown, used) = (outer.join("shown"), outer.join("used"));
        fs::create_dir_all(&shown).expect("a directory");
        fs::create_dir_all(used.join("inner")).expect("a directory");
        fs::write(outer.join("beside"), "secret").expect("a file");
        fs::write(shown.join("file"), "shown").expect("a file");
        symlink("../beside", used.join("link")).expect("a link");
        let shares = [(&*shown, Access::ReadOnly), (&*used, Access::ReadWrite)];
        let attacked = outer.clone();
        locked_down_but_for(None, &shares, move |landlocked| {
            if landlocked == Landlocked::No {
                return;
            }
            let (shown, used) = (attacked.join("shown"), attacked.join("used"));
            fs::write(used.join("new"), "new").expect("it may be made");
            fs::rename(used.join("new"), used.join("inner/moved")).expect("it may be moved");
            assert_eq!(fs::read(used.join("inner/moved")).expect("and read"), b"new");
            assert_eq!(fs::read(shown.join("file")).expect("it may be read"), b"shown");
            assert_eq!(fs::read_dir(&shown).expect("and so may this").count(), 1);
            for result in [
                fs::write(shown.join("file"), "x"),
                fs::write(shown.join("new"), "x"),
                fs::remove_file(shown.join("file")),
                fs::create_dir(shown.join("new")),
                fs::rename(used.join("inner/moved"), shown.join("moved")),
                symlink("/", used.join("root")),
                fs::read(used.join("link")).map(drop),
                fs::read(attacked.join("beside")).map(drop),
                fs::read_dir(&attacked).map(drop),
                fs::write(attacked.join("new"), "x"),
                fs::remove_file(attacked.join("beside")),
                fs::rename(used.join("inner/moved"), attacked.join("moved")),
                Command::new(used.join("inner/moved")).status().map(drop),
            ] {
                let error = result.unwrap_err();
                // Landlock gives the second for a move to where the rights are others.
                let refused = [PermissionDenied, std::io::ErrorKind::CrossesDevices];
                assert!(refused.contains(&error.kind()), "{error}");
            }
        });
        fs::remove_dir_all(outer).expect("it can be removed");
    }

    #[test]
    fn no_program_can_be_started_and_no_socket_opened() {
        locked_down(|_| {
            assert_eq!(Command::new("/bin/true").status().unwrap_err().kind(), PermissionDenied);
            assert_eq!(UnixStream::connect("/tmp/none").unwrap_err().kind(), PermissionDenied);
            assert_eq!(std::net::UdpSocket::bind("127.0.0.1:0").unwrap_err().kind(), PermissionDenied);
        });
    }
}

//! The directory in which running VMs of one user find each other: `$HV_RUNTIME_DIR`, or `$XDG_RUNTIME_DIR/hv`, or
//! `/tmp/hv-UID`. What is in it decides for running VMs, so it must be its user's alone.

use crate::failure::Failure;
use rustix::fs::{AtFlags, FileType, Mode, Stat};
use std::path::{Path, PathBuf};

/// The directory, made if it is not there.
///
/// # Errors
///
/// It cannot be made, or others could write there.
pub(crate) fn open() -> Result<PathBuf, Failure> {
    let path = path();
    let shown = path.display();
    let advice = "set HV_RUNTIME_DIR to a directory that is yours alone (mode 0700)";
    match rustix::fs::mkdir(&path, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => {
            return Err(
                Failure::cannot(format!("the directory {shown} could not be made"), error).advise(advice)
            );
        }
    }
    let found = rustix::fs::statat(rustix::fs::CWD, &path, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| Failure::cannot(format!("the directory {shown} could not be looked at"), error))?;
    match wrong(&found) {
        None => Ok(path),
        Some(wrong) => {
            Err(Failure::cannot(format!("the directory {shown} is not safe to use"), wrong).advise(advice))
        }
    }
}

fn path() -> PathBuf {
    let variable =
        |name| std::env::var_os(name).filter(|value| Path::new(value).is_absolute()).map(PathBuf::from);
    let shared = || PathBuf::from(format!("/tmp/hv-{}", rustix::process::geteuid().as_raw()));
    variable("HV_RUNTIME_DIR")
        .or_else(|| variable("XDG_RUNTIME_DIR").map(|directory| directory.join("hv")))
        .unwrap_or_else(shared)
}

/// Why others could write there.
fn wrong(found: &Stat) -> Option<String> {
    let (own, mode) = (rustix::process::geteuid().as_raw(), Mode::from_raw_mode(found.st_mode));
    if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
        Some("it is no directory".into())
    } else if found.st_uid != own {
        Some(format!("it belongs to user {}, and hv runs as user {own}", found.st_uid))
    } else if mode.intersects(Mode::RWXG | Mode::RWXO) {
        Some(format!("others may use it: its mode is {:o}, and must be 700", mode.bits()))
    } else {
        None
    }
}

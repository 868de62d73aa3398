//! `--share`: folders of the host's that a guest has, and what the monitor keeps for them when it gives up the rest.
//!
//! Start at [`open`].

use crate::exit_code::Cause;
use crate::failure::Failure;
use hv_core::DeviceConfig;
use hv_core::devices::{Access, SharedFolder};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// What a guest knows a folder by if the user does not say.
const TAG: &str = "share";

/// What `--share` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShareOption {
    path: PathBuf,
    tag: String,
    access: Access,
}

impl FromStr for ShareOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (text, access) = match text.rsplit_once(':') {
            Some((text, "rw")) => (text, Access::ReadWrite),
            Some((text, "ro")) => (text, Access::ReadOnly),
            _ => (text, Access::ReadOnly),
        };
        let (path, tag) = text.rsplit_once(':').unwrap_or((text, TAG));
        if path.is_empty() || tag.is_empty() || tag.contains('/') {
            return Err(
                "expected a folder, then perhaps its tag, then `rw` or `ro`, as in data:share:rw".into()
            );
        }
        Ok(Self { path: path.into(), tag: tag.into(), access })
    }
}

/// Opens folders, and prepares this process for what guests do with them.
///
/// # Errors
///
/// A folder cannot be opened, or two have the same tag.
pub(crate) fn open(options: &[ShareOption]) -> Result<Vec<DeviceConfig>, Failure> {
    if options.is_empty() {
        return Ok(Vec::new());
    }
    let cannot = |error| Failure::cannot("the host does not let hv share folders", error);
    // Each file that a guest knows of costs a descriptor.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    raised.map_err(|error| cannot(error.into()))?;
    // A file that would be longer than this user's may be is an error for the guest, and not this process's end.
    signal_hook::flag::register(libc::SIGXFSZ, Arc::default()).map_err(cannot)?;
    let mut folders: Vec<DeviceConfig> = Vec::new();
    for (i, ShareOption { path, tag, access }) in options.iter().enumerate() {
        if options[..i].iter().any(|other| other.tag == *tag) {
            let message = format!("two shared folders have the tag `{tag}`");
            let failure = Failure::new(Cause::CannotStart, message);
            return Err(failure.advise("give one another, as in --share DIR:TAG"));
        }
        let folder = SharedFolder::open(path, tag, *access);
        let folder = folder.map_err(|error| Failure::cannot("the guest cannot have this folder", error))?;
        folders.push(DeviceConfig::FileSystem(folder));
    }
    Ok(folders)
}

/// The folders among a VM's devices.
pub(crate) fn among<'a>(devices: &'a [DeviceConfig]) -> Vec<(BorrowedFd<'a>, Access)> {
    let folder = |device: &'a DeviceConfig| match device {
        DeviceConfig::FileSystem(folder) => Some((folder.directory(), folder.access())),
        _ => None,
    };
    devices.iter().filter_map(folder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_folders_with_tags_and_read_only_unless_they_say_so() {
        let share = |text: &str| text.parse::<ShareOption>();
        for (text, path, tag, access) in [
            ("data", "data", "share", Access::ReadOnly),
            ("/data:ro", "/data", "share", Access::ReadOnly),
            ("/data:rw", "/data", "share", Access::ReadWrite),
            ("a:b", "a", "b", Access::ReadOnly),
            ("a:b:rw", "a", "b", Access::ReadWrite),
            ("a:b:c:rw", "a:b", "c", Access::ReadWrite),
        ] {
            assert_eq!(share(text), Ok(ShareOption { path: path.into(), tag: tag.into(), access }), "{text}");
        }
        for bad in ["", ":", "rw:", ":rw", "a:/b", ":b:rw", "a::rw"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}

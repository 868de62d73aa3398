//! `--net tap=NAME`: an interface of the host's, on which the guest is as on a cable.

#![expect(unsafe_code, reason = "an ioctl that makes a descriptor an interface's")]

use crate::exit_code::Cause;
use crate::failure::Failure;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// Of interfaces that say nothing else.
const USUAL_MTU: u16 = 1500;

/// Whether an interface can be called so.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%');
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.chars().all(plain) {
        let longest = libc::IFNAMSIZ - 1;
        return Err(format!(
            "an interface's name has 1 to {longest} letters, digits and signs, such as tap0"
        ));
    }
    Ok(())
}

/// Opens an interface; makes it, if there is none and this process may.
///
/// # Errors
///
/// The host does not let it have it.
pub(super) fn open(name: &str) -> Result<File, Failure> {
    let mut options = OpenOptions::new();
    let tun = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let tun = tun
        .map_err(|error| Failure::cannot("`/dev/net/tun`, by which taps are had, cannot be opened", error))?;
    attach(&tun, name).map_err(|error| refused(name, error))?;
    Ok(tun)
}

/// The longest IP packet that the host sends by it.
pub(super) fn mtu(name: &str) -> u16 {
    let read = std::fs::read_to_string(format!("/sys/class/net/{name}/mtu"));
    read.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(USUAL_MTU)
}

/// Makes an open `/dev/net/tun` the interface of that name.
fn attach(tun: &File, name: &str) -> io::Result<()> {
    // SAFETY: zeros are an `ifreq`: it is of integers, and of unions of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char; // a zero stays behind it: `check_name`
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`. The pointer is to one, borrowed mutably for as long as the call lasts.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn refused(name: &str, error: io::Error) -> Failure {
    let advice = match error.raw_os_error() {
        Some(libc::EPERM) => format!(
            "It takes root, or an interface that was made for you: sudo ip tuntap add {name} mode tap user $USER\n\
             `--net user` and `--net switch=NAME` take neither."
        ),
        Some(libc::EBUSY) => "Somebody else has it: a tap is for one VM.".into(),
        Some(libc::EINVAL) => "There is an interface of that name, and it is no tap.".into(),
        _ => return Failure::cannot(format!("the tap `{name}` cannot be had"), error),
    };
    Failure::new(Cause::CannotStart, format!("the tap `{name}` cannot be had")).because(error).advise(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_are_checked() {
        for name in ["tap0", "vm-1.a", "exactly15chars_"] {
            assert_eq!(check_name(name), Ok(()));
        }
        for name in ["", "more-than-15-chars", "a/b", "a b", "tap%d", "ä"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}

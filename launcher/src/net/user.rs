//! `--net user`: a process with the user-mode network, passt's or the one of `hv_core::net::user`.
//!
//! Start at [`start`], which the monitor calls, and at [`serve`], which the process does.

use super::lockdown::{self, Process};
use super::{LONGEST_TO_USER, Stack, process};
use crate::exit_code::Cause;
use crate::failure::Failure;
use clap::Args;
use hv_core::net::user::{Options, Protocol, Publish, UserNetwork, guard, resolvers};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The arguments of the process with a user-mode network.
#[derive(Args, Debug)]
pub(crate) struct UserNetOptions {
    #[arg(long)]
    host_loopback: bool,
    #[arg(long)]
    publish: Vec<Publish>,
    /// It is passt's; this process guards it.
    #[arg(long)]
    passt: Option<PathBuf>,
}

/// Starts it, and gives the VM's end of its link.
///
/// # Errors
///
/// It cannot be started, or a port cannot be had.
pub(super) fn start(stack: Stack, host_loopback: bool, published: &[Publish]) -> Result<UnixStream, Failure> {
    let (ours, its) =
        UnixStream::pair().map_err(|error| Failure::cannot("there is no socket for a network", error))?;
    let passt = match stack {
        Stack::Builtin => None,
        Stack::Any => find_passt(),
        Stack::Passt => Some(find_passt().ok_or_else(|| {
            Failure::new(Cause::CannotStart, "there is no `passt` in any directory of PATH")
                .advise("Install it (Debian's package is called passt), or say `--net user:builtin`.")
        })?),
    };
    let mut command = process::again(["net-user"], its.into());
    if let Some(passt) = passt {
        command.arg("--passt").arg(passt);
    }
    command.args(host_loopback.then_some("--host-loopback"));
    command.args(published.iter().map(|publish| format!("--publish={publish}")));
    process::start(command, "the user-mode network")?;
    Ok(ours)
}

fn find_passt() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join("passt")).find(|file| file.is_file())
}

/// Starts passt, and gives this end of its link. It ends when that is closed.
fn start_passt(passt: &Path, options: &UserNetOptions) -> io::Result<UnixStream> {
    let (ours, its) = UnixStream::pair()?;
    fcntl_setfd(&its, FdFlags::empty())?; // there is no other thread that could start something meanwhile
    let mut command = Command::new(passt);
    command.args(passt_arguments(options.host_loopback, &options.publish));
    command.arg("--fd").arg(its.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    Ok(ours)
}

/// The same network as the one built in, as far as passt can be told so.
fn passt_arguments(host_loopback: bool, published: &[Publish]) -> Vec<String> {
    let fixed = "--foreground --quiet --ipv4-only --address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 \
                 --dns 10.0.2.3 --dns-forward 10.0.2.3";
    let mut arguments: Vec<String> = fixed.split_whitespace().map(Into::into).collect();
    arguments.extend(["--mtu".into(), LONGEST_TO_USER.to_string()]);
    if !host_loopback {
        arguments.push("--no-map-gw".into());
    }
    for publish in published {
        let option = if publish.protocol == Protocol::Tcp { "--tcp-ports" } else { "--udp-ports" };
        let (address, port) = (publish.host.ip(), publish.host.port());
        arguments.extend([option.into(), format!("{address}/{port}:{}", publish.guest_port)]);
    }
    arguments
}

/// What there is to serve.
enum Network {
    Builtin(Box<UserNetwork>),
    /// passt, which is told what to do, and guarded, for it allows more than it should.
    Passt(UnixStream),
}

/// Is the process with a user-mode network, until the VM has gone.
///
/// # Errors
///
/// The network ended before.
pub(crate) fn serve(options: &UserNetOptions) -> Result<u8, Failure> {
    let prepared = process::prepare(|| {
        // Should the monitor be killed, its end of the socket is closed, too; this is for when something else has that end.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let rules = Options {
            host_loopback: options.host_loopback,
            published: options.publish.clone(),
            resolvers: resolvers(&text),
        };
        let socket = UnixStream::from(process::socket()?);
        let network = match &options.passt {
            Some(passt) => Network::Passt(start_passt(passt, options)?),
            None => Network::Builtin(Box::new(UserNetwork::new(&rules)?)),
        };
        lockdown::apply(match &network {
            Network::Builtin(_) => &Process::UserNetwork,
            Network::Passt(_) => &Process::Guard,
        })?;
        Ok((network, socket, rules))
    });
    let Some((network, socket, rules)) = prepared else { return Ok(Cause::CannotStart.code()) };
    let served = match network {
        Network::Builtin(network) => network.serve(&socket),
        Network::Passt(passt) => guard(&socket, &passt, &rules),
    };
    served.map_err(|error| Failure::cannot("the user-mode network ended before its VM", error))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passt_is_told_the_same_as_the_network_built_in() {
        let ports = ["8080:80", "0.0.0.0:5353:53/udp"].map(|text| text.parse().unwrap());
        let arguments = passt_arguments(false, &ports).join(" ");
        assert!(arguments.contains("--no-map-gw"), "{arguments}");
        assert!(
            arguments.ends_with("--tcp-ports 127.0.0.1/8080:80 --udp-ports 0.0.0.0/5353:53"),
            "{arguments}"
        );
        assert!(!passt_arguments(true, &[]).join(" ").contains("--no-map-gw"));
    }
}

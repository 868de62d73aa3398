//! `--net user`: a process with the user-mode network, passt's or the one of `hv_core::net::user`.
//!
//! Start at [`start`], which the monitor calls, and at [`serve`], which the process does.

use super::lockdown::{self, Process};
use super::{LONGEST_TO_USER, Stack, process};
use crate::exit_code::Cause;
use crate::failure::Failure;
use clap::Args;
use hv_core::net::user::{Options, Protocol, Publish, UserNetwork, resolvers};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Signal, set_parent_process_death_signal};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The arguments of the process with the network that is built in.
#[derive(Args, Debug)]
pub(crate) struct UserNetOptions {
    #[arg(long)]
    host_loopback: bool,
    #[arg(long)]
    publish: Vec<Publish>,
}

/// Starts it, and gives the VM's end of its link.
///
/// # Errors
///
/// It cannot be started, or a port cannot be had.
pub(super) fn start(stack: Stack, host_loopback: bool, published: &[Publish]) -> Result<UnixStream, Failure> {
    let (ours, its) =
        UnixStream::pair().map_err(|error| Failure::cannot("there is no socket for a network", error))?;
    match (stack, find_passt()) {
        (Stack::Builtin, _) | (Stack::Any, None) => start_builtin(its, host_loopback, published)?,
        (Stack::Any | Stack::Passt, Some(passt)) => start_passt(passt, its, host_loopback, published)?,
        (Stack::Passt, None) => {
            let failure = Failure::new(Cause::CannotStart, "there is no `passt` in any directory of PATH");
            return Err(
                failure.advise("Install it (Debian's package is called passt), or say `--net user:builtin`.")
            );
        }
    }
    Ok(ours)
}

fn start_builtin(socket: UnixStream, host_loopback: bool, published: &[Publish]) -> Result<(), Failure> {
    let ports: Vec<_> = published.iter().map(|publish| format!("--publish={publish}")).collect();
    let loopback = host_loopback.then_some("--host-loopback");
    let arguments = ["net-user"].into_iter().chain(loopback).chain(ports.iter().map(String::as_str));
    process::start(process::again(arguments, socket.into()), "the user-mode network")
}

fn find_passt() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join("passt")).find(|file| file.is_file())
}

/// The same network as the one built in, as far as passt can be told so. It ends when the VM's end of the socket is closed.
fn start_passt(
    passt: PathBuf,
    socket: UnixStream,
    host_loopback: bool,
    published: &[Publish],
) -> Result<(), Failure> {
    let cannot = |error| Failure::cannot(format!("`{}` could not be started", passt.display()), error);
    // This is the only thread, so nothing else is started meanwhile that would inherit it.
    fcntl_setfd(&socket, FdFlags::empty()).map_err(|error| cannot(error.into()))?;
    let mut command = Command::new(&passt);
    command.args(passt_arguments(host_loopback, published)).arg("--fd").arg(socket.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    command.spawn().map(drop).map_err(cannot)
}

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

/// Is the process with the network that is built in, until the VM has gone.
pub(crate) fn serve(options: &UserNetOptions) -> Result<u8, Failure> {
    let prepared = process::prepare(|| {
        // Should the monitor be killed, its end of the socket is closed, too; this is for when something else has that end.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let resolvers =
            std::fs::read_to_string("/etc/resolv.conf").map_or(Vec::new(), |text| resolvers(&text));
        let UserNetOptions { host_loopback, publish } = options;
        let options = Options { host_loopback: *host_loopback, published: publish.clone(), resolvers };
        let network = UserNetwork::new(&options)?;
        let socket = UnixStream::from(process::socket()?);
        lockdown::apply(&Process::UserNetwork)?;
        Ok((network, socket))
    });
    let Some((network, socket)) = prepared else { return Ok(Cause::CannotStart.code()) };
    network
        .serve(&socket)
        .map_err(|error| Failure::cannot("the user-mode network ended before its VM", error))?;
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

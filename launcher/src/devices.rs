//! The devices of `hv run`: what is asked for on the command line, opened while the monitor still may.
//!
//! Start at [`open`].

use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::input::Keyboard;
use crate::vsock::{self, VsockOption};
use clap::Args;
use hv_abi::Features;
use hv_core::devices::{Block, BlockOptions, Console, PORTS_MAX, Port, Window, listen};
use hv_core::{DeviceConfig, Image};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;

/// Options that give a guest devices.
#[derive(Args, Debug)]
#[command(next_help_heading = "Devices")]
pub(crate) struct DeviceOptions {
    /// A file or block device that the guest has as a disk; more than once for more disks
    ///
    /// `FILE,ro` cannot be written to; `FILE,direct` is read and written past the host's page cache.
    #[arg(long, value_name = "FILE[,ro][,direct]")]
    pub(crate) disk: Vec<DiskOption>,
    /// A Unix socket by which programs of this host and the guest connect to each other (virtio-vsock)
    ///
    /// A program that connects to PATH and writes `CONNECT N` and a newline comes to the guest's port N; the guest's connections
    /// to port N of the host, which is context 2, come to the Unix socket `PATH_N`. The guest is context N, 3 if it is not said.
    #[arg(long, value_name = "PATH[,cid=N]")]
    pub(crate) vsock: Option<VsockOption>,
    /// Give the guest this terminal as it is, as a console device (virtio-console)
    ///
    /// All keys are the guest's, Ctrl-C too. Ctrl-A x ends hv; Ctrl-A Ctrl-A sends Ctrl-A.
    #[arg(long)]
    pub(crate) terminal: bool,
    /// A port of the console device that is appended to a file, or that a program of this host can connect to
    #[arg(long, value_name = "NAME=FILE|NAME=unix:PATH")]
    pub(crate) port: Vec<PortOption>,
    /// Give the guest a memory balloon as a device (virtio-balloon); most guests have no need of it, and use hypercalls
    #[arg(long)]
    pub(crate) balloon: bool,
}

/// What `--port` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortOption {
    name: String,
    end: PortEnd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum PortEnd {
    File(PathBuf),
    Socket(PathBuf),
}

impl FromStr for PortOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const NAME_MAX: usize = 64;
        let (name, path) = text.split_once('=').ok_or("expected a name and a path, as in log=guest.log")?;
        let end = match path.strip_prefix("unix:") {
            Some(path) => PortEnd::Socket(path.into()),
            None => PortEnd::File(path.into()),
        };
        if name.is_empty() || name.len() > NAME_MAX || matches!(path, "" | "unix:") {
            return Err(format!("expected a name of at most {NAME_MAX} bytes and a path, as in log=guest.log"));
        }
        Ok(Self { name: name.into(), end })
    }
}

/// What is opened for a guest.
pub(crate) struct Opened {
    pub(crate) devices: Vec<DeviceConfig>,
    /// What the terminal is read for, if the guest is to have it as it is.
    pub(crate) keyboard: Option<Keyboard>,
}

/// What `--disk` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DiskOption {
    path: PathBuf,
    options: BlockOptions,
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let path =
            words.next().filter(|path| !path.is_empty()).ok_or("expected a file, as in disk.img,ro")?;
        let mut options = BlockOptions::default();
        for word in words {
            match word {
                "ro" => options.read_only = true,
                "direct" => options.direct = true,
                other => {
                    return Err(format!("expected `ro` or `direct` behind the file, found `{other}`"));
                }
            }
        }
        Ok(Self { path: path.into(), options })
    }
}

/// Opens what is asked for. A guest that knows of devices has an entropy source, too.
///
/// # Errors
///
/// Something cannot be opened, or the guest has no use for it.
pub(crate) fn open(options: &DeviceOptions, image: &Image) -> Result<Opened, Failure> {
    let mut devices = Vec::new();
    if (image.note.needed | image.note.liked).contains(Features::DEVICES) {
        devices.push(DeviceConfig::Entropy);
    }
    for DiskOption { path, options } in &options.disk {
        let disk = Block::open(path, *options);
        devices.push(DeviceConfig::Block(
            disk.map_err(|error| Failure::cannot("the guest cannot have this disk", error))?,
        ));
    }
    if let Some(vsock) = &options.vsock {
        devices.push(DeviceConfig::Vsock(vsock::open(vsock)?));
    }
    if options.balloon {
        devices.push(DeviceConfig::Balloon);
    }
    let (console, keyboard) = open_console(options)?;
    devices.extend(console.map(DeviceConfig::Console));
    Ok(Opened { devices, keyboard })
}

/// The console device, if there is a use for it. What is written to port 0 goes to standard output.
fn open_console(options: &DeviceOptions) -> Result<(Option<Console>, Option<Keyboard>), Failure> {
    if !options.terminal && options.port.is_empty() {
        return Ok((None, None));
    }
    if options.port.len() >= PORTS_MAX {
        let message = format!("{} ports are too many; a guest has at most {}", options.port.len(), PORTS_MAX - 1);
        return Err(Failure::new(Cause::CannotStart, message));
    }
    let cannot = |error| Failure::cannot("the guest cannot have the terminal", error);
    let window = Window::new().map_err(cannot)?;
    let output = rustix::stdio::stdout().try_clone_to_owned().map_err(cannot)?;
    let (keyboard, input) =
        options.terminal.then(|| Keyboard::new(window.clone())).transpose().map_err(cannot)?.unzip();
    let mut ports = vec![Port::streams("", input, output)];
    for port in &options.port {
        ports.push(open_port(port)?);
    }
    Ok((Some(Console::new(ports, window)), keyboard))
}

fn open_port(PortOption { name, end }: &PortOption) -> Result<Port, Failure> {
    let message = || format!("the guest cannot have the port `{name}`");
    match end {
        PortEnd::File(path) => match File::options().append(true).create(true).open(path) {
            Ok(file) => Ok(Port::streams(name, None, file.into())),
            Err(error) => Err(Failure::cannot(
                message(),
                io::Error::new(error.kind(), format!("`{}`: {error}", path.display())),
            )),
        },
        PortEnd::Socket(path) => {
            let listener = listen(path).map_err(|error| Failure::cannot(message(), error))?;
            Ok(Port::listener(name, listener))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_files_with_options() {
        let disk = |text: &str| text.parse::<DiskOption>();
        let with = |read_only, direct| BlockOptions { read_only, direct };
        for (text, path, options) in [
            ("a.img", "a.img", with(false, false)),
            ("/b,ro", "/b", with(true, false)),
            ("c,direct,ro", "c", with(true, true)),
        ] {
            assert_eq!(disk(text), Ok(DiskOption { path: path.into(), options }));
        }
        for bad in ["", ",ro", "a,rw", "a,"] {
            assert!(disk(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_have_a_name_and_an_end() {
        let port = |text: &str| text.parse::<PortOption>();
        let with = |name: &str, end| Ok(PortOption { name: name.into(), end });
        assert_eq!(port("log=a=b"), with("log", PortEnd::File("a=b".into())));
        assert_eq!(port("x=unix:/run/x"), with("x", PortEnd::Socket("/run/x".into())));
        for bad in ["", "log", "=a", "log=", "log=unix:", &format!("{}=a", "n".repeat(65))] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}

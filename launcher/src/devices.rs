//! The devices of `hv run`: what is asked for on the command line, opened while the monitor still may.
//!
//! Start at [`open`].

use crate::failure::Failure;
use crate::input::Keyboard;
use crate::net::{self, NetOptions, VsockOption};
use crate::ports::{self, PortOptions};
use crate::shares::{self, ShareOption};
use clap::Args;
use hv_abi::Features;
use hv_core::devices::{Block, BlockOptions};
use hv_core::{DeviceConfig, Image};
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
    /// A folder whose files the guest sees, by virtio-fs; more than once for more folders
    ///
    /// With `:rw` it can change them, with the rights of whoever runs hv. The guest knows the folder by its tag, `share` if none
    /// is given: minios has it at /TAG. Links that lead out of it are shown and lead nowhere, and what is mounted in it is not seen.
    #[arg(long, value_name = "DIR[:TAG][:rw]")]
    pub(crate) share: Vec<ShareOption>,
    #[command(flatten)]
    pub(crate) net: NetOptions,
    /// A Unix socket by which programs of this host and the guest connect to each other, by virtio-vsock
    ///
    /// A program that connects to PATH and writes `CONNECT N` and a newline comes to the guest's port N; the guest's connections
    /// to port N of the host, which is context 2, come to the Unix socket `PATH_N`. The guest is context 3, if cid does not say else.
    #[arg(long, value_name = "PATH[,cid=N]")]
    pub(crate) vsock: Option<VsockOption>,
    #[command(flatten)]
    pub(crate) ports: PortOptions,
    /// Give the guest a memory balloon as a device; most guests use hypercalls, and have no need of it
    #[arg(long)]
    pub(crate) balloon: bool,
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
    devices.extend(shares::open(&options.share)?);
    devices.extend(net::open(&options.net)?.into_iter().map(DeviceConfig::Net));
    if let Some(vsock) = &options.vsock {
        devices.push(DeviceConfig::Vsock(net::open_vsock(vsock)?));
    }
    let (console, keyboard) = ports::open(&options.ports)?;
    devices.extend(console.map(DeviceConfig::Console));
    if options.balloon {
        devices.push(DeviceConfig::Balloon);
    }
    Ok(Opened { devices, keyboard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_files_with_options() {
        let disk = |text: &str| text.parse::<DiskOption>();
        let with = |read_only, direct| BlockOptions { read_only, direct, ..BlockOptions::default() };
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
}

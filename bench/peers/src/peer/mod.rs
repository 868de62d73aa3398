//! What the benchmark program is run on. Each module says how one is found, and how the program is started there.
//!
//! Start at [`find`].

mod gvisor;
mod host;
mod hv;
mod qemu;
mod uml;

use crate::Options;
use crate::run::{Interrupt, Run, RunError};
use crate::stage::Stage;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long a peer may take to start, run nothing, and end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Memory of each virtual machine.
const MEMORY: &str = "256M";

/// As the command line has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum PeerName {
    /// A process
    Host,
    /// A program of minios, the sample guest
    Hv,
    /// User-mode Linux
    Uml,
    /// gVisor's runsc
    Gvisor,
    /// QEMU's emulation, with a Linux kernel
    Qemu,
}

impl PeerName {
    const ALL: [Self; 5] = [Self::Host, Self::Hv, Self::Uml, Self::Gvisor, Self::Qemu];
}

/// Something that runs the program.
pub(crate) struct Peer {
    /// What people call it.
    pub title: &'static str,
    pub version: String,
    /// Where the program finds the file to read.
    pub data: String,
    command: ProgramWith,
}

/// The command that runs the program with arguments.
type ProgramWith = Box<dyn Fn(&[&str]) -> Command>;

impl Peer {
    /// The command that runs the program with arguments.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        (self.command)(arguments)
    }

    /// Whether it can run the program at all.
    fn probe(&self, stage: &Stage, interrupt: &Interrupt) -> Result<(), RunError> {
        Run::start(self, &["exit"], stage, interrupt)?.lines(PATIENCE, |_| false).map(drop)
    }
}

/// Why a peer is left out.
pub(crate) struct Missing {
    pub title: &'static str,
    pub why: String,
    /// What brings it.
    pub remedy: &'static str,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is left out: {}. To have it: {}", self.title, self.why, self.remedy)
    }
}

/// What was found where a peer was looked for.
pub(crate) enum Found {
    Peer(Peer),
    Missing(Missing),
}

impl From<Result<Peer, Missing>> for Found {
    fn from(result: Result<Peer, Missing>) -> Self {
        result.map_or_else(Self::Missing, Self::Peer)
    }
}

/// Looks for all that were asked for, and tries each.
///
/// # Errors
///
/// The host itself cannot run the program, there is no room for files, or the user wants the end.
pub(crate) fn find(options: &Options, stage: &Stage, interrupt: &Interrupt) -> Result<Vec<Found>, RunError> {
    let wanted =
        |name: PeerName| name == PeerName::Host || options.only.is_empty() || options.only.contains(&name);
    let mut found = Vec::new();
    for name in PeerName::ALL.into_iter().filter(|name| wanted(*name)) {
        found.push(match name {
            PeerName::Host => Found::Peer(host::find(stage)),
            PeerName::Hv => tried(hv::find(options.hv.as_deref(), stage)?, hv::REMEDY, stage, interrupt)?,
            PeerName::Uml => tried(uml::find(stage)?, uml::REMEDY, stage, interrupt)?,
            PeerName::Gvisor => gvisor::find(stage, interrupt)?.into(),
            PeerName::Qemu => {
                tried(qemu::find(options.kernel.as_deref(), stage), qemu::REMEDY, stage, interrupt)?
            }
        });
    }
    Ok(found)
}

/// Leaves out what is there but does not work.
fn tried(
    found: Result<Peer, Missing>,
    remedy: &'static str,
    stage: &Stage,
    interrupt: &Interrupt,
) -> Result<Found, RunError> {
    let peer = match found {
        Ok(peer) => peer,
        Err(missing) => return Ok(Found::Missing(missing)),
    };
    match peer.probe(stage, interrupt) {
        Ok(()) => Ok(Found::Peer(peer)),
        Err(RunError::Interrupted) => Err(RunError::Interrupted),
        Err(error) => {
            let why = format!("it is here, but does not run a program: {error}");
            Ok(Found::Missing(Missing { title: peer.title, why, remedy }))
        }
    }
}

/// A program on the path.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// The first line of what a program says of its version.
fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or("of unknown version").trim().to_owned()
}

/// A path as text, which a command line of a kernel's has to be.
fn text(path: &Path) -> io::Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        io::Error::other(format!("{} is not text; TMPDIR names another directory", path.display()))
    })
}

//! gVisor: `runsc do`, without root, with the host's files to read, on the best of its platforms that needs no KVM.

use crate::peer::{Found, Missing, Peer, program, text, tried, version};
use crate::run::{Interrupt, RunError};
use crate::stage::Stage;
use std::path::{Path, PathBuf};
use std::process::Command;

const TITLE: &str = "gVisor";
const REMEDY: &str = "apt install runsc";

/// The better one first; older versions do not have it.
const PLATFORMS: [&str; 2] = ["systrap", "ptrace"];

pub(super) fn find(stage: &Stage, interrupt: &Interrupt) -> Result<Result<Peer, Missing>, RunError> {
    let Some(runsc) = program("runsc") else {
        let why = "no program `runsc` is on the path".into();
        return Ok(Err(Missing { title: TITLE, why, remedy: REMEDY }));
    };
    let mut reasons = Vec::new();
    for platform in PLATFORMS {
        match tried(Ok(on(platform, &runsc, stage)?), REMEDY, stage, interrupt)? {
            Found::Peer(peer) => return Ok(Ok(peer)),
            Found::Missing(missing) => reasons.push(format!("with {platform}, {}", missing.why)),
        }
    }
    Ok(Err(Missing { title: TITLE, why: reasons.join("; "), remedy: REMEDY }))
}

fn on(platform: &'static str, runsc: &Path, stage: &Stage) -> Result<Peer, RunError> {
    let (runsc, program) = (PathBuf::from(runsc), stage.program());
    let state = format!("--root={}", text(&stage.scratch("runsc")?)?);
    Ok(Peer {
        title: TITLE,
        version: format!("{}, {platform}", version(&runsc)),
        data: text(&stage.data())?,
        command: Box::new(move |arguments| {
            let mut command = Command::new(&runsc);
            command.args(["--rootless", "--network=none", &format!("--platform={platform}"), &state]);
            command.arg("do").arg(&program).args(arguments);
            command
        }),
    })
}

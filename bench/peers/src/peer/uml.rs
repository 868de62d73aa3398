//! User-mode Linux, with the host's directory as its root, and the program as its first process.

use crate::peer::{MEMORY, Missing, Peer, program, text, version};
use crate::stage::Stage;
use std::io;
use std::process::Command;

const TITLE: &str = "User-mode Linux";
pub(super) const REMEDY: &str = "apt install user-mode-linux";

pub(super) fn find(stage: &Stage) -> io::Result<Result<Peer, Missing>> {
    let Some(linux) = program("linux.uml") else {
        let why = "no program `linux.uml` is on the path".into();
        return Ok(Err(Missing { title: TITLE, why, remedy: REMEDY }));
    };
    let root = format!("rootflags={}", text(stage.root())?);
    let own = format!("uml_dir={}", text(&stage.scratch("uml")?)?);
    Ok(Ok(Peer {
        title: TITLE,
        version: format!("{}, hostfs", version(&linux)),
        data: "/data".into(),
        command: Box::new(move |arguments| {
            let mut command = Command::new(&linux);
            command.args(["rootfstype=hostfs", &root, &own, "ro", &format!("mem={MEMORY}"), "init=/lat"]);
            command.args(["con=null", "con0=fd:0,fd:1", "quiet", "loglevel=0", "--"]).args(arguments);
            command
        }),
    }))
}

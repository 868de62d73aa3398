//! hv: the program's other build, in the sample guest minios, started by its shell. The file to read is in a shared folder.

use crate::peer::{MEMORY, Missing, Peer, program, text, version};
use crate::stage::Stage;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const TITLE: &str = "hv";
pub(super) const REMEDY: &str = "cargo build --release, or --hv FILE";

pub(super) fn find(given: Option<&Path>, stage: &Stage) -> io::Result<Result<Peer, Missing>> {
    let Some(hv) = given.map(Path::to_owned).or_else(beside).or_else(|| program("hv")) else {
        let why = "no program `hv` is beside this one, or on the path".into();
        return Ok(Err(Missing { title: TITLE, why, remedy: REMEDY }));
    };
    if !hv.is_file() {
        let why = format!("`{}` is no file", hv.display());
        return Ok(Err(Missing { title: TITLE, why, remedy: REMEDY }));
    }
    let share = format!("{}:files", text(stage.root())?);
    let sockets = stage.scratch("sockets")?;
    Ok(Ok(Peer {
        title: TITLE,
        version: format!("{}, minios", version(&hv)),
        data: "/files/data".into(),
        command: Box::new(move |arguments| {
            let mut command = Command::new(&hv);
            command.args(["run", "minios", "--memory", MEMORY, "--share", &share]);
            command.args(["--", "-c", &format!("lat {}", arguments.join(" "))]);
            command.env("HV_RUNTIME_DIR", &sockets);
            command
        }),
    }))
}

/// That of the same build.
fn beside() -> Option<PathBuf> {
    let file = std::env::current_exe().ok()?.with_file_name("hv");
    file.is_file().then_some(file)
}

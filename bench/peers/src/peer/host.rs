//! The host itself: a process.

use crate::peer::Peer;
use crate::stage::Stage;
use std::process::Command;

pub(super) fn find(stage: &Stage) -> Peer {
    let program = stage.program();
    let kernel = rustix::system::uname();
    Peer {
        title: "host",
        version: format!("Linux {}", kernel.release().to_string_lossy()),
        data: stage.data().to_string_lossy().into_owned(),
        command: Box::new(move |arguments| {
            let mut command = Command::new(&program);
            command.args(arguments);
            command
        }),
    }
}

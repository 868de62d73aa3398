//! QEMU's emulation, with Debian's kernel for clouds, and the program as the first process of an initramfs.

use crate::peer::{MEMORY, Missing, Peer, program, version};
use crate::stage::Stage;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TITLE: &str = "QEMU (TCG)";
pub(super) const REMEDY: &str = "apt install --no-install-recommends qemu-system-x86; \
    and a kernel, which need not be installed: apt download linux-image-6.1.0-40-cloud-amd64 (`apt-cache depends \
    linux-image-cloud-amd64` has the newest name), dpkg-deb -x linux-image-*.deb linux, --kernel linux/boot/vmlinuz-*";

pub(super) fn find(kernel: Option<&Path>, stage: &Stage) -> Result<Peer, Missing> {
    let missing = |why: &str| Missing { title: TITLE, why: why.into(), remedy: REMEDY };
    let qemu = program("qemu-system-x86_64")
        .ok_or_else(|| missing("no program `qemu-system-x86_64` is on the path"))?;
    let kernel = kernel.map(Path::to_owned).or_else(installed_kernel);
    let kernel =
        kernel.ok_or_else(|| missing("no /boot/vmlinuz-*-cloud-amd64 is here, and no --kernel was given"))?;
    if !kernel.is_file() {
        return Err(missing(&format!("`{}` is no file", kernel.display())));
    }
    let archive = stage.archive();
    let name = kernel.file_name().unwrap_or_default().to_string_lossy().replace("vmlinuz-", "Linux ");
    Ok(Peer {
        title: TITLE,
        version: format!("{}, {name}, initramfs", version(&qemu)),
        data: "/data".into(),
        command: Box::new(move |arguments| {
            let mut command = Command::new(&qemu);
            command.args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-serial",
                "stdio",
                "-no-reboot",
            ]);
            command.args(["-machine", "pc", "-accel", "tcg", "-m", MEMORY]);
            command.arg("-kernel").arg(&kernel).arg("-initrd").arg(&archive);
            // Without `no_timer_check` a kernel now and then panics at its start if the host is busy: its timer came late. What it
            // says then is at level 0.
            let line = "console=ttyS0 quiet loglevel=1 no_timer_check panic=-1 --";
            let line = format!("{line} {}", arguments.join(" "));
            command.args(["-append", &line]);
            command
        }),
    })
}

/// The last by name.
fn installed_kernel() -> Option<PathBuf> {
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("vmlinuz-") && name.ends_with("-cloud-amd64")
    };
    fs::read_dir("/boot").ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(is_one).max()
}

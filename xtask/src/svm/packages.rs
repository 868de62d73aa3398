//! QEMU, a kernel and busybox, out of Debian's packages: downloaded and unpacked, not installed.
//!
//! Start at [`Packages::get`].

use super::{Error, cannot};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What the machine is made of.
pub(super) struct Packages {
    pub qemu: PathBuf,
    /// Where its libraries are, if it is not installed.
    pub libraries: Vec<PathBuf>,
    /// Where QEMU's own files are.
    pub data: Vec<PathBuf>,
    pub kernel: PathBuf,
    /// In the order in which they are loaded.
    pub modules: Vec<PathBuf>,
    pub busybox: PathBuf,
}

/// Why they cannot be had here.
pub(super) struct Unavailable(pub String);

/// The package that depends on the kernel of today.
const KERNEL: &str = "linux-image-cloud-amd64";
const MODULES: [&str; 4] = ["irqbypass.ko", "ccp.ko", "kvm.ko", "kvm-amd.ko"];

impl Packages {
    /// Finds them below `directory`, or gets them there.
    pub(super) fn get(directory: &Path) -> Result<Result<Self, Unavailable>, Error> {
        let root = directory.join("root");
        let complete = directory.join("complete");
        if !complete.exists()
            && let Err(why) = download(directory, &root)?
        {
            return Ok(Err(why));
        }
        let Some(packages) = Self::find(&root) else {
            let why = format!("{} is not what it should be: remove it and try again", directory.display());
            return Ok(Err(Unavailable(why)));
        };
        fs::write(&complete, "").map_err(cannot("noting that all is there"))?;
        Ok(Ok(packages))
    }

    /// As the loader of programs has them in its environment.
    pub(super) fn libraries(&self) -> Option<OsString> {
        std::env::join_paths(&self.libraries).ok().filter(|paths| !paths.is_empty())
    }

    fn find(root: &Path) -> Option<Self> {
        let kernel = first(&root.join("boot"), |name| name.starts_with("vmlinuz-"))?;
        let release = kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        let tree = [root.join("lib/modules"), root.join("usr/lib/modules")].map(|tree| tree.join(&release));
        let find = |name: &&str| tree.iter().find_map(|tree| find_below(tree, name));
        let modules: Vec<PathBuf> = MODULES.iter().filter_map(find).collect();
        let has = |name: &str| modules.iter().any(|module| module.ends_with(name));
        if !has("kvm.ko") || !has("kvm-amd.ko") {
            return None; // compressed ones are not unpacked
        }
        let own = root.join("usr/bin/qemu-system-x86_64");
        let unpacked = |path: &str| Some(root.join(path)).filter(|path| own.exists() && path.exists());
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].into_iter().filter_map(unpacked);
        let data = ["usr/share/qemu", "usr/share/seabios"].into_iter().filter_map(unpacked);
        let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| root.join(path));
        Some(Self {
            libraries: libraries.collect(),
            data: data.collect(),
            qemu: if own.exists() { own.clone() } else { in_path("qemu-system-x86_64")? },
            kernel,
            modules,
            busybox: busybox.into_iter().find(|path| path.exists())?,
        })
    }
}

/// Downloads and unpacks what is not installed.
fn download(directory: &Path, root: &Path) -> Result<Result<(), Unavailable>, Error> {
    for tool in ["apt-get", "apt-cache", "dpkg-deb"] {
        if in_path(tool).is_none() {
            return Ok(Err(Unavailable(format!("there is no {tool}"))));
        }
    }
    if kernel_package().is_none() {
        let _ = Command::new("apt-get").arg("update").stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
    let Some(kernel) = kernel_package() else {
        return Ok(Err(Unavailable(format!(
            "apt-get knows no {KERNEL}; `apt-get update`, as root, may help"
        ))));
    };
    let mut names = vec![kernel, "busybox-static".to_owned()];
    if in_path("qemu-system-x86_64").is_none() {
        names.extend(needed_for("qemu-system-x86"));
    }
    let debs = directory.join("debs");
    fs::create_dir_all(&debs).map_err(cannot("making a directory for packages"))?;
    eprintln!("downloading {} packages to {}", names.len(), debs.display());
    let mut apt = Command::new("apt-get");
    apt.current_dir(&debs).args(["--quiet", "--quiet", "--option", "APT::Sandbox::User=root", "download"]);
    let done = apt.args(&names).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !done.is_ok_and(|status| status.success()) {
        return Ok(Err(Unavailable("apt-get cannot download its packages".into())));
    }
    for deb in fs::read_dir(&debs).map_err(cannot("reading the packages' directory"))?.flatten() {
        let unpacked = Command::new("dpkg-deb").arg("-x").arg(deb.path()).arg(root).status();
        if !unpacked.map_err(cannot("starting dpkg-deb"))?.success() {
            return Err(Error::Failed(format!("dpkg-deb does not unpack {}", deb.path().display())));
        }
    }
    Ok(Ok(()))
}

/// The kernel's own package, by the one that depends on it.
fn kernel_package() -> Option<String> {
    let told = Command::new("apt-cache").args(["depends", KERNEL]).output().ok()?;
    depended_on(&String::from_utf8_lossy(&told.stdout))
}

fn depended_on(told: &str) -> Option<String> {
    let names = told.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::to_owned).find(|name| name.starts_with("linux-image-"))
}

/// A package, and those that it needs and that are not installed.
fn needed_for(package: &str) -> Vec<String> {
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--print-uris", "--yes", "--no-install-recommends", package]);
    let told = apt.stderr(Stdio::null()).output().map(|output| output.stdout).unwrap_or_default();
    packages_in(&String::from_utf8_lossy(&told))
}

/// Names in lines such as `'http://…' qemu-system-x86_1%3a7.2_amd64.deb 1234 …`.
fn packages_in(told: &str) -> Vec<String> {
    let uris = told.lines().filter(|line| line.starts_with('\''));
    uris.filter_map(|line| Some(line.split(' ').nth(1)?.split_once('_')?.0.to_owned())).collect()
}

fn in_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|path| path.join(program))
        .find(|path| path.is_file())
}

fn first(directory: &Path, good: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&good))
}

/// A file somewhere below a directory, by its name.
fn find_below(directory: &Path, name: &str) -> Option<PathBuf> {
    for entry in fs::read_dir(directory).ok()?.flatten() {
        let path = entry.path();
        let found = if path.is_dir() { find_below(&path, name) } else { None };
        if found.is_some() {
            return found;
        }
        if path.file_name().is_some_and(|file| file == name) {
            return Some(path);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_package_is_what_the_other_depends_on() {
        let told = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-57-cloud-amd64\n  Breaks: x\n";
        assert_eq!(depended_on(told).as_deref(), Some("linux-image-6.1.0-57-cloud-amd64"));
        assert_eq!(depended_on(""), None);
    }

    #[test]
    fn packages_are_read_from_where_they_would_be_downloaded() {
        let told = "Reading…\n'http://host/q.deb' qemu-system-x86_1%3a7.2_amd64.deb 12 MD5Sum:0\n";
        assert_eq!(packages_in(told), ["qemu-system-x86"]);
    }
}

//! Links the guest as guest-sdk says, and packs what is in `files/` and the programs into an archive.
//!
//! The programs are guests' programs, not the host's, and a crate of their own; who builds the guests has built them, and
//! says where they are in `HV_PROGRAMS`. Without that, as when the kernel is only checked, there are none.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

fn main() {
    let arguments = std::env::var("DEP_HV_GUEST_SDK_LINK").expect("guest-sdk is a dependency");
    arguments.split('\t').for_each(|argument| println!("cargo::rustc-link-arg-bins={argument}"));

    let directory = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    let archive = File::create(out.join("files.tar")).expect("OUT_DIR can be written");
    let mut archive = tar::Builder::new(archive);
    archive.mode(tar::HeaderMode::Deterministic);
    for file in names(&directory.join("files")) {
        add(&mut archive, &directory.join("files").join(&file), &file);
    }
    println!("cargo::rerun-if-env-changed=HV_PROGRAMS");
    if let Some(programs) = std::env::var_os("HV_PROGRAMS").map(PathBuf::from) {
        for source in names(&directory.join("programs/src/bin")) {
            let name = source.trim_end_matches(".rs");
            add(&mut archive, &programs.join(name), name);
        }
    }
    archive.into_inner().expect("the archive can be written");
}

/// Names of the files in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    println!("cargo::rerun-if-changed={}", directory.display());
    let entries = fs::read_dir(directory).expect("the directory is there");
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn add(archive: &mut tar::Builder<File>, file: &Path, name: &str) {
    println!("cargo::rerun-if-changed={}", file.display());
    archive.append_path_with_name(file, name).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

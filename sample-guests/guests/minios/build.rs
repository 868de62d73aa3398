//! Links the kernel as guest-sdk says, builds its programs, and packs them into an archive with what is in `files/`.
//!
//! The programs are built by a cargo of its own, in a target directory of its own, for another cargo waits on the outer
//! one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let arguments = env("DEP_HV_GUEST_SDK_LINK");
    arguments.split('\t').for_each(|argument| println!("cargo::rustc-link-arg-bins={argument}"));

    let out = PathBuf::from(env("OUT_DIR"));
    let programs = build_programs(&out.join("programs"));
    let archive = File::create(out.join("files.tar")).expect("OUT_DIR can be written");
    let mut archive = tar::Builder::new(archive);
    archive.mode(tar::HeaderMode::Deterministic);
    for file in names(Path::new("files")) {
        add(&mut archive, &Path::new("files").join(&file), &file);
    }
    for source in names(Path::new("programs/src/bin")) {
        let name = source.trim_end_matches(".rs");
        add(&mut archive, &programs.join(name), name);
    }
    archive.into_inner().expect("the archive can be written");
    for path in [
        "build.rs",
        "files",
        "programs",
        "abi",
        "../bench/lat",
        "../../../guest-sdk/user",
        "../Cargo.lock",
        "../Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={path}");
    }
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("no {name}: cargo and the dependencies set it"))
}

/// Builds the programs; gives the directory that they are in.
fn build_programs(target: &Path) -> PathBuf {
    let mut cargo = Command::new(env("CARGO"));
    cargo.args(["build", "--release", "--locked", "--package", "minios-programs", "--bins"]);
    cargo.arg("--target-dir").arg(target);
    // What is meant for the outer build: its flags, and a wrapper such as clippy.
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "MAKEFLAGS"] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "building the programs failed; what cargo said is above");
    target.join(env("TARGET")).join("release")
}

/// Names of the files in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("the directory is there");
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names
}

fn add(archive: &mut tar::Builder<File>, file: &Path, name: &str) {
    archive.append_path_with_name(file, name).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

//! Builds the guests under `guests/` and writes constants with their images, and one with a program for the host.
//!
//! The guests are a workspace of their own, built by a cargo of its own: in its own target
//! directory (cargo would wait for itself in the outer one), and without what the outer build set for itself.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Named in the guests' `.cargo/config.toml`, too.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A program for the host, built as programs of guests are.
const HOST_PROGRAM: &str = "lat-host";

fn main() {
    let directory = PathBuf::from(env("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env("OUT_DIR"));
    let target = out.join("guests");
    let guests = guests(&directory.join("guests"));
    build(&directory.join("guests"), &target, &guests);
    // By itself: with features that guests ask of what they share it would need an allocator.
    build(&directory.join("guests"), &target, &[HOST_PROGRAM.into()]);
    let images = target.join(TARGET).join("release");
    let source = images_source(&guests, &images, &directory);
    std::fs::write(out.join("images.rs"), source).expect("OUT_DIR can be written");
    for path in ["guests", "../guest-sdk", "../hv-abi", "../pv-drivers", "../Cargo.lock", "../Cargo.toml"] {
        let path = directory.join(path);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// Names of the guests: the directories that hold a crate.
fn guests(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("the guests' directory");
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.path().join("Cargo.toml").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn build(directory: &Path, target: &Path, packages: &[String]) {
    let mut cargo = Command::new(env("CARGO"));
    cargo.current_dir(directory).args(["build", "--release", "--locked"]);
    cargo.arg("--target-dir").arg(target);
    for package in packages {
        cargo.args(["--package", package]);
    }
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let outer = name.starts_with("CARGO_") || name.starts_with("DEP_");
        let kept = matches!(&*name, "CARGO_HOME" | "CARGO_NET_OFFLINE")
            || ["CARGO_REGISTRIES_", "CARGO_REGISTRY_", "CARGO_SOURCE_", "CARGO_HTTP_", "CARGO_NET_"]
                .iter()
                .any(|prefix| name.starts_with(prefix));
        let flags = matches!(
            &*name,
            "RUSTFLAGS"
                | "RUSTC"
                | "RUSTDOC"
                | "RUSTC_WRAPPER"
                | "RUSTC_WORKSPACE_WRAPPER"
                | "RUSTC_LINKER"
                | "MAKEFLAGS"
                | "MFLAGS"
                | "TARGET"
                | "HOST"
                | "OPT_LEVEL"
                | "DEBUG"
                | "PROFILE"
                | "NUM_JOBS"
                | "OUT_DIR"
                | "__CARGO_DEFAULT_LIB_METADATA"
        );
        if (outer && !kept) || flags {
            cargo.env_remove(name);
        }
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "building the sample guests failed; what cargo said is above");
}

fn images_source(guests: &[String], images: &Path, directory: &Path) -> String {
    let mut source = String::new();
    writeln!(source, "/// All sample guests, sorted by name.").expect("a string takes it");
    writeln!(source, "pub const IMAGES: &[Sample] = &[").expect("a string takes it");
    for guest in guests {
        let main = directory.join("guests").join(guest).join("src/main.rs");
        let text = std::fs::read_to_string(main).expect("a guest has a src/main.rs");
        let about = text.lines().next().and_then(|line| line.strip_prefix("//! ")).unwrap_or_default();
        let image = images.join(guest);
        writeln!(
            source,
            "    Sample {{ name: {guest:?}, about: {about:?}, image: include_bytes!({image:?}) }},"
        )
        .expect("a string takes it");
    }
    source.push_str("];\n");
    let program = images.join(HOST_PROGRAM);
    writeln!(source, "/// The benchmark program `lat` for the host, an ELF file; minios has it for guests.")
        .expect("a string takes it");
    writeln!(source, "pub const HOST_LAT: &[u8] = include_bytes!({program:?});").expect("a string takes it");
    source
}

//! Links the guest as guest-sdk says, and builds the program that it runs: by a cargo of its own, in a target directory of its
//! own, for another cargo waits on the outer one.

use std::process::Command;

fn main() {
    let arguments = std::env::var("DEP_HV_GUEST_SDK_LINK").expect("guest-sdk is a dependency");
    arguments.split('\t').for_each(|argument| println!("cargo::rustc-link-arg-bins={argument}"));

    let env = |name: &str| std::env::var(name).expect("cargo sets it");
    let target = format!("{}/program", env("OUT_DIR"));
    let mut cargo = Command::new(env("CARGO"));
    cargo.args(["build", "--release", "--locked", "--package", "user-program", "--target-dir", &target]);
    // What is meant for the outer build: its flags, and a wrapper such as clippy.
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "RUSTC_WRAPPER", "MAKEFLAGS"] {
        cargo.env_remove(name);
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "building the program failed; what cargo said is above");
    println!("cargo::rustc-env=PROGRAM={target}/{}/release/user-program", env("TARGET"));
    for path in ["build.rs", "program", "../../../guest-sdk/user", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
}

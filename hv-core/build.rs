//! Builds what the KVM engine puts into its guests, `src/engine/kvm/ring0`: a program of its own, for ring 0, without any crate.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = PathBuf::from(env("CARGO_MANIFEST_DIR")).join("src/engine/kvm/ring0");
    let output = PathBuf::from(env("OUT_DIR")).join("ring0");
    let script = source.join("ring0.ld");
    let mut rustc = Command::new(env("RUSTC"));
    rustc.args(["--edition", "2024", "--crate-name", "ring0", "--crate-type", "bin", "-Wunsafe_code"]);
    rustc.args([
        "--target",
        "x86_64-unknown-linux-gnu",
        "-Copt-level=2",
        "-Cpanic=abort",
        "-Crelocation-model=pic",
    ]);
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,norelro"]
    {
        rustc.arg(format!("-Clink-arg={argument}"));
    }
    rustc.arg(format!("-Clink-arg=-T{}", script.display())).arg("-o").arg(output).arg(source.join("main.rs"));
    let status = rustc.status().expect("rustc can be started");
    assert!(status.success(), "building the code of ring 0 failed; what rustc said is above");
    println!("cargo::rerun-if-changed={}", source.display());
}

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

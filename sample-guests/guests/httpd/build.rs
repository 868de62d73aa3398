//! Links the guest as guest-sdk says, and packs the folder that it serves if it is given none.

use std::fs::File;
use std::path::Path;

fn main() {
    let env = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("no {name}: cargo sets it"));
    let arguments = env("DEP_HV_GUEST_SDK_LINK");
    arguments.split('\t').for_each(|argument| println!("cargo::rustc-link-arg-bins={argument}"));
    let archive = File::create(Path::new(&env("OUT_DIR")).join("www.tar")).expect("OUT_DIR can be written");
    let mut archive = tar::Builder::new(archive);
    archive.mode(tar::HeaderMode::Deterministic);
    archive.append_dir_all("", "www").expect("the folder can be read");
    archive.into_inner().expect("the archive can be written");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=www");
}

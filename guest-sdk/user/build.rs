//! Tells programs that depend on this crate how to be linked: their build scripts see the linker's arguments, separated
//! by tabs, as `DEP_HV_GUEST_USER_LINK`.

fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let script = format!("-T{directory}/link.ld");
    let arguments = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,norelro",
        &script,
    ];
    println!("cargo::metadata=LINK={}", arguments.join("\t"));
    println!("cargo::rerun-if-changed=link.ld");
}

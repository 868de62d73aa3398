//! Links the guest as guest-sdk says, but with an entry point of its own: `src/first.rs`.

fn main() {
    let arguments = std::env::var("DEP_HV_GUEST_SDK_LINK").expect("guest-sdk is a dependency");
    arguments.split('\t').for_each(|argument| println!("cargo::rustc-link-arg-bins={argument}"));
    println!("cargo::rustc-link-arg-bins=-Wl,--entry=hv_conformance_first");
}

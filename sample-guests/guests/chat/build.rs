//! Links the guest as guest-sdk says.

fn main() {
    let arguments = std::env::var("DEP_HV_GUEST_SDK_LINK").expect("guest-sdk is a dependency");
    arguments.split('\t').for_each(|argument| println!("cargo::rustc-link-arg-bins={argument}"));
}

//! Links the program as programs of guests are: at a fixed address, without start files and libraries.

fn main() {
    let arguments = std::env::var("DEP_HV_GUEST_USER_LINK").expect("guest-user is a dependency");
    arguments.split('\t').for_each(|argument| println!("cargo::rustc-link-arg-bins={argument}"));
}

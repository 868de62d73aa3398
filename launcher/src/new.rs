//! `hv new`: writes a guest crate that `cargo run` boots.
//!
//! The files are the templates under `templates/`, with a few words filled in.

use crate::cli::NewOptions;
use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Where each template goes.
const FILES: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../templates/Cargo.toml.in")),
    ("build.rs", include_str!("../templates/build.rs.in")),
    ("src/main.rs", include_str!("../templates/main.rs.in")),
    ("src/lib.rs", include_str!("../templates/lib.rs.in")),
    (".cargo/config.toml", include_str!("../templates/config.toml.in")),
    (".gitignore", include_str!("../templates/gitignore.in")),
    ("README.md", include_str!("../templates/README.md.in")),
];

/// What `--with-tests` adds: files of their own, and ends of those above.
const TEST_FILES: &[(&str, &str)] = &[
    ("src/bin/tests.rs", include_str!("../templates/tests.rs.in")),
    ("tests/in_vms.rs", include_str!("../templates/in_vms.rs.in")),
    ("Cargo.toml", include_str!("../templates/Cargo.tests.toml.in")),
    (".cargo/config.toml", include_str!("../templates/config.tests.toml.in")),
    ("README.md", include_str!("../templates/README.tests.md.in")),
];

/// Where the SDK was when this program was built. It is in no registry, so a crate names its directory.
const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-sdk");

/// Names that cargo takes and that would not build: keywords cannot be crates, the rest would hide what guests use.
const BAD_NAMES: &[&str] = &[
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "build",
    "const",
    "continue",
    "core",
    "crate",
    "deps",
    "do",
    "dyn",
    "else",
    "enum",
    "examples",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "guest-sdk",
    "guest_sdk",
    "hv-abi",
    "hv_abi",
    "if",
    "impl",
    "in",
    "incremental",
    "let",
    "loop",
    "macro",
    "main",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
];

/// Writes the crate and says how to go on; gives the exit code.
///
/// # Errors
///
/// The directory is in use, the name is no crate's, the SDK is not there, or the host refused.
pub(crate) fn write(options: &NewOptions) -> Result<u8, Failure> {
    let path = &options.path;
    let name = name(options)?;
    let sdk = sdk(options.sdk.as_deref())?;
    let lock = sdk.join("../Cargo.lock");
    let sdk = quoted(&sdk)?;
    let hv = std::env::current_exe().map_err(|error| Failure::cannot("hv does not find itself", error))?;
    let hv = quoted(&hv)?;
    check_empty(path)?;
    let tests = if options.with_tests { TEST_FILES } else { &[] };
    for (file, template) in FILES.iter().chain(tests) {
        let text = template.replace("@NAME@", &name).replace("@SDK@", &sdk).replace("@HV@", &hv);
        let file = path.join(file);
        append(&file, text.as_bytes()).map_err(|error| not_written(&file, error))?;
    }
    // The versions that the SDK was tested with, which are on this machine: the first build needs no network. What is
    // too much in it, cargo leaves out.
    if let Ok(versions) = std::fs::read(lock) {
        let file = path.join("Cargo.lock");
        append(&file, &versions).map_err(|error| not_written(&file, error))?;
    }
    output::print(&next_steps(path, &name, options.with_tests))?;
    Ok(0)
}

fn not_written(file: &Path, error: io::Error) -> Failure {
    Failure::cannot(format!("`{}` could not be written", file.display()), error)
}

fn next_steps(path: &Path, name: &str, with_tests: bool) -> String {
    let shown = path.display().to_string();
    let plain = shown.chars().all(|c| c.is_alphanumeric() || "/._-+".contains(c));
    let word = if plain { shown } else { format!("'{}'", shown.replace('\'', r"'\''")) };
    let change = if path == Path::new(".") { String::new() } else { format!("  cd {word}\n") };
    let (tested, sources) = match with_tests {
        false => ("its library, against a fake hypervisor", "src/lib.rs and src/main.rs"),
        true => (
            "its library, and src/bin/tests.rs in VMs",
            "src/lib.rs and src/main.rs, its tests src/bin/tests.rs",
        ),
    };
    format!(
        "The guest `{name}` is written. Next:\n\n{change}  cargo run            # build it and boot it\n  \
         cargo run -- a b     # with arguments\n  cargo test           # {tested}\n\nIts source is {sources}.\n"
    )
}

/// The name that was asked for, or the directory's.
fn name(options: &NewOptions) -> Result<String, Failure> {
    let name = match &options.name {
        Some(name) => name.clone(),
        // `.` and `..` have names of their own only when they are resolved.
        None => options
            .path
            .file_name()
            .map(ToOwned::to_owned)
            .or_else(|| options.path.canonicalize().ok()?.file_name().map(ToOwned::to_owned))
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    };
    match problem(&name) {
        None => Ok(name),
        Some(problem) => {
            Err(Failure::new(Cause::CannotStart, format!("`{name}` cannot be a crate's name: {problem}"))
                .advise("give another with --name NAME"))
        }
    }
}

/// What is wrong with a crate's name.
fn problem(name: &str) -> Option<&'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        Some("it must begin with a letter of ASCII")
    } else if !name.chars().all(allowed) {
        Some("it may hold letters and digits of ASCII, `-` and `_`")
    } else if name.len() > 64 {
        Some("it is longer than 64 characters")
    } else if BAD_NAMES.contains(&name) {
        Some("Rust, cargo or the SDK has that name for something else")
    } else {
        None
    }
}

fn sdk(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let path = given.unwrap_or(Path::new(SDK));
    match path.canonicalize() {
        Ok(found) if found.join("link.ld").exists() => Ok(found),
        found => {
            let shown = found.as_deref().unwrap_or(path).display().to_string();
            Err(Failure::new(Cause::CannotStart, format!("the crate guest-sdk is not at `{shown}`"))
                .advise("say where it is with --sdk DIRECTORY; it comes with the source of hv"))
        }
    }
}

/// A path as a string in TOML: JSON's escapes are among TOML's.
fn quoted(path: &Path) -> Result<String, Failure> {
    let unicode = path.to_str().ok_or_else(|| {
        Failure::new(Cause::CannotStart, format!("`{}` is not Unicode, which cargo needs", path.display()))
    })?;
    Ok(serde_json::to_string(unicode).expect("a string is JSON"))
}

/// Refuses to write over what somebody has.
fn check_empty(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    match path.read_dir().map(|mut entries| entries.next().is_none()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(Cause::CannotStart, format!("the directory `{shown}` is not empty"))
            .advise("nothing was written; choose a directory that is empty or does not exist")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::cannot(format!("`{shown}` cannot be used as a directory"), error)),
    }
}

/// Adds to a file that may be there already, in a directory that may not.
fn append(file: &Path, text: &[u8]) -> io::Result<()> {
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    File::options().create(true).append(true).open(file)?.write_all(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cargo_takes() {
        for name in ["a", "my-guest", "kernel_2"] {
            assert_eq!(problem(name), None, "{name}");
        }
        for name in ["", "2", "-x", "a b", "é", "fn", "guest-sdk", "a.b"] {
            assert!(problem(name).is_some(), "{name}");
        }
    }

    #[test]
    fn every_word_of_the_templates_is_filled_in() {
        for (file, template) in FILES.iter().chain(TEST_FILES) {
            let rest = template.replace("@NAME@", "").replace("@SDK@", "").replace("@HV@", "");
            assert!(!rest.contains('@'), "{file}");
        }
    }

    #[test]
    fn a_directory_is_written_as_a_shell_reads_it() {
        assert!(next_steps(Path::new("my guest"), "x", false).contains("cd 'my guest'\n"));
        assert!(next_steps(Path::new("a/b"), "x", true).contains("cd a/b\n"));
    }
}

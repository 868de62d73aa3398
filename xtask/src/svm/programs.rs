//! What runs in the machine: programs of this workspace, with their libraries.
//!
//! Start at [`Programs::build`].

use super::{Error, MachineFile, cannot};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Test files whose tests boot guests, and do so through `HV_ENGINE`.
const TESTS: &[&str] =
    &["digest", "exits", "devices", "devices_balloon", "devices_console", "devices_net", "devices_vsock"];

/// A program, and what it is called in the machine.
pub(super) struct Program {
    pub name: String,
    path: PathBuf,
}

pub(super) struct Programs {
    /// Those that are run, in this order.
    pub of_guests: Vec<Program>,
    hv: PathBuf,
}

impl Programs {
    /// Has cargo build them: those of `tests`, or all.
    pub(super) fn build(release: bool, tests: &[String], command: &[String]) -> Result<Self, Error> {
        let wanted = |name: &str| tests.is_empty() || tests.iter().any(|test| test == name);
        let profile: &[&str] = if release { &["--release"] } else { &[] };
        let binaries =
            cargo(&[&["build", "--package", "launcher", "--package", "conformance"], profile].concat())?;
        let find = |name: &str| {
            let built = binaries.iter().find(|(found, _)| found == name).map(|(_, path)| path.clone());
            built.ok_or_else(|| Error::Failed(format!("cargo did not build {name}")))
        };
        let mut of_guests = vec![Program { name: "conformance".into(), path: find("conformance")? }];
        let files: Vec<&str> = TESTS.iter().copied().filter(|name| wanted(name)).collect();
        if command.is_empty() && !files.is_empty() {
            let mut arguments = vec!["test", "--no-run", "--package", "conformance"];
            files.iter().for_each(|file| arguments.extend(["--test", file]));
            let built = cargo(&[&arguments[..], profile].concat())?;
            let built = built.into_iter().filter(|(name, _)| files.contains(&&**name));
            of_guests.extend(built.map(|(name, path)| Program { name, path }));
        }
        of_guests.retain(|program| !command.is_empty() || wanted(&program.name));
        Ok(Self { of_guests, hv: find("hv")? })
    }

    /// All that has to be in the machine for them.
    pub(super) fn files(&self) -> Vec<MachineFile> {
        let programs = self.of_guests.iter().map(|program| (program.path.clone(), program.name.clone()));
        let programs: Vec<_> = programs.chain([(self.hv.clone(), "hv".to_owned())]).collect();
        let mut libraries: Vec<PathBuf> = programs.iter().flat_map(|(path, _)| libraries(path)).collect();
        libraries.sort();
        libraries.dedup();
        let programs =
            programs.into_iter().map(|(host, name)| MachineFile { host, machine: format!("bin/{name}") });
        let libraries = libraries.into_iter().map(|host| MachineFile {
            machine: host.to_string_lossy().trim_start_matches('/').to_owned(),
            host,
        });
        programs.chain(libraries).collect()
    }
}

/// The libraries of a program, and what loads them, as `ldd` says.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let told = Command::new("ldd").arg(program).output().map(|output| output.stdout).unwrap_or_default();
    let text = String::from_utf8_lossy(&told).into_owned();
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

/// Runs cargo; gives what programs it has built, by their names.
fn cargo(arguments: &[&str]) -> Result<Vec<(String, PathBuf)>, Error> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).args(["--locked", "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output().map_err(cannot("starting cargo"))?;
    if !output.status.success() {
        return Err(Error::Failed(format!("cargo {} failed", arguments.join(" "))));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(built).collect())
}

/// The name and path in one of cargo's messages.
fn built(message: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(message).ok()?;
    let path = message["executable"].as_str()?;
    Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
}

/// Where cargo builds.
pub(super) fn target_directory() -> Result<PathBuf, Error> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--locked"]);
    let output = cargo.stderr(Stdio::inherit()).output().map_err(cannot("starting cargo"))?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let directory = metadata["target_directory"].as_str();
    directory.map(PathBuf::from).ok_or_else(|| Error::Failed("cargo does not say where it builds".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let message = r#"{"reason":"compiler-artifact","target":{"name":"storm"},"executable":"/t/storm-1"}"#;
        assert_eq!(built(message), Some(("storm".into(), "/t/storm-1".into())));
        assert_eq!(built(r#"{"target":{"name":"x"},"executable":null}"#), None);
        assert_eq!(built("Compiling x"), None);
    }

    #[test]
    fn a_programs_libraries_are_files() {
        let own = std::env::current_exe().expect("this program");
        let libraries = libraries(&own);
        assert!(libraries.iter().any(|path| path.to_string_lossy().contains("libc.so")), "{libraries:?}");
        assert!(libraries.iter().all(|path| path.exists()), "{libraries:?}");
    }
}

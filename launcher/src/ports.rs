//! The console device of `hv run`: `--terminal` and `--port`.
//!
//! Start at [`open`].

use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::input::Keyboard;
use clap::Args;
use hv_core::devices::{Console, PORTS_MAX, Port, Window, listen};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;

/// Options that give a guest a console device.
#[derive(Args, Debug)]
pub(crate) struct PortOptions {
    /// Give the guest this terminal as it is, as a console device
    ///
    /// All keys are the guest's, Ctrl-C too. Ctrl-A x ends hv; Ctrl-A Ctrl-A sends Ctrl-A.
    #[arg(long)]
    pub(crate) terminal: bool,
    /// A port of the console device, which is appended to a file, or to which a program of this host can connect; more than once
    /// for more ports
    #[arg(long, value_name = "NAME=FILE|NAME=unix:PATH")]
    pub(crate) port: Vec<PortOption>,
}

/// What `--port` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortOption {
    name: String,
    end: End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    File(PathBuf),
    Socket(PathBuf),
}

impl FromStr for PortOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const NAME_MAX: usize = 64;
        let (name, path) = text.split_once('=').ok_or("expected a name and a path, as in log=guest.log")?;
        let end = match path.strip_prefix("unix:") {
            Some(path) => End::Socket(path.into()),
            None => End::File(path.into()),
        };
        if name.is_empty() || name.len() > NAME_MAX || matches!(path, "" | "unix:") {
            return Err(format!(
                "expected a name of at most {NAME_MAX} bytes and a path, as in log=guest.log"
            ));
        }
        Ok(Self { name: name.into(), end })
    }
}

/// The console device, if there is a use for it, and what reads the terminal for it. What is written to port 0 goes to standard
/// output.
///
/// # Errors
///
/// The end of a port cannot be had, or there are too many.
pub(crate) fn open(options: &PortOptions) -> Result<(Option<Console>, Option<Keyboard>), Failure> {
    let PortOptions { terminal, port } = options;
    if !terminal && port.is_empty() {
        return Ok((None, None));
    }
    if port.len() >= PORTS_MAX {
        let message = format!("{} ports are too many; a guest has at most {}", port.len(), PORTS_MAX - 1);
        return Err(Failure::new(Cause::CannotStart, message));
    }
    let cannot = |error| Failure::cannot("the guest cannot have the terminal", error);
    let window = Window::new().map_err(cannot)?;
    let output = rustix::stdio::stdout().as_fd().try_clone_to_owned().map_err(cannot)?;
    let keyboard = terminal.then(|| Keyboard::new(window.clone())).transpose().map_err(cannot)?;
    let (keyboard, input) = keyboard.unzip();
    let named = port.iter().map(open_port);
    let ports = std::iter::once(Ok(Port::streams("", input, output))).chain(named);
    Ok((Some(Console::new(ports.collect::<Result<_, _>>()?, window)), keyboard))
}

fn open_port(PortOption { name, end }: &PortOption) -> Result<Port, Failure> {
    let cannot = |path: &PathBuf| format!("`{}` cannot be the end of the port `{name}`", path.display());
    match end {
        End::File(path) => {
            let file = File::options().append(true).create(true).open(path);
            let file = file.map_err(|error| Failure::cannot(cannot(path), error))?;
            Ok(Port::streams(name, None, file.into()))
        }
        End::Socket(path) => {
            let listener = listen(path).map_err(|error| Failure::cannot(cannot(path), error))?;
            Ok(Port::listener(name, listener))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_a_name_and_an_end() {
        let port = |text: &str| text.parse::<PortOption>();
        let with = |name: &str, end| Ok(PortOption { name: name.into(), end });
        assert_eq!(port("log=a=b"), with("log", End::File("a=b".into())));
        assert_eq!(port("x=unix:/run/x"), with("x", End::Socket("/run/x".into())));
        for bad in ["", "log", "=a", "log=", "log=unix:", &format!("{}=a", "n".repeat(65))] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}

//! `hv run --core FILE`: what is left of a guest that crashes, for a debugger.
//!
//! The file is made before the monitor is locked down, for afterwards it can make none. It stays empty if the guest does not
//! crash.

use crate::failure::Failure;
use crate::report::Core;
use crate::units::show_size;
use crate::{images, output};
use hv_core::CoreDump;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

/// Guest memory from which on it is told how far the writing is.
const LARGE: u64 = 1 << 30;

/// A file that a core goes into, if there is one.
pub(crate) struct CoreFile {
    path: PathBuf,
    file: File,
}

impl CoreFile {
    /// Makes it, or empties it.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| {
            Failure::cannot(format!("the core file `{}` cannot be written", path.display()), error)
        })?;
        Ok(Self { path: path.into(), file })
    }

    /// Writes a core, and says what became of it.
    pub(crate) fn write(self, core: &CoreDump) -> Core {
        let progress = io::stderr().is_terminal();
        let mut last = u64::MAX;
        let written = core.write(&self.file, &mut |at, of| {
            let percent = at * 100 / of;
            if progress && of >= LARGE && percent != last {
                last = percent;
                let end = if at == of { "\n" } else { "" };
                output::tell(&format!("\rwriting {}: {percent} %{end}", self.path.display()));
            }
        });
        let file = self.path.to_string_lossy().into_owned();
        match written {
            Ok(bytes) => Core { file, bytes: Some(bytes), error: None },
            Err(error) => Core { file, bytes: None, error: Some(error.to_string()) },
        }
    }
}

impl Core {
    /// For people.
    pub(crate) fn text(&self, image: &Path) -> String {
        let file = &self.file;
        match (&self.error, self.bytes) {
            (Some(error), _) => {
                format!("error: the core could not be written to {file}, which is empty now: {error}\n")
            }
            (None, bytes) => {
                let size = show_size(bytes.unwrap_or(0));
                let image = match images::is_built_in(image) {
                    true => format!("the file of the image `{}`", image.display()),
                    false => image.display().to_string(),
                };
                format!(
                    "{file} has a core ({size} on disk); open it with gdb and {image}: gdb IMAGE {file}\n"
                )
            }
        }
    }
}

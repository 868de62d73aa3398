//! Writing to the user.
//!
//! `println!` and `eprintln!` panic when nobody reads on, as in `hv images | head -0`. A reader that has gone is
//! no error: nothing here panics, and only a full disk and the like is a [`Failure`].

use crate::failure::Failure;
use std::io::{self, ErrorKind, IsTerminal, Write};

/// Prints to standard output.
///
/// # Errors
///
/// That it could not be written, unless that is because its reader has gone.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::cannot("standard output could not be written", error))
        }
        _ => Ok(()),
    }
}

/// Prints to standard error, in one piece. If that fails there is nobody to tell.
pub(crate) fn tell(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Whether, and how, a text is coloured.
pub(crate) struct Style {
    coloured: bool,
}

impl Style {
    /// For standard error.
    pub(crate) fn stderr() -> Self {
        Self { coloured: io::stderr().is_terminal() && colours_wanted() }
    }

    /// For standard output.
    pub(crate) fn stdout() -> Self {
        Self { coloured: io::stdout().is_terminal() && colours_wanted() }
    }

    /// No colours.
    #[cfg(test)]
    pub(crate) fn plain() -> Self {
        Self { coloured: false }
    }

    /// Whether there are colours.
    pub(crate) fn coloured(&self) -> bool {
        self.coloured
    }

    /// Something bad.
    pub(crate) fn red(&self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// Something to look at.
    pub(crate) fn yellow(&self, text: &str) -> String {
        self.paint("33", text)
    }

    /// Something good.
    pub(crate) fn green(&self, text: &str) -> String {
        self.paint("32", text)
    }

    /// A heading.
    pub(crate) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// What the environment says: <https://no-color.org>, and terminals that know no colours.
fn colours_wanted() -> bool {
    let is = |name: &str, test: fn(&str) -> bool| std::env::var(name).is_ok_and(|value| test(&value));
    !is("NO_COLOR", |value| !value.is_empty()) && !is("TERM", |value| value == "dumb")
}

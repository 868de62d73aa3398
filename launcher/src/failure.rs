//! What `hv` could not do, and the one place that says so.

use crate::exit_code::Cause;
use crate::output::{self, Style};
use serde_json::json;
use std::error::Error;
use std::fmt::Write;

/// An error on its way to the user: what failed, why, what to do about it, and the exit code that it gives.
#[derive(Debug)]
pub(crate) struct Failure {
    cause: Cause,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    advice: Option<String>,
}

impl Failure {
    /// A failure without a source.
    pub(crate) fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), source: None, advice: None }
    }

    /// `hv` itself could not do it.
    pub(crate) fn cannot(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::new(Cause::CannotStart, message).because(source)
    }

    /// Adds what is behind it.
    pub(crate) fn because(self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    /// Adds what to do.
    pub(crate) fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// Tells it on standard error, as text or as one line of JSON, and gives the exit code.
    pub(crate) fn tell(&self, json: bool) -> u8 {
        output::tell(&if json { self.json() } else { self.text(&Style::stderr()) });
        self.cause.code()
    }

    /// It and what is behind it, in one line.
    pub(crate) fn brief(&self) -> String {
        std::iter::once(self.message.clone()).chain(self.reasons()).collect::<Vec<_>>().join(": ")
    }

    fn text(&self, style: &Style) -> String {
        let mut text = format!("{} {}\n", style.red("error:"), self.message);
        for reason in self.reasons() {
            writeln!(text, "  {} {reason}", style.bold("caused by:")).expect("a string takes it");
        }
        for line in self.advice.iter().flat_map(|advice| advice.lines()) {
            writeln!(text, "{line}").expect("a string takes it");
        }
        text
    }

    fn json(&self) -> String {
        let value = json!({
            "exit_code": self.cause.code(),
            "cause": self.cause,
            "error": self.message,
            "caused_by": self.reasons(),
            "advice": self.advice,
        });
        format!("{value}\n")
    }

    /// The chain of sources, outermost first.
    fn reasons(&self) -> Vec<String> {
        self.source.as_deref().map(|source| chain(source)).unwrap_or_default()
    }
}

/// What an error says, and what is behind it, outermost first.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut next = Some(error);
    let errors = std::iter::from_fn(|| {
        let error = next?;
        next = error.source();
        Some(error.to_string())
    });
    let mut told: Vec<String> = errors.collect();
    told.dedup(); // some say what is behind them as if it were their own
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn the_chain_and_the_advice_are_told() {
        let inner = io::Error::other("the disk is full");
        let failure = Failure::cannot("`x` could not be written", inner).advise("free some space");
        assert_eq!(
            failure.text(&Style::plain()),
            "error: `x` could not be written\n  caused by: the disk is full\nfree some space\n"
        );
    }
}

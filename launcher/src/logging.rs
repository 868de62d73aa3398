//! The log: for people who look into `hv` itself. It goes to standard error and is quiet unless `RUST_LOG` says
//! otherwise.

use crate::exit_code::Cause;
use crate::failure::Failure;
use crate::output::Style;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging.
///
/// # Errors
///
/// What `RUST_LOG` says cannot be read. Better told than ignored: somebody is looking for something.
pub(crate) fn start(format: LogFormat) -> Result<(), Failure> {
    let directives = std::env::var("RUST_LOG").unwrap_or_default();
    let directives = if directives.is_empty() { "warn" } else { &directives };
    let filter = EnvFilter::try_new(directives).map_err(|error| {
        Failure::new(Cause::CannotStart, format!("RUST_LOG is `{directives}`, which is no filter"))
            .because(error)
            .advise("write for example RUST_LOG=debug, or RUST_LOG=hv_core=trace")
    })?;
    // A log that cannot be written must not end a guest.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(Style::stderr().coloured())
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

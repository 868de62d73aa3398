//! `hv stats`: what running VMs did since their start, and what they hold.
//!
//! For people (`sheet`), as JSON, and for Prometheus: printed (`exposition`) or served (`endpoint`). This process asks the
//! VMs; a monitor knows nothing of any of these forms.
//!
//! Start at [`stats`].

mod endpoint;
mod exposition;
mod sheet;

pub(crate) use sheet::state_name;

use crate::cli::StatsOptions;
use crate::control::{Roster, Seen, commands};
use crate::failure::Failure;
use crate::output::{self, Style};
use hv_abi::device::kind;
use std::time::Duration;

/// How long VMs may take to say how they are, before they count as silent.
const PATIENCE: Duration = Duration::from_secs(1);

/// `hv stats`; gives the exit code.
///
/// # Errors
///
/// There is no such VM, or the address cannot be listened on.
pub(crate) fn stats(options: &StatsOptions) -> Result<u8, Failure> {
    if let Some(address) = options.serve {
        return endpoint::serve(address);
    }
    let text = match &options.name {
        Some(name) => of_one(name, options)?,
        None if options.prometheus => exposition::text(&Roster::open()?.look(PATIENCE)?),
        None => {
            let running = commands::running(&mut Roster::open()?)?;
            match (options.json, running.is_empty()) {
                (true, _) => commands::json(&running),
                (false, true) => "No VM is running; `hv run IMAGE` starts one.\n".into(),
                (false, false) => {
                    let sheets: Vec<_> =
                        running.iter().map(|vm| sheet::sheet(vm, &Style::stdout())).collect();
                    sheets.join("\n")
                }
            }
        }
    };
    output::print(&text)?;
    Ok(0)
}

fn of_one(name: &str, options: &StatsOptions) -> Result<String, Failure> {
    let status = commands::status_of(name)?;
    Ok(if options.json {
        commands::json(&status)
    } else if options.prometheus {
        exposition::text(&[Seen { name: status.name.clone(), status: Ok(Box::new(status)) }])
    } else {
        sheet::sheet(&status, &Style::stdout())
    })
}

/// What a device is, by its virtio device id.
pub(crate) fn device_name(id: u32) -> &'static str {
    match id {
        kind::NETWORK => "network",
        kind::BLOCK => "block",
        kind::CONSOLE => "console",
        kind::ENTROPY => "entropy",
        kind::BALLOON => "balloon",
        kind::VSOCK => "vsock",
        kind::FILE_SYSTEM => "fs",
        _ => "unknown",
    }
}

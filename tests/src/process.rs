//! This project's own hypervisor, with the process engine.

use crate::{Hypervisor, Outcome};
use hv_core::{Config, End, EngineKind, Image, Report, Vm};
use std::time::Duration;

/// hv's process engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process;

impl Hypervisor for Process {
    fn name(&self) -> &str {
        "process"
    }

    fn boot(&self, image: &'static [u8], arguments: &[String], limit: Duration) -> Outcome {
        let started = Image::parse(image).map_err(|error| error.to_string()).and_then(|image| {
            let config = Config {
                engine: EngineKind::Process,
                command_line: arguments.to_vec(),
                console: Box::new(std::io::sink()),
                ..Config::new(image)
            };
            Vm::start(config).map_err(|error| error.to_string())
        });
        match started {
            Err(cause) => Outcome::Faulted { cause, backtrace: Vec::new() },
            Ok(vm) => match vm.wait_timeout(limit) {
                Ok(report) => outcome(report),
                Err(vm) => Outcome::TimedOut { backtrace: backtrace(&vm.stop()) },
            },
        }
    }
}

fn outcome(report: Report) -> Outcome {
    let backtrace = backtrace(&report);
    match report.end {
        End::Shutdown { code: 0 } => Outcome::Passed,
        End::Panic { message, place } => Outcome::Failed {
            message,
            place: place.map(|place| format!("{}:{}:{}", place.file, place.line, place.column)),
        },
        other => Outcome::Faulted { cause: other.to_string(), backtrace },
    }
}

fn backtrace(report: &Report) -> Vec<String> {
    report.backtrace.iter().map(ToString::to_string).collect()
}

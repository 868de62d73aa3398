//! How a VM ended, and what is said of it then.

use crate::backtrace::StackFrame;
use crate::coredump::CoreDump;
use crate::cpu_share::Measured;
use crate::devices::DeviceStats;
use crate::engine::{Counters, Fault, Registers};
use crate::ledger::Bypass;
use core::fmt;
use serde::Serialize;

/// A place in a guest's source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Source file.
    pub file: String,
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "end")]
pub enum End {
    /// The guest shut itself down.
    Shutdown {
        /// Its exit code.
        code: u8,
    },
    /// The guest kernel gave up.
    Panic {
        /// What it said.
        message: String,
        /// Where in its source.
        place: Option<Place>,
    },
    /// A guest kernel's instruction did something that it cannot go on from.
    Crash {
        /// What.
        fault: Fault,
        /// What that probably was, if there is a telling sign.
        hint: Option<&'static str>,
    },
    /// A live page table was changed by a plain store: what [`Config::check_tables`](crate::Config::check_tables) looks for.
    TableBypass(Bypass),
    /// The host ended it from outside, at a stopping point.
    Stopped,
    /// The host wanted to stop it, and it came to no stopping point.
    Unanswered,
    /// Its guest code is gone, without a word.
    Died {
        /// What is known of that.
        reason: String,
    },
}

impl End {
    /// Whether it is a failure of the guest's, and no end that somebody wanted.
    pub(crate) fn is_failure(&self) -> bool {
        !matches!(self, Self::Shutdown { .. } | Self::Stopped)
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown { code } => write!(f, "the guest shut down with code {code}"),
            Self::Panic { message, place: None } => write!(f, "guest panic: {message}"),
            Self::Panic { message, place: Some(Place { file, line, column }) } => {
                write!(f, "guest panic at {file}:{line}:{column}: {message}")
            }
            Self::Crash { fault, hint: None } => write!(f, "guest crash: {fault}"),
            Self::Crash { fault, hint: Some(hint) } => write!(f, "guest crash: {fault}: {hint}"),
            Self::TableBypass(bypass) => bypass.fmt(f),
            Self::Stopped => f.write_str("the guest was stopped from outside"),
            Self::Unanswered => {
                f.write_str("the vCPU did not answer when it was asked to stop, and was ended")
            }
            Self::Died { reason } => write!(f, "the guest is gone: {reason}"),
        }
    }
}

/// What is said of a VM at its end.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How it ended.
    #[serde(flatten)]
    pub end: End,
    /// The vCPU that it ended on.
    pub vcpu: u32,
    /// That vCPU's registers; in a hypercall only RSP and RBP are known.
    pub registers: Registers,
    /// That vCPU's stack, innermost first. Empty after a shutdown: there is nothing to explain.
    pub backtrace: Vec<StackFrame>,
    /// What its crossings cost.
    pub counters: Counters,
    /// What its cap and weight came to, if it had either.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Measured>,
    /// What its devices did.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceStats>,
    /// All of it for a debugger, if [`Config::core`](crate::Config::core) asked for that and the guest has crashed.
    #[serde(skip)]
    pub core: Option<CoreDump>,
}

//! What the runner needs of a hypervisor.

use crate::Outcome;
use std::borrow::Cow;
use std::io::Write;
use std::time::Duration;

/// Boots machines. An implementation is for one engine of one hypervisor.
pub trait Hypervisor: Sync {
    /// Its name, for reports.
    fn name(&self) -> &str;

    /// Boots a fresh VM, and waits for its end. What the guest writes is written to `console`, before the call that
    /// wrote it returns.
    fn boot(&self, machine: Machine, console: Box<dyn Write + Send>) -> End;
}

/// A machine that is to be booted.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The image, which may be a bad one.
    pub image: Cow<'static, [u8]>,
    /// The guest's arguments.
    pub arguments: Vec<String>,
    /// Bytes of guest-physical memory.
    pub memory: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// The ramdisk; none if it is empty.
    pub ramdisk: Vec<u8>,
    /// What is typed on its console, in pieces: each comes once the guest has read and found nothing, and so does the end
    /// behind the last. `None`: nobody can type.
    pub typed: Option<Vec<Vec<u8>>>,
    /// How many bytes its balloon is asked to hold, one after the other: each once it holds as many as it was asked to.
    pub balloon: Vec<u64>,
    /// It is ended after this time if it has not ended by then.
    pub limit: Duration,
    /// It is stopped and goes on, again and again, for as long as it runs.
    pub pauses: bool,
    /// At most so many percent of one host processor; `None`: as many as there are.
    pub cpu_cap: Option<u32>,
    /// Its devices, in the order of the guest's table.
    pub devices: Vec<Device>,
}

/// A device that a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// A source of random bytes.
    Entropy,
    /// A disk that can be written, and what it holds at first: sectors of 512 bytes.
    Disk(Vec<u8>),
}

impl Device {
    /// What the tests of chapter DEVICE get: an entropy source and a disk of 64 sectors, in which each byte is its sector's
    /// number.
    pub fn for_tests() -> Vec<Self> {
        vec![Self::Entropy, Self::Disk((0..64).flat_map(|sector| [sector; 512]).collect())]
    }
}

impl Machine {
    /// A machine with 64 MiB of memory, four vCPUs, no devices, and nothing unusual.
    pub fn new(image: impl Into<Cow<'static, [u8]>>, arguments: &[&str], limit: Duration) -> Self {
        Self {
            image: image.into(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            memory: 64 << 20,
            vcpus: 4,
            ramdisk: Vec::new(),
            typed: None,
            balloon: Vec::new(),
            limit,
            pauses: false,
            cpu_cap: None,
            devices: Vec::new(),
        }
    }
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It did not start; what was said of that.
    Refused(String),
    /// The guest shut down.
    Shutdown {
        /// Its exit code.
        code: u8,
    },
    /// The guest panicked.
    Panic {
        /// The message.
        message: String,
        /// `file:line:column`, if the guest said.
        place: Option<String>,
    },
    /// The guest crashed.
    Crash(Crash),
    /// The limit has passed.
    TimedOut {
        /// Processor time that its guest code has had.
        cpu_time: Duration,
        /// Where it was.
        backtrace: Vec<String>,
    },
    /// Any other way: what is known of it.
    Gone(String),
}

/// What a crash report says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// What happened, for people.
    pub cause: String,
    /// Where: RIP.
    pub rip: u64,
    /// The address that was used, for a page fault.
    pub address: Option<u64>,
    /// The guest's stack, innermost first.
    pub backtrace: Vec<String>,
}

/// As the outcome of a test whose VM should have shut down with code 0.
impl From<End> for Outcome {
    fn from(end: End) -> Self {
        let faulted = |cause: String| Self::Faulted { cause, backtrace: Vec::new() };
        match end {
            End::Shutdown { code: 0 } => Self::Passed,
            End::Shutdown { code } => faulted(format!("the guest shut down with code {code}")),
            End::Panic { message, place } => Self::Failed { message, place },
            End::Crash(Crash { cause, backtrace, .. }) => Self::Faulted { cause, backtrace },
            End::TimedOut { backtrace, .. } => Self::TimedOut { backtrace },
            End::Refused(cause) => faulted(format!("the VM did not start: {cause}")),
            End::Gone(cause) => faulted(cause),
        }
    }
}

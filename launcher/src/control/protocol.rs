//! What is said over a control socket: a line of JSON for a request, a line for its answer (`docs/control.md`).
//!
//! Whoever is on the other end may be of another version, or say anything at all: lines are of bounded length, and what
//! cannot be read gets an answer that says so.

use hv_core::devices::DeviceStats;
use hv_core::engine::{Counters, SpaceCounts};
use hv_core::handle::VcpuStats;
use serde::{Deserialize, Serialize};

/// The version of the protocol that is spoken here. Within one, fields are added and nothing is taken away.
pub(super) const VERSION: u32 = 1;

/// No request is longer, its end of line included.
pub(super) const LONGEST_REQUEST: usize = 4096;

/// No answer is longer.
pub(super) const LONGEST_ANSWER: usize = 64 << 10;

/// No line of a stream is longer.
pub(super) const LONGEST_LINE: u64 = 1 << 20;

/// A request: what is wanted, and how it was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub version: u32,
    #[serde(flatten)]
    pub wanted: Wanted,
}

/// What can be wanted of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Wanted {
    /// To tell how it is.
    Status,
    /// To stop at a stopping point, and wait. Answered once it has.
    Pause,
    /// To run on.
    Resume,
    /// To end, at a stopping point. Answered at once; the connection ends when the VM is gone.
    Stop,
    /// To ask the guest to give up so many bytes. Answered at once; the status says how far it is.
    Balloon { bytes: u64 },
    /// To tell each crossing from now on. Answered by a stream.
    Trace,
    /// To tell where vCPUs are, so often a second. Answered by a stream.
    Profile { frequency: u32 },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Answer {
    pub version: u32,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// It was done.
    Done,
    Status(Box<Status>),
    /// It was not, and why.
    Error(String),
}

impl Outcome {
    /// One line of JSON.
    pub(super) fn into_line(self) -> String {
        let answer = Answer { version: VERSION, outcome: self };
        let json = serde_json::to_string(&answer).expect("numbers and texts are JSON");
        format!("{json}\n")
    }
}

/// How a VM is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) name: String,
    /// Of its monitor, the process of `hv run`.
    pub(crate) pid: u32,
    /// As `hv run` was told.
    pub(crate) image: String,
    pub(crate) state: State,
    pub(crate) vcpus: u32,
    /// Guest-physical memory, in bytes.
    pub(crate) memory: u64,
    /// Bytes of that which the host holds.
    pub(crate) resident: u64,
    /// Bytes that the guest has reported free.
    pub(crate) reported: u64,
    /// Bytes that its balloon holds, and what it was asked to hold.
    pub(crate) ballooned: u64,
    pub(crate) balloon_target: u64,
    /// Since it was started.
    pub(crate) up_ns: u64,
    /// Processor time of the monitor.
    pub(crate) monitor_cpu_ns: u64,
    /// Processor time of its sandboxes, those that have gone included.
    pub(crate) sandbox_cpu_ns: u64,
    /// Of all vCPUs together.
    pub(crate) counters: Counters,
    /// For how long its guest code was held back, to keep its share of the processors.
    #[serde(default)]
    pub(crate) held_back_ns: u64,
    /// What was done for its address spaces.
    #[serde(default)]
    pub(crate) spaces: SpaceCounts,
    /// Each of its vCPUs; which calls they made is told of all together only.
    #[serde(default)]
    pub(crate) vcpu_stats: Vec<VcpuStats>,
    /// Its devices, in the order of the guest's table.
    #[serde(default)]
    pub(crate) devices: Vec<DeviceStats>,
}

impl Status {
    /// One with something of everything.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        use hv_core::handle::VcpuState;
        let vcpu = |state| VcpuStats {
            state,
            steal_ns: 5_000_000,
            kernel_cpu_ns: 1_000_000,
            monitor_cpu_ns: 2_000_000,
            counters: Counters { hypercalls: 10, traps: 4, ..Counters::default() },
        };
        Self {
            name: "a".into(),
            pid: 4711,
            image: "./a\x1b[2Jb".into(),
            state: State::Paused,
            vcpus: 2,
            memory: 64 << 20,
            resident: 4096,
            reported: 8192,
            ballooned: 1 << 20,
            balloon_target: 2 << 20,
            up_ns: 200_000_000_000,
            monitor_cpu_ns: 1_000_000,
            sandbox_cpu_ns: 2_000_000,
            counters: Counters { hypercalls: 20, traps: 8, ..Counters::default() },
            held_back_ns: 3_000_000,
            spaces: SpaceCounts { shadow_hits: 3, shadow_misses: 1, ..SpaceCounts::default() },
            vcpu_stats: vec![vcpu(VcpuState::Running), vcpu(VcpuState::Blocked)],
            devices: vec![DeviceStats {
                kind: hv_abi::device::kind::BLOCK,
                requests: 7,
                ..DeviceStats::default()
            }],
        }
    }

    /// Processor time of all its processes.
    pub(crate) fn cpu_ns(&self) -> u64 {
        self.monitor_cpu_ns + self.sandbox_cpu_ns
    }
}

/// Whether a VM runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Running,
    Paused,
}

impl State {
    /// As it is shown.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

/// Reads a request out of a line.
pub(super) fn parse(line: &[u8]) -> Result<Wanted, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let unreadable = |error: serde_json::Error| {
        format!(
            "expected a request such as {{\"version\":{VERSION},\"request\":\"status\"}}, found something else: {error}"
        )
    };
    // The version first: what a request of another looks like is not known.
    let Version { version } = serde_json::from_slice(line).map_err(unreadable)?;
    if version != VERSION {
        return Err(format!(
            "expected version {VERSION} of the protocol, found {version}: use the hv that runs this VM"
        ));
    }
    serde_json::from_slice(line).map(|Request { wanted, .. }| wanted).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_look_as_the_document_says() {
        for (wanted, line) in [
            (Wanted::Status, r#"{"version":1,"request":"status"}"#),
            (Wanted::Pause, r#"{"version":1,"request":"pause"}"#),
            (Wanted::Resume, r#"{"version":1,"request":"resume"}"#),
            (Wanted::Stop, r#"{"version":1,"request":"stop"}"#),
            (Wanted::Trace, r#"{"version":1,"request":"trace"}"#),
            (Wanted::Profile { frequency: 99 }, r#"{"version":1,"request":"profile","frequency":99}"#),
            (Wanted::Balloon { bytes: 33_554_432 }, r#"{"version":1,"request":"balloon","bytes":33554432}"#),
        ] {
            assert_eq!(serde_json::to_string(&Request { version: VERSION, wanted }).unwrap(), line);
            assert_eq!(parse(line.as_bytes()), Ok(wanted));
        }
        let with_more = br#"{"version":1,"request":"stop","why":"a field of a later hv's"}"#;
        assert_eq!(parse(with_more), Ok(Wanted::Stop));
    }

    #[test]
    fn answers_look_as_the_document_says() {
        assert_eq!(Outcome::Done.into_line(), "{\"version\":1,\"done\":null}\n");
        assert_eq!(Outcome::Error("no".into()).into_line(), "{\"version\":1,\"error\":\"no\"}\n");
        for outcome in [Outcome::Done, Outcome::Error("no".into())] {
            let read: Answer = serde_json::from_str(&outcome.clone().into_line()).unwrap();
            assert_eq!(read, Answer { version: VERSION, outcome });
        }
    }

    #[test]
    fn the_longest_status_is_no_longer_than_an_answer_may_be() {
        let greatest = |of: serde_json::Value| -> serde_json::Value {
            let fields = of.as_object().expect("an object").clone().into_iter();
            fields.map(|(name, value)| (name, if value.is_u64() { u64::MAX.into() } else { value })).collect()
        };
        let mut status: serde_json::Value = serde_json::to_value(Status::example()).unwrap();
        let calls: serde_json::Map<_, _> = hv_core::engine::CallCounts::default()
            .named()
            .map(|(name, _)| (name.to_string(), u64::MAX.into()))
            .collect();
        let mut counters = greatest(status["counters"].clone());
        counters["trap_kinds"] = greatest(counters["trap_kinds"].clone());
        let mut vcpu = greatest(status["vcpu_stats"][0].clone());
        vcpu["counters"] = counters.clone();
        counters["calls"] = calls.into();
        let device = greatest(status["devices"][0].clone());
        status = greatest(status);
        status["counters"] = counters;
        status["spaces"] = greatest(status["spaces"].clone());
        status["vcpu_stats"] = vec![vcpu; 64].into();
        status["devices"] = vec![device; hv_abi::device::DEVICES_MAX as usize].into();
        let path = "\u{1}".repeat(256); // in JSON it is six times as long
        (status["name"], status["image"]) = ("n".repeat(64).into(), path.into());
        let length = status.to_string().len();
        assert!(length + 100 < LONGEST_ANSWER, "{length} bytes");
    }

    #[test]
    fn what_is_no_request_is_told_what_one_is() {
        let lines: [&[u8]; 7] = [
            b"",
            b"garbage",
            b"{}",
            b"[]",
            b"\xff\xfe",
            br#"{"version":1}"#,
            br#"{"version":1,"request":"explode"}"#,
        ];
        for line in lines {
            let told = parse(line).unwrap_err();
            assert!(told.contains(r#"{"version":1,"request":"status"}"#), "{told}");
        }
        let told = parse(br#"{"version":2,"request":["of","another","kind"]}"#).unwrap_err();
        assert!(told.contains("expected version 1 of the protocol, found 2"), "{told}");
    }
}

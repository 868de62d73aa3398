//! The conformance suite of the ABI, and a runner for it and for other test images.
//!
//! A test is of one of two kinds. One is made in a guest, which lists it in itself (`hv_abi::testing`) and gets a fresh
//! VM for it: shutdown with code 0 is a pass, a guest panic a failure with message and place, anything else a fault. The
//! other, a scenario, is made on the host, for what a guest cannot see: images that are refused, the console, ends.
//!
//! The suite's image, `sample-guests/guests/conformance`, depends on `hv-abi` and `guest-sdk` only, and the runner
//! reaches a hypervisor through [`Hypervisor`] only, so it can judge another one. Which test is of which clause of
//! `docs/abi.md` is in `docs/conformance.md`: [`coverage`].
//!
//! Start at [`Suite::conformance`] and [`run`]; `hv test` is [`Options::run`]. Files under `tests/` boot real guests for
//! what is not the ABI's.

#![forbid(unsafe_code)]

pub mod coverage;
mod hv;
mod hypervisor;
mod options;
pub mod patch;
pub mod report;
mod runner;
mod scenarios;
mod suite;

pub use hv::{Hv, engine_of_environment};
pub use hypervisor::{Crash, Device, End, Hypervisor, Machine};
pub use options::{Options, RunError};
pub use runner::{Outcome, Verdict, run};
pub use scenarios::{Judgement, Stand};
pub use suite::{Case, Kind, Suite, SuiteError};

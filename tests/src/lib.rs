//! A runner for test images: guests that list their tests in themselves (`hv_abi::testing`).
//!
//! Each test gets a fresh VM. What it found out comes as the way the VM ended, never as console text: shutdown with
//! code 0 is a pass, a guest panic a failure with message and place, anything else a fault.
//!
//! The conformance suite of the ABI is such an image, `sample-guests/guests/conformance`, and depends on `hv-abi` and
//! `guest-sdk` only. The runner reaches a hypervisor through [`Hypervisor`], so it can judge another one.
//!
//! Start at [`Suite::from_image`] and [`run`]; `hv test` is [`Options::run`]. Files under `tests/` boot real guests for what a guest cannot see.

#![forbid(unsafe_code)]

mod hypervisor;
mod options;
mod process;
pub mod report;
mod runner;
mod suite;

pub use hypervisor::{Hypervisor, Outcome};
pub use options::{Options, RunError};
pub use process::Process;
pub use runner::{Verdict, run};
pub use suite::{Case, Suite, SuiteError};

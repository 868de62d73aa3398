#![doc = include_str!("../README.md")]

pub mod backtrace;
mod boot;
mod calls;
pub mod clock;
pub mod config;
pub mod console_input;
pub mod coredump;
mod cpu;
mod cpu_clock;
pub mod cpu_share;
pub mod debug;
pub mod devices;
mod dispatch;
pub mod engine;
mod events;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod handle;
pub mod image;
mod ledger;
pub mod memory;
mod mmu;
pub mod net;
mod presence;
pub mod profile;
pub mod report;
mod shared;
mod symbols;
pub mod trace;
mod user;
mod vcpu;
mod vcpus;
pub mod view;
pub mod vm;
mod watched;

pub use config::{Breakpoints, Config, StartError};
pub use console_input::ConsoleInput;
pub use coredump::CoreDump;
pub use cpu_share::CpuShare;
pub use devices::DeviceConfig;
pub use engine::EngineKind;
pub use handle::VmHandle;
pub use image::{Image, ImageError};
pub use presence::MemoryStats;
pub use report::{End, Report};
pub use vm::Vm;

use hv_abi::Features;

/// Makes what every VM of this process needs, ahead of the first one: the file that sandboxes are started from, and
/// the measurement of the time-stamp counter. Calling it early makes the first [`Vm::start`] faster. It starts no
/// thread, so a program can lock itself down afterwards; it must call this before if that takes its files away.
///
/// # Errors
///
/// What the host says when it refuses a file.
pub fn prepare() -> std::io::Result<()> {
    clock::prepare();
    engine::kvm::prepare();
    engine::process::prepare()
}

/// What this hypervisor serves of the ABI.
pub fn offered_features() -> Features {
    Features::EVENTS
        | Features::MULTICALL
        | Features::MMU
        | Features::SMP
        | Features::PAGE_REPORTING
        | Features::DEVICES
        | Features::CONSOLE_INPUT
        | Features::TRACE
}

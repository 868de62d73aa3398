//! How fast KVM is here, and so whether it is the processor's: tried, for nothing says so.
//!
//! Some hosts have a KVM that is software: it answers, and emulates each instruction of ring 0. A few thousand instructions tell.
//!
//! Start at [`probe`].

use super::host::{NoKvm, host, refused};
use super::kick;
use super::layout::port;
use super::{Virtual, registers};
use crate::cpu_share::Gate;
use crate::engine::{EngineError, Registers, Setup};
use crate::events::VcpuPages;
use crate::memory::GuestMemory;
use kvm_ioctls::VcpuExit;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Instructions, and writes to a port, that are timed.
const INSTRUCTIONS: u64 = 8_192;
const EXITS: u32 = 64;
/// What a processor of today does not take for one, nor an emulator that translates: 20 ns.
const SLOW: Duration = Duration::from_nanos(20);

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// One instruction of ring 0, on average.
    pub instruction: Duration,
    /// Leaving the guest for the monitor, and going back: the median.
    pub exit: Duration,
}

impl Probe {
    /// Whether guest kernels run on the processor itself, or nearly.
    pub fn is_hardware(&self) -> bool {
        self.instruction < SLOW
    }
}

/// Times KVM on this host, once.
///
/// # Errors
///
/// Why it cannot be used.
pub fn probe() -> Result<Probe, &'static EngineError> {
    static PROBE: OnceLock<Result<Probe, EngineError>> = OnceLock::new();
    PROBE.get_or_init(measure).as_ref().copied()
}

fn measure() -> Result<Probe, EngineError> {
    kick::prepare();
    let failed = |what| move |source| EngineError::Host { what, source };
    let memory = GuestMemory::new(2 << 20).map_err(failed("making memory to try KVM with"))?;
    let pages = Arc::new(VcpuPages::new(1).map_err(failed("making pages to try KVM with"))?);
    let setup = Setup {
        memory: &memory,
        pages: &pages,
        mappings: &[],
        gate: &Arc::new(Gate::new()),
        rewrite: false,
        kernel_root: None,
        sees_entries: false,
    };
    let vm = Virtual::new(host()?, &setup)?;
    let entry = vm.machine.header().probe;
    let mut fd = vm.vm.create_vcpu(0).map_err(refused("a virtual processor"))?;
    let first = Registers {
        rip: entry,
        rdi: INSTRUCTIONS / 2,
        rsi: u64::from(EXITS) + 1,
        rflags: 2,
        ..Registers::default()
    };
    registers::begin(&vm, 0, &fd, &first)?;
    let start = Instant::now();
    leave(&mut fd)?;
    let instruction = start.elapsed() / INSTRUCTIONS as u32;
    let mut exits = Vec::new();
    for _ in 0..EXITS {
        let start = Instant::now();
        leave(&mut fd)?;
        exits.push(start.elapsed());
    }
    exits.sort();
    Ok(Probe { instruction, exit: exits[exits.len() / 2] })
}

/// Runs until it writes to its port.
fn leave(fd: &mut kvm_ioctls::VcpuFd) -> Result<(), NoKvm> {
    match fd.run() {
        Ok(VcpuExit::IoOut(port::PROBE, _)) => Ok(()),
        Ok(_) => Err(NoKvm::Lacks("the simplest of guests: it ran, and did not do what it should")),
        Err(error) => Err(refused("to run a guest")(error)),
    }
}

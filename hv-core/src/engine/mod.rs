//! Engines: the ways in which guest code is run.
//!
//! An `Engine` puts a guest kernel's address space somewhere and runs its vCPUs; everything else (hypercalls,
//! events, time) is the same for all engines and lives outside. Start at `Control`, what an engine gives.

mod counters;
pub mod kvm;
pub(crate) mod process;
mod tally;

pub(crate) use counters::CALL_KINDS;
pub use counters::{CallCounts, Counters, SpaceCounts, TrapCounts};

use crate::cpu_share::Gate;
use crate::events::{Notify, VcpuPages};
use crate::memory::GuestMemory;
use core::fmt;
use hv_abi::Status;
use hv_abi::user::UserContext;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Which engine runs a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// The fastest that works on this host.
    #[default]
    Auto,
    /// Deprivileged host processes; works on any x86-64 Linux.
    Process,
    /// The processor's virtualisation, through `/dev/kvm`.
    Kvm,
}

/// Why an engine could not start a VM.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A file, mapping, thread or process could not be made.
    #[error("{what}")]
    Host {
        /// What the engine was doing.
        what: &'static str,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
    /// A mapping command failed in a sandbox.
    #[error("the host refused a mapping in the sandbox: command {command} of its set-up, {error}")]
    Mapping {
        /// Index of the command in its batch.
        command: usize,
        /// The host's error.
        error: std::io::Error,
    },
    /// KVM cannot be used, or refused something: why.
    #[error("{0}")]
    NoKvm(String),
    /// The sandbox ended before the guest's first instruction.
    #[error("the sandbox process ended during set-up: {how}; `hv doctor` says what this host allows")]
    SandboxDied {
        /// How it ended.
        how: String,
    },
}

/// A part of guest-physical memory, mapped in the guest kernel's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub virt: u64,
    pub phys: u64,
    pub length: u64,
    pub write: bool,
    pub execute: bool,
}

/// What an engine is to run.
pub(crate) struct Setup<'a> {
    pub memory: &'a GuestMemory,
    pub pages: &'a Arc<VcpuPages>,
    pub mappings: &'a [Mapping],
    /// Open while guest code may run.
    pub gate: &'a Arc<Gate>,
    /// Whether system calls of programs may be made jumps.
    pub rewrite: bool,
    /// The guest kernel's own root page table, if it has one.
    pub kernel_root: Option<u64>,
    /// The monitor is to see each entry of a program, not only those that it must.
    pub sees_entries: bool,
}

/// What [`EngineKind::Auto`] is on this host.
pub fn automatic() -> EngineKind {
    let on_kvm = kvm::probe().is_ok_and(|probe| probe.is_hardware());
    if on_kvm { EngineKind::Kvm } else { EngineKind::Process }
}

/// The engine for a VM. One that is to be held by a debugger is for the process engine.
pub(crate) fn choose(kind: EngineKind, debug: bool) -> Result<&'static dyn Engine, EngineError> {
    let on_kvm = match kind {
        EngineKind::Process => false,
        EngineKind::Auto => !debug && automatic() == EngineKind::Kvm,
        EngineKind::Kvm if debug => {
            let why =
                "gdb holds guests of the process engine alone: leave the engine to hv, or name that one";
            return Err(EngineError::NoKvm(why.into()));
        }
        EngineKind::Kvm => true,
    };
    Ok(if on_kvm { &kvm::KvmEngine } else { &process::ProcessEngine })
}

/// Runs VMs.
pub(crate) trait Engine {
    /// Extended state that its guests have: bytes of an area with all of it, and its components.
    fn xstate(&self) -> (u64, u64);

    /// Makes the guest kernel's address space. No vCPU runs yet.
    fn start(&self, setup: &Setup<'_>) -> Result<Arc<dyn Control>, EngineError>;
}

/// One vCPU, run by one thread of the monitor.
pub(crate) trait VcpuRunner: Send {
    /// Runs guest code until something needs the monitor, or until `deadline` on the host's monotonic clock.
    fn run(&mut self, deadline: u64) -> Exit;

    /// Answers the hypercall that the last [`Exit::Hypercall`] reported. [`run`](Self::run) goes on with it.
    fn answer(&mut self, status: Status, value: u64);

    /// Goes on after [`Exit::Trap`], [`Exit::Stopped`] or [`Exit::Sampled`], with what the guest was doing.
    fn resume(&mut self);

    /// Readies the user program of the last [`Exit::EnterUser`], whose context is at P `context`:
    /// [`run`](Self::run) goes on with it, until [`Exit::User`]; then the exit is to be [answered](Self::answer).
    fn enter_user(&mut self, root: u64, context: u64, user: &UserContext) -> Result<(), EnterError>;

    /// Sleeps in the hypercall being answered, until `ready`, at `deadline` on the host's monotonic clock, or earlier. Whoever
    /// makes `ready` true calls [`Notify::pending`] or [`Control::request_stop`] afterwards.
    fn sleep_in_call(&mut self, deadline: u64, ready: &mut dyn FnMut() -> bool);

    /// Whether its guest code is gone.
    fn has_died(&self) -> bool;

    /// Ends the vCPU's guest code, in the hypercall being answered: it may be started anew.
    fn park(&mut self);

    /// Registers at the hypercall being answered: RIP is not known, RSP and RBP are.
    fn registers_in_call(&self) -> Registers;

    /// The host's thread that runs the vCPU's guest code, if it goes on now.
    fn guest_thread(&self) -> Option<i32>;

    /// Changes what the guest kernel goes on with after [`Exit::Trap`] or [`Exit::Stopped`].
    fn set_registers(&mut self, registers: &Registers);

    /// The x87 and SSE registers, as `FXSAVE` has them, of what gave the last [`Exit::Trap`], [`Exit::Stopped`] or
    /// [`Exit::User`]: a claim. `None` if they are not in memory.
    fn fx_state(&self) -> Option<[u64; 64]>;
}

/// What a vCPU's calls want of an engine: what it keeps of page tables and user programs, and is to be told of.
pub(crate) trait AddressSpaces: Send + Sync {
    /// A vCPU waits for what another does: lets that run first, if it waits for a processor.
    fn yield_to(&self, vcpu: u32);

    /// An entry of a page table, at P `entry`, has changed. Programs may use the old one until they are entered again, or
    /// until [`flush`](Self::flush).
    fn entry_changed(&self, entry: u64);

    /// Brings all translations up to date that have changed so far.
    fn flush(&self);

    /// Brings those of the guest kernel's own root up to date.
    fn flush_kernel(&self);

    /// A page is a root now.
    fn root_created(&self, root: u64);

    /// A root is one no more; the engine forgets it. Not, and gives `false`, if a vCPU is in user mode under it.
    fn forget_root(&self, root: u64) -> bool;

    /// Lets go of the user context at P `context`: its extended state goes to guest memory, unless what is there counts.
    /// Whether the engine held it.
    fn release_user(&self, context: u64) -> bool;

    /// A device has written frames that are [watched](crate::watched): no program goes on with what they were.
    fn frames_written(&self);
}

/// Reaches a running VM from other threads.
pub(crate) trait Control: Notify + AddressSpaces {
    /// Readies a vCPU for its first instruction, in the guest kernel. It is not started, or has been
    /// [parked](VcpuRunner::park).
    fn start_vcpu(
        self: Arc<Self>,
        vcpu: u32,
        registers: &Registers,
    ) -> Result<Box<dyn VcpuRunner>, EngineError>;

    /// Asks a vCPU to stop at its next stopping point; it then gives [`Exit::Stopped`], or is found to be in a
    /// hypercall. To be repeated until it did.
    fn request_stop(&self, vcpu: u32);

    /// Takes the request back, also one of a sample.
    fn cancel_stop(&self, vcpu: u32);

    /// Whether a vCPU does something, as it says: it does not sleep, and is started.
    fn computes(&self, vcpu: u32) -> bool;

    /// Interrupts a vCPU, to see where it is: its guest kernel gives [`Exit::Stopped`], its program [`Exit::Sampled`], or it is
    /// found to be in a hypercall. It may be missed.
    fn request_sample(&self, vcpu: u32);

    /// Ends all guest code. It may still be ending when this returns.
    fn kill(&self);

    /// Waits until nothing of the guest is left on the host, after [`kill`](Self::kill).
    fn wait_until_gone(&self);

    /// Processor time, in nanoseconds, that a vCPU's guest code has had; `None` when it is gone.
    fn cpu_time(&self, vcpu: u32) -> Option<u64>;

    /// How often, and for how long, a vCPU crossed and span, so far.
    fn counters(&self, vcpu: u32) -> Counters;

    /// What was done for its address spaces, so far.
    fn space_counts(&self) -> SpaceCounts;

    /// For how long guest code was held back, so far.
    fn held_back(&self) -> Duration;

    /// Processor time, in nanoseconds, of all host processes that carry the VM's guest code or have carried it, whatever
    /// they did. A guest cannot forge it.
    fn total_cpu_time(&self) -> u64;

    /// Keeps all of them from running, those that are yet to start, too, or lets them run. A guest cannot evade it.
    fn hold_back(&self, held_back: bool);

    /// Nanoseconds for which a vCPU's guest code was ready to run and had no host processor.
    fn run_delay(&self, vcpu: u32) -> u64;

    /// Host processes that carry the VM's guest code.
    fn processes(&self) -> Vec<u32>;
}

/// Why a vCPU came back to the monitor.
#[derive(Debug)]
pub(crate) enum Exit {
    Hypercall {
        number: u32,
        arguments: [u64; 5],
    },
    /// Guest code did something that it cannot go on from by itself.
    Trap(Trap),
    /// It has stopped, as it was asked to, and would go on with these.
    Stopped(Registers),
    /// It was found in `block`, stopped as it was asked to.
    StoppedInBlock,
    /// The guest kernel wants to run a user program: under the root, from the context, at these P.
    EnterUser {
        root: u64,
        context: u64,
    },
    /// The user program that was entered has come back.
    User(UserExit),
    /// The user program that runs was [to be seen](Control::request_sample), and goes on when it is [resumed](VcpuRunner::resume).
    Sampled {
        root: u64,
        registers: Registers,
    },
    Deadline,
    /// Guest code is gone: the reason.
    Died(String),
}

/// How a user program came back, with its registers.
#[derive(Debug)]
pub(crate) struct UserExit {
    /// P of its context: the one that it was entered with, by the monitor or by its guest kernel.
    pub context: u64,
    pub cause: UserCause,
    pub registers: Registers,
}

/// Why a user program came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserCause {
    SystemCall,
    /// Its page tables do not allow it.
    PageFault {
        address: u64,
        access: Access,
    },
    Exception {
        vector: u64,
    },
    /// It did nothing; its vCPU is wanted.
    Interrupted,
    /// Its address space is gone.
    Killed,
}

/// Why a user program cannot be entered.
#[derive(Debug)]
pub(crate) enum EnterError {
    /// The engine does not hold its extended state, and the context says that it does.
    NoExtendedState,
    /// Its address space could not be made.
    Engine(EngineError),
}

/// What a guest's instruction did, and where.
#[derive(Clone, Debug)]
pub struct Trap {
    /// What it did.
    pub fault: Fault,
    /// The registers before it.
    pub registers: Registers,
}

/// Something that a guest kernel's instruction did that it cannot go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Fault {
    /// It used an address that is not mapped, or not mapped for that.
    PageFault {
        /// The address.
        address: u64,
        /// What it wanted.
        access: Access,
    },
    /// A processor exception.
    Exception {
        /// Its vector.
        vector: u64,
        /// Its error code.
        error: u64,
    },
    /// It made a host system call instead of a hypercall.
    SystemCall {
        /// The number, in EAX.
        number: u32,
    },
    /// It left 64-bit user mode.
    Selector {
        /// The code selector that was found.
        cs: u16,
    },
    /// It ran the engine's own code where that cannot be run.
    InEngine {
        /// Which signal the host raised.
        signal: i32,
        /// Address that it used.
        address: u64,
    },
}

/// What a page fault wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// To read data.
    Read,
    /// To write data.
    Write,
    /// To fetch an instruction.
    Execute,
}

/// A guest's registers: in memory, those that a `UserContext` begins with.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
#[expect(missing_docs, reason = "their names are the processor's")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub fs_base: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::PageFault { address, access } => {
                let verb = match access {
                    Access::Read => "reading",
                    Access::Write => "writing",
                    Access::Execute => "executing",
                };
                write!(f, "page fault {verb} address {address:#x}")
            }
            Self::Exception { vector, error } => {
                let name = match vector {
                    0 => "divide error (#DE)",
                    1 => "debug exception (#DB)",
                    3 => "breakpoint (#BP)",
                    4 => "overflow (#OF)",
                    5 => "bound range exceeded (#BR)",
                    6 => "illegal instruction (#UD)",
                    12 => "stack fault (#SS)",
                    13 => "general protection fault (#GP)",
                    16 => "x87 floating-point error (#MF)",
                    17 => "alignment check (#AC)",
                    19 => "SIMD floating-point error (#XM)",
                    _ => return write!(f, "exception {vector}, error code {error:#x}"),
                };
                match error {
                    0 => f.write_str(name),
                    _ => write!(f, "{name}, error code {error:#x}"),
                }
            }
            Self::SystemCall { number } => write!(
                f,
                "direct system call {number}: guests make hypercalls, the host's system calls are not theirs"
            ),
            Self::Selector { cs } => {
                write!(f, "code selector {cs:#x}: guests run 64-bit code only, with selector 0x33")
            }
            Self::InEngine { signal, address } => write!(
                f,
                "the engine's own code failed (signal {signal}, address {address:#x}): a hypercall entry was \
                 called with a wrong GS base or stack, or jumped into"
            ),
        }
    }
}

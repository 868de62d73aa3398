//! How a VM is to be, and why one did not start.

use crate::cpu_share::CpuShare;
use crate::devices::DeviceConfig;
use crate::engine::{EngineError, EngineKind};
use crate::image::Image;
use hv_abi::address::{MAX_MEMORY, MAX_VCPUS};
use hv_abi::device::DEVICES_MAX;
use hv_abi::{Features, PAGE_SIZE};
use std::io::Write;

/// What becomes of an `int3` in the guest kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Breakpoints {
    /// It ends the VM, like any exception.
    #[default]
    Crash,
    /// It is counted as a trap, and the guest goes on.
    Continue,
}

/// How a VM is to be.
pub struct Config {
    /// The guest.
    pub image: Image,
    /// Guest-physical memory, in bytes; a multiple of 4096. Default 64 MiB.
    pub memory: u64,
    /// Virtual processors, 1 to 64; more than the host has is allowed. Only vCPU 0 runs at first: a guest starts the others.
    /// Default 1.
    pub vcpus: u32,
    /// Which engine runs it.
    pub engine: EngineKind,
    /// The guest's arguments.
    pub command_line: Vec<String>,
    /// A file that the guest finds in its memory.
    pub ramdisk: Vec<u8>,
    /// Where the guest's console goes. Default: standard output. After the first error it is not written to again, and
    /// the guest hears nothing of that. A writer that blocks, blocks the vCPU, and with it a stop or a pause: one that
    /// may do so for long should be able to give up.
    pub console: Box<dyn Write + Send>,
    /// Whether somebody will type on the guest's console, by [`Vm::console_input`](crate::Vm::console_input). Default: no,
    /// and the guest is told that its input has ended.
    pub console_input: bool,
    /// Whether a guest that crashes leaves a [`CoreDump`](crate::CoreDump) in its report. Its other vCPUs then run on for a
    /// moment, until they are seen to stop. Default: no.
    pub core: bool,
    /// What becomes of an `int3`.
    pub breakpoints: Breakpoints,
    /// Whether live page tables are compared with what `MMU_UPDATE` made them; a store that bypassed it ends the VM. For
    /// finding mistakes of a guest kernel: it makes its calls slower, the more tables it has.
    pub check_tables: bool,
    /// Whether the process engine makes system calls of guest user programs jumps, where that is safe, so that they no longer
    /// trap. Default: yes. The same program gets the same results either way.
    pub rewrite: bool,
    /// Whether a debugger will [hold it](crate::Vm::debugger): it then begins to stand before the guest's first instruction. The
    /// monitor sees each entry of a user program, and no system call is made a jump. Default: no.
    pub debug: bool,
    /// How much processor time it gets. Default: what the host's scheduler gives it.
    pub cpu: CpuShare,
    /// Whether somebody watches from the first instruction on, by [`Vm::take_trace`](crate::Vm::take_trace). Default: no.
    pub trace: bool,
    /// Its devices, at most 32; an image that does not know of devices can have none. Default: none.
    pub devices: Vec<DeviceConfig>,
}

impl Config {
    /// The defaults, for an image.
    pub fn new(image: Image) -> Self {
        Self {
            image,
            memory: 64 << 20,
            vcpus: 1,
            engine: EngineKind::Auto,
            command_line: Vec::new(),
            ramdisk: Vec::new(),
            console: Box::new(std::io::stdout()),
            console_input: false,
            core: false,
            breakpoints: Breakpoints::Crash,
            check_tables: false,
            rewrite: true,
            debug: false,
            cpu: CpuShare::default(),
            trace: false,
            devices: Vec::new(),
        }
    }
}

/// Why a VM did not start. No guest instruction was executed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum StartError {
    #[error("{memory} bytes of memory is not a whole number of pages of {PAGE_SIZE} bytes")]
    MemoryNotPages { memory: u64 },
    #[error("0 bytes of memory is too little for any guest; the default is 64M")]
    NoMemory,
    #[error("{memory} bytes of memory is more than a VM can have, which is {MAX_MEMORY} (512 GiB)")]
    MemoryTooLarge { memory: u64 },
    #[error("the guest needs {needed} bytes of memory and has {memory}; give it more with --memory")]
    MemoryTooSmall { memory: u64, needed: u64 },
    #[error("{vcpus} vCPUs cannot be had; a VM has 1 to {MAX_VCPUS}")]
    Vcpus { vcpus: u32 },
    #[error("the guest's argument {index} has a zero byte in it, and that is what ends an argument")]
    ZeroInArgument { index: usize },
    #[error("the guest's arguments are {length} bytes long, at most {most} fit")]
    CommandLineTooLong { length: usize, most: usize },
    #[error("{devices} devices are too many; a VM has at most {DEVICES_MAX}")]
    Devices { devices: usize },
    #[error(
        "the guest has no use for devices: its image does not ask for the feature DEVICES; leave them out"
    )]
    NoDevices,
    #[error("a cap of 0 % would never let the guest run; the least is 1")]
    NoCpu,
    #[error("a weight of {weight} is none; weights are 1 to 10000, and the default is 100")]
    Weight { weight: u32 },
    #[error(
        "this processor or kernel does not let programs set FS and GS base (FSGSBASE), which the process engine needs; it takes an x86-64 processor of 2012 or later and Linux 5.9 or later"
    )]
    NoFsgsbase,
    #[error("guest memory of {memory} bytes could not be had")]
    Memory { memory: u64, source: std::io::Error },
    #[error("{what} could not be made")]
    Host { what: &'static str, source: std::io::Error },
    #[error("the engine could not start the VM")]
    Engine(#[from] EngineError),
}

/// What can be said before anything is made.
pub(crate) fn check(config: &Config) -> Result<(), StartError> {
    let memory = config.memory;
    if memory == 0 {
        return Err(StartError::NoMemory);
    }
    if !memory.is_multiple_of(PAGE_SIZE) {
        return Err(StartError::MemoryNotPages { memory });
    }
    if memory > MAX_MEMORY {
        return Err(StartError::MemoryTooLarge { memory });
    }
    if config.cpu.cap == Some(0) {
        return Err(StartError::NoCpu);
    }
    if let Some((weight @ (0 | 10_001..), _)) = config.cpu.weight {
        return Err(StartError::Weight { weight });
    }
    let vcpus = config.vcpus;
    if !(1..=MAX_VCPUS).contains(&vcpus) {
        return Err(StartError::Vcpus { vcpus });
    }
    let devices = config.devices.len();
    if devices > DEVICES_MAX as usize {
        return Err(StartError::Devices { devices });
    }
    let note = &config.image.note;
    if devices > 0 && !(note.needed | note.liked).contains(Features::DEVICES) {
        return Err(StartError::NoDevices);
    }
    if !crate::cpu::fsgsbase() {
        return Err(StartError::NoFsgsbase);
    }
    Ok(())
}

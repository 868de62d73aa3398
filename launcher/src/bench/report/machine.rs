//! The machine on which something was measured, as far as it says.

use rustix::system::{sysinfo, uname};
use serde::{Deserialize, Serialize};
use std::arch::x86_64::__cpuid;
use std::fmt;
use std::fs;

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Its model.
    pub processor: String,
    /// Cores that the benchmark could use.
    pub cores: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    /// What virtualises it, if it is itself a virtual machine.
    pub virtualised_by: Option<String>,
}

impl Machine {
    /// The one on which this runs.
    pub(super) fn this() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches(['\t', ' ', ':']).to_owned())
        };
        let is_virtual =
            field("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
        let memory = sysinfo();
        let kernel = uname();
        Self {
            processor: field("model name").unwrap_or_else(|| "not known".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory.totalram as u64 * u64::from(memory.mem_unit),
            kernel: format!("{} {}", kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy()),
            virtualised_by: is_virtual.then(hypervisor),
        }
    }
}

/// The hypervisor under which this machine runs, by the name that it gives itself.
fn hypervisor() -> String {
    let leaf = __cpuid(0x4000_0000);
    let bytes = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat();
    let name = String::from_utf8_lossy(&bytes);
    let name = name.trim_matches(|c: char| c == '\0' || c == ' ');
    match name {
        "KVMKVMKVM" => "KVM".into(),
        "TCGTCGTCGTCG" => "QEMU's emulation".into(),
        "Microsoft Hv" => "Hyper-V".into(),
        "VMwareVMware" => "VMware".into(),
        "XenVMMXenVMM" => "Xen".into(),
        "" => "a hypervisor that does not give its name".into(),
        other => other.into(),
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, kernel, .. } = self;
        let s = if *cores == 1 { "" } else { "s" };
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        write!(f, "{cores} core{s} of {processor}, {gib:.1} GiB of memory, {kernel}")?;
        match &self.virtualised_by {
            Some(by) => write!(f, ", a virtual machine ({by})"),
            None => Ok(()),
        }
    }
}

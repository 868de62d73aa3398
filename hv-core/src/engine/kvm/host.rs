//! What this host's KVM has, found once.
//!
//! Start at [`host`].

use crate::cpu;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use std::io;
use std::sync::OnceLock;

/// KVM, open, and what its guests can have.
pub(super) struct Host {
    pub kvm: Kvm,
    /// What a guest's processor says of itself.
    pub cpuid: CpuId,
    /// Components of extended state that a guest has, and bytes of an area with all of them.
    pub xstate_mask: u64,
    pub xstate_size: u64,
    pub has_xsaveopt: bool,
    /// First machine address that its processor does not have.
    pub addresses: u64,
}

/// Why guests cannot run on KVM here.
#[derive(Debug, thiserror::Error)]
pub enum NoKvm {
    /// There is no device, or this user may not open it.
    #[error("/dev/kvm cannot be opened: {0}")]
    Device(#[source] io::Error),
    /// It answers as no KVM does.
    #[error("KVM's version is {found}, expected 12")]
    Version {
        /// What it says.
        found: i32,
    },
    /// It lacks something.
    #[error("this KVM has no {0}")]
    Lacks(&'static str),
    /// It refused a request.
    #[error("KVM refused {what}: {source}")]
    Refused {
        /// What it was asked.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// KVM, if guests can run on it. It is opened at the first call.
pub(super) fn host() -> Result<&'static Host, &'static NoKvm> {
    static HOST: OnceLock<Result<Host, NoKvm>> = OnceLock::new();
    HOST.get_or_init(Host::find).as_ref()
}

/// As the host says it.
pub(super) fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> NoKvm {
    move |error| NoKvm::Refused { what, source: error.into() }
}

/// Leaves of CPUID.
mod leaf {
    pub(super) const FEATURES: u32 = 1;
    pub(super) const MORE_FEATURES: u32 = 7;
    pub(super) const XSTATE: u32 = 0xd;
    pub(super) const ADDRESSES: u32 = 0x8000_0008;
}
const XSAVE: u32 = 1 << 26;
const FSGSBASE: u32 = 1;
const XSAVEOPT: u32 = 1;

impl Host {
    fn find() -> Result<Self, NoKvm> {
        let kvm = Kvm::new().map_err(|error| NoKvm::Device(error.into()))?;
        let found = kvm.get_api_version();
        if found != 12 {
            return Err(NoKvm::Version { found });
        }
        for (cap, name) in [
            (Cap::UserMemory, "memory of its user's"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT: Linux 4.12 or later has it"),
            (Cap::Xcrs, "extended state"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(NoKvm::Lacks(name));
            }
        }
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("to say what it offers"))?;
        let entry = |function, index| {
            cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index))
        };
        let has = |function, word: fn(&kvm_bindings::kvm_cpuid_entry2) -> u32, bit| {
            entry(function, 0).is_some_and(|entry| word(entry) & bit != 0)
        };
        if !has(leaf::FEATURES, |entry| entry.ecx, XSAVE) {
            return Err(NoKvm::Lacks("XSAVE for its guests"));
        }
        if !has(leaf::MORE_FEATURES, |entry| entry.ebx, FSGSBASE) {
            return Err(NoKvm::Lacks("FSGSBASE for its guests: a processor of 2012 or later has it"));
        }
        let offered =
            entry(leaf::XSTATE, 0).map_or(0, |entry| u64::from(entry.edx) << 32 | u64::from(entry.eax));
        let (_, mask) = cpu::xstate();
        let xstate_mask = offered & mask;
        let end = |component: u32| {
            let area = entry(leaf::XSTATE, component);
            area.map_or(0, |entry| u64::from(entry.eax) + u64::from(entry.ebx))
        };
        let components = (2..63).filter(|component| xstate_mask & 1 << component != 0);
        let xstate_size = components.map(end).fold(LEGACY_AREA, u64::max);
        let bits = entry(leaf::ADDRESSES, 0).map_or(36, |entry| entry.eax & 0xff);
        let has_xsaveopt = entry(leaf::XSTATE, 1).is_some_and(|entry| entry.eax & XSAVEOPT != 0);
        Ok(Self { xstate_mask, xstate_size, has_xsaveopt, addresses: 1 << bits, kvm, cpuid })
    }
}

/// Bytes of x87 and SSE state and of the header behind it.
const LEGACY_AREA: u64 = 576;

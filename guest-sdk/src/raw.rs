//! The hypercall page's entries as functions, and the vCPU's own pages.
//!
//! Everything that reaches the hypervisor goes through here; with the feature `fake-host`, it reaches the fake
//! instead. Nothing above this module is `unsafe` to call.

#![cfg_attr(
    not(any(test, all(feature = "fake-host", panic = "unwind"))),
    expect(unsafe_code, reason = "calling the hypercall page, and references to the vCPU's pages")
)]

use hv_abi::Status;
use hv_abi::clock::ClockPage;
#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
use hv_abi::vcpu::VcpuPage;

/// What an entry gives: two registers.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Answer {
    pub status: u64,
    pub value: u64,
}

impl Answer {
    /// The value, or the status that is not success.
    pub(crate) fn result(self) -> Result<u64, Status> {
        Status(self.status as u32).ok().map(|()| self.value)
    }
}

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
mod real {
    use super::*;
    use hv_abi::address::{CLOCK_PAGE, HYPERCALL_PAGE, VCPU_PAGES, VCPU_STRIDE, entry};
    use hv_abi::vcpu::VcpuPage;

    type CallEntry = unsafe extern "C" fn(u32, u64, u64, u64, u64, u64) -> Answer;
    type BlockEntry = unsafe extern "C" fn(u64) -> Answer;
    type EnterUserEntry = unsafe extern "C" fn(u64, u64) -> Answer;

    /// Makes a hypercall.
    ///
    /// # Safety
    ///
    /// What the call makes the host write to guest memory must be memory that the caller may have written.
    pub(crate) unsafe fn call(number: u32, arguments: [u64; 5]) -> Answer {
        let page = core::ptr::without_provenance::<()>((HYPERCALL_PAGE + entry::CALL) as usize);
        // SAFETY: the ABI puts a function of this type at this address in every guest (docs/abi.md, "Hypercall
        // page").
        let function = unsafe { core::mem::transmute::<*const (), CallEntry>(page) };
        let [a, b, c, d, e] = arguments;
        // SAFETY: the entry is called as the ABI says; what the host writes is the caller's to answer for.
        unsafe { function(number, a, b, c, d, e) }
    }

    /// Gives the CPU back until an event or the deadline.
    pub(crate) fn block(deadline: u64) -> Answer {
        let page = core::ptr::without_provenance::<()>((HYPERCALL_PAGE + entry::BLOCK) as usize);
        // SAFETY: as in `call`.
        let function = unsafe { core::mem::transmute::<*const (), BlockEntry>(page) };
        // SAFETY: the entry takes any deadline and writes no guest memory.
        unsafe { function(deadline) }
    }

    /// Runs a user program until it traps.
    ///
    /// # Safety
    ///
    /// The page tables under `root` must not map, for user mode, memory that is somebody else's; `context` and the area
    /// that it names must be memory that the host may write until the program is gone.
    pub(crate) unsafe fn enter_user(root: u64, context: u64) -> Answer {
        let page = core::ptr::without_provenance::<()>((HYPERCALL_PAGE + entry::ENTER_USER) as usize);
        // SAFETY: as in `call`.
        let function = unsafe { core::mem::transmute::<*const (), EnterUserEntry>(page) };
        // SAFETY: the entry is called as the ABI says; what the program and the host write is the caller's to answer
        // for.
        unsafe { function(root, context) }
    }

    fn number() -> u64 {
        let number: u32;
        // SAFETY: the ABI says that GS base is this vCPU's page, which holds its number at this offset; reading it
        // changes nothing.
        unsafe {
            core::arch::asm!(
                "mov {:e}, gs:[{}]",
                out(reg) number,
                const core::mem::offset_of!(VcpuPage, vcpu),
                options(nostack, readonly, preserves_flags)
            );
        }
        number.into()
    }

    /// This vCPU's page.
    pub(crate) fn vcpu_page() -> &'static VcpuPage {
        page_of(number() as u32)
    }

    /// The page of a vCPU that there is.
    pub(crate) fn page_of(vcpu: u32) -> &'static VcpuPage {
        let page = VCPU_PAGES + u64::from(vcpu) * VCPU_STRIDE;
        // SAFETY: the ABI maps a `VcpuPage` there for as long as the guest runs; all its fields that change are
        // atomics.
        unsafe { &*core::ptr::with_exposed_provenance(page as usize) }
    }

    /// The clock page.
    pub(crate) fn clock_page() -> &'static ClockPage {
        let page = VCPU_PAGES + number() * VCPU_STRIDE + CLOCK_PAGE;
        // SAFETY: the ABI maps a `ClockPage` there, readable, for as long as the guest runs; its fields are atomics.
        unsafe { &*core::ptr::with_exposed_provenance(page as usize) }
    }

    /// Whether somebody watches this VM.
    #[inline]
    pub(crate) fn is_traced() -> bool {
        let traced: u32;
        // SAFETY: as in `number`; a host that does not know of traces leaves zeros there.
        unsafe {
            core::arch::asm!(
                "mov {:e}, gs:[{}]",
                out(reg) traced,
                const core::mem::offset_of!(VcpuPage, trace),
                options(nostack, readonly, preserves_flags)
            );
        }
        traced != 0
    }

    /// The time-stamp counter, give or take the instructions around.
    #[inline]
    pub(crate) fn ticks() -> u64 {
        // SAFETY: as in `tsc`.
        unsafe { core::arch::x86_64::_rdtsc() }
    }

    /// The time-stamp counter.
    pub(crate) fn tsc() -> u64 {
        // SAFETY: the ABI lets guests execute RDTSC to read the clock page; LFENCE is baseline SSE2.
        unsafe {
            core::arch::x86_64::_mm_lfence();
            core::arch::x86_64::_rdtsc()
        }
    }
}

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
pub(crate) use real::*;

#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
pub(crate) use crate::fake::entry::*;

#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
const _: fn() -> (&'static VcpuPage, &'static ClockPage) = || (vcpu_page(), clock_page());

//! Where the hypervisor enters the guest kernel to say that an event is pending.
//!
//! The entry saves what a handler may change (the general registers and, in full, the extended state, since the
//! interrupted code may be in the middle of a vectorised copy), runs the handlers, and leaves through the
//! hypercall page, which unmasks, looks again and returns in one sequence.

#![cfg_attr(
    not(any(test, all(feature = "fake-host", panic = "unwind"))),
    expect(unsafe_code, reason = "the upcall entry is assembly")
)]

use crate::events;
use crate::raw;
use crate::trace::{Name, Span};
use core::sync::atomic::Ordering;
use hv_abi::vcpu::upcall;

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
mod assembly {
    use core::sync::atomic::AtomicU32;

    /// How to save extended state: 0 FXSAVE, 1 XSAVE, 2 XSAVEC.
    #[unsafe(no_mangle)]
    static hv_upcall_save: AtomicU32 = AtomicU32::new(0);
    /// Bytes to save it in.
    #[unsafe(no_mangle)]
    static hv_upcall_save_size: AtomicU32 = AtomicU32::new(512);

    core::arch::global_asm!(
        ".pushsection .text.hv_upcall, \"ax\", @progbits",
        ".globl hv_upcall_entry",
        "hv_upcall_entry:",
        "push rbp",
        "mov rbp, rsp",
        "push rax",
        "push rcx",
        "push rdx",
        "push rsi",
        "push rdi",
        "push r8",
        "push r9",
        "push r10",
        "push r11",
        "push rbx",
        "mov ebx, dword ptr [rip + hv_upcall_save_size]",
        "sub rsp, rbx",
        "and rsp, -64",
        "mov ebx, dword ptr [rip + hv_upcall_save]",
        "test ebx, ebx",
        "jz 1f",
        "xor eax, eax", // an XSAVE header starts as zeros
        "mov [rsp + 512], rax",
        "mov [rsp + 520], rax",
        "mov [rsp + 528], rax",
        "mov [rsp + 536], rax",
        "mov [rsp + 544], rax",
        "mov [rsp + 552], rax",
        "mov [rsp + 560], rax",
        "mov [rsp + 568], rax",
        "mov eax, -1",
        "mov edx, -1",
        "cmp ebx, 1",
        "je 2f",
        "xsavec64 [rsp]",
        "jmp 3f",
        "1: fxsave64 [rsp]",
        "jmp 3f",
        "2: xsave64 [rsp]",
        "3: cld",
        "call {dispatch}",
        "test ebx, ebx",
        "jz 4f",
        "mov eax, -1",
        "mov edx, -1",
        "xrstor64 [rsp]",
        "jmp 5f",
        "4: fxrstor64 [rsp]",
        "5: lea rsp, [rbp - 80]",
        "pop rbx",
        "pop r11",
        "pop r10",
        "pop r9",
        "pop r8",
        "pop rdi",
        "pop rsi",
        "pop rdx",
        "pop rcx",
        "pop rax",
        "pop rbp",
        "jmp qword ptr [rip + 6f]",
        ".balign 8",
        "6: .quad {upcall_return}",
        ".popsection",
        dispatch = sym dispatch,
        upcall_return = const hv_abi::address::HYPERCALL_PAGE + hv_abi::address::entry::UPCALL_RETURN,
    );

    unsafe extern "C" {
        static hv_upcall_entry: u8;
    }

    extern "C" fn dispatch() {
        super::take_events();
    }

    pub(super) fn entry() -> u64 {
        use core::sync::atomic::Ordering::Relaxed;
        use hv_abi::CpuFeatures;
        let info = crate::boot::info();
        let features = info.cpu_features;
        let (how, size) = match () {
            () if features.contains(CpuFeatures::XSAVEC) => (2, info.xstate_size),
            () if features.contains(CpuFeatures::XSAVE) => (1, info.xstate_size),
            () => (0, 512),
        };
        hv_upcall_save.store(how, Relaxed);
        hv_upcall_save_size.store(size as u32, Relaxed);
        (&raw const hv_upcall_entry).addr() as u64
    }
}

/// Sets the entry and lets upcalls come.
pub(crate) fn init() {
    #[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
    raw::vcpu_page().upcall_entry.store(assembly::entry(), Ordering::Relaxed);
    Masked::restore(false);
}

/// Runs the handlers of all pending, unmasked channels. Upcalls are masked.
pub(crate) fn take_events() {
    const UPCALL: &Name = &Name::new("upcall");
    let _span = Span::crossing(UPCALL, 0);
    let page = raw::vcpu_page();
    while page.upcall.fetch_and(!upcall::PENDING, Ordering::SeqCst) & upcall::PENDING != 0 {
        events::run_pending(page);
    }
}

/// Masking of upcalls on this vCPU.
pub(crate) struct Masked;

impl Masked {
    /// Masks upcalls; tells whether they were masked before.
    pub(crate) fn set() -> bool {
        let page = raw::vcpu_page();
        // Only this vCPU changes that bit, so a look is enough where it is set: under locks within locks.
        page.upcall.load(Ordering::Relaxed) & upcall::MASKED != 0
            || page.upcall.fetch_or(upcall::MASKED, Ordering::SeqCst) & upcall::MASKED != 0
    }

    /// Goes back to what [`set`](Self::set) told; events that came meanwhile are handled now.
    pub(crate) fn restore(was_masked: bool) {
        if was_masked {
            return;
        }
        let page = raw::vcpu_page();
        loop {
            let before = page.upcall.fetch_and(!upcall::MASKED, Ordering::SeqCst);
            if before & upcall::PENDING == 0 {
                return;
            }
            page.upcall.fetch_or(upcall::MASKED, Ordering::SeqCst);
            take_events();
        }
    }
}

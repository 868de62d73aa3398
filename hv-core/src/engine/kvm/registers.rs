//! A virtual processor's registers, as KVM takes and gives them.
//!
//! Start at [`begin`], which readies one for its first instruction in ring 0.

#![expect(
    unsafe_code,
    reason = "requests that `kvm-ioctls` does not make, and a byte that a signal's handler stores"
)]

use super::Virtual;
use super::host::{NoKvm, refused};
use super::layout::{IDT, PAGE, VCPU_PAGES, VCPU_STRIDE, area, selector};
use super::machine_memory::{SEGMENTS_LIMIT, TASK_LIMIT};
use crate::clock;
use crate::engine::{Access, Fault, Registers};
use core::sync::atomic::AtomicU8;
use core::sync::atomic::Ordering::SeqCst;
use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, Msrs, kvm_device_attr, kvm_interrupt, kvm_msr_entry, kvm_regs,
    kvm_segment, kvm_sregs, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use std::os::fd::AsRawFd;

/// Model-specific registers.
mod msr {
    pub(super) const TSC: u32 = 0x10;
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const STAR: u32 = 0xc000_0081;
    pub(super) const LSTAR: u32 = 0xc000_0082;
    pub(super) const FMASK: u32 = 0xc000_0084;
    pub(super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
}

/// PE, MP, ET, NE, WP, AM, PG: protected, with floating-point errors as exceptions, read-only pages for ring 0, too, alignment
/// checks for programs that ask for them, and paging.
const CR0: u64 = 1 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 16 | 1 << 18 | 1 << 31;
/// PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
/// SCE, LME, LMA, NXE.
const EFER: u64 = 1 | 1 << 8 | 1 << 10 | 1 << 11;
/// Flags that `SYSCALL` clears: TF, IF, DF, IOPL, NT, RF, AC.
const SYSCALL_CLEARS: u64 = 0x5_7700;

/// Readies a virtual processor for its first instruction in the guest kernel.
pub(super) fn begin(vm: &Virtual, vcpu: u32, fd: &VcpuFd, first: &Registers) -> Result<(), NoKvm> {
    fd.set_cpuid2(&vm.host.cpuid).map_err(refused("a processor's identity"))?;
    let mut special = fd.get_sregs().map_err(refused("to show special registers"))?;
    fill_special(&mut special, VCPU_PAGES + u64::from(vcpu) * VCPU_STRIDE, vm.machine.kernel_cr3());
    fd.set_sregs(&special).map_err(refused("special registers"))?;
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: vm.host.xstate_mask, ..Default::default() };
    fd.set_xcrs(&xcrs).map_err(refused("extended state"))?;
    let mut fpu = fd.get_fpu().map_err(refused("to show floating-point registers"))?;
    (fpu.fcw, fpu.fsw, fpu.ftwx, fpu.mxcsr) = (0x37f, 0, 0, 0x1f80);
    fd.set_fpu(&fpu).map_err(refused("floating-point registers"))?;
    set_msrs(vm, fd)?;
    share_tsc(fd)?;
    set_registers(fd, first).map_err(refused("registers"))
}

fn fill_special(special: &mut kvm_sregs, page: u64, cr3: u64) {
    let segment = |selector: u64, type_: u8, dpl: u8, long: u8| kvm_segment {
        limit: 0xffff_ffff,
        selector: selector as u16,
        type_,
        present: 1,
        dpl,
        db: 1 - long,
        s: 1,
        l: long,
        g: 1,
        ..Default::default()
    };
    special.cs = segment(selector::KERNEL_CODE, 0xb, 0, 1);
    let data = segment(selector::KERNEL_DATA, 3, 0, 0);
    (special.ss, special.ds, special.es, special.fs) = (data, data, data, data);
    special.gs = kvm_segment { base: page, ..data };
    special.tr = kvm_segment {
        base: page + area::TASK,
        limit: TASK_LIMIT as u32,
        selector: selector::TASK as u16,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    special.ldt = kvm_segment { unusable: 1, ..Default::default() };
    (special.gdt.base, special.gdt.limit) = (page + area::SEGMENTS, SEGMENTS_LIMIT);
    (special.idt.base, special.idt.limit) = (IDT, PAGE as u16 - 1);
    (special.cr0, special.cr3, special.cr4, special.efer) = (CR0, cr3, CR4, EFER);
}

fn set_msrs(vm: &Virtual, fd: &VcpuFd) -> Result<(), NoKvm> {
    let entries = [
        (msr::STAR, selector::USER_BASE << 48 | selector::KERNEL_CODE << 32),
        (msr::LSTAR, vm.machine.header().syscall),
        (msr::FMASK, SYSCALL_CLEARS),
        (msr::KERNEL_GS_BASE, 0),
        (msr::SYSENTER_CS, 0),
    ]
    .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let entries = Msrs::from_entries(&entries).expect("five are not too many");
    let set = fd.set_msrs(&entries).map_err(refused("model-specific registers"))?;
    if set == 5 { Ok(()) } else { Err(NoKvm::Lacks("registers for SYSCALL")) }
}

/// Makes the guest's time-stamp counter the host's, which the clock page is for.
fn share_tsc(fd: &VcpuFd) -> Result<(), NoKvm> {
    let offset = 0_u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: (&raw const offset).addr() as u64,
        ..Default::default()
    };
    const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
    // SAFETY: the request reads a structure of this type, and the word at its address, both of which live through the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attribute) } == 0 {
        return Ok(());
    }
    // A kernel before 5.16: KVM makes of a value that is about now the offset that others have.
    let entry = kvm_msr_entry { index: msr::TSC, data: clock::tsc(), ..Default::default() };
    let entries = Msrs::from_entries(&[entry]).expect("one is not too many");
    match fd.set_msrs(&entries).map_err(refused("the time-stamp counter"))? {
        1 => Ok(()),
        _ => Err(NoKvm::Lacks("a time-stamp counter that can be set")),
    }
}

/// What a virtual processor's registers are.
pub(super) struct Found {
    pub registers: Registers,
    pub cs: u16,
}

pub(super) fn read(fd: &VcpuFd) -> Result<Found, kvm_ioctls::Error> {
    let (general, special) = (fd.get_regs()?, fd.get_sregs()?);
    let registers = Registers {
        rax: general.rax,
        rbx: general.rbx,
        rcx: general.rcx,
        rdx: general.rdx,
        rsi: general.rsi,
        rdi: general.rdi,
        rbp: general.rbp,
        rsp: general.rsp,
        r8: general.r8,
        r9: general.r9,
        r10: general.r10,
        r11: general.r11,
        r12: general.r12,
        r13: general.r13,
        r14: general.r14,
        r15: general.r15,
        rip: general.rip,
        rflags: general.rflags,
        fs_base: special.fs.base,
    };
    Ok(Found { registers, cs: special.cs.selector })
}

fn set_registers(fd: &VcpuFd, registers: &Registers) -> Result<(), kvm_ioctls::Error> {
    fd.set_regs(&kvm_regs {
        rax: registers.rax,
        rbx: registers.rbx,
        rcx: registers.rcx,
        rdx: registers.rdx,
        rsi: registers.rsi,
        rdi: registers.rdi,
        rbp: registers.rbp,
        rsp: registers.rsp,
        r8: registers.r8,
        r9: registers.r9,
        r10: registers.r10,
        r11: registers.r11,
        r12: registers.r12,
        r13: registers.r13,
        r14: registers.r14,
        r15: registers.r15,
        rip: registers.rip,
        rflags: registers.rflags,
    })
}

/// Has it go on with these.
pub(super) fn write(fd: &VcpuFd, registers: &Registers) -> Result<(), kvm_ioctls::Error> {
    set_registers(fd, registers)?;
    let mut special = fd.get_sregs()?;
    special.fs.base = registers.fs_base;
    fd.set_sregs(&special)
}

/// As ring 0 has them in its record of an exception: in the order of [`Registers`].
pub(super) fn from_words(words: &[u64]) -> Registers {
    let mut registers = Registers::default();
    let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut registers);
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
    registers
}

pub(super) fn to_words(registers: &Registers) -> [u64; 19] {
    zerocopy::transmute!(*registers)
}

/// What an exception of ring 0's was.
pub(super) fn fault(vector: u64, error: u64, address: u64, in_engine: bool) -> Fault {
    const PAGE_FAULT: u64 = 14;
    let access = match error {
        _ if error & 16 != 0 => Access::Execute,
        _ if error & 2 != 0 => Access::Write,
        _ => Access::Read,
    };
    match vector {
        _ if in_engine => Fault::InEngine { signal: libc::SIGSEGV, address },
        PAGE_FAULT => Fault::PageFault { address, access },
        _ => Fault::Exception { vector, error },
    }
}

/// Gives it an interrupt, which it takes as soon as it is entered.
pub(super) fn interrupt(fd: &VcpuFd, vector: u32) -> Result<(), NoKvm> {
    const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
    let interrupt = kvm_interrupt { irq: vector };
    // SAFETY: the request reads a structure of this type, which lives through the call.
    let failed = unsafe { libc::ioctl(fd.as_raw_fd(), KVM_INTERRUPT, &raw const interrupt) } != 0;
    if failed {
        let source = std::io::Error::last_os_error();
        return Err(NoKvm::Refused { what: "an interrupt", source });
    }
    Ok(())
}

/// The byte that keeps it from being entered.
pub(super) fn immediate_exit(fd: &mut VcpuFd) -> &AtomicU8 {
    let byte = &raw mut fd.get_kvm_run().immediate_exit;
    // SAFETY: the byte is mapped for as long as the descriptor is open, and aligned; it is stored to by atomics only, here and in
    // the signal's handler, and read by the host's kernel.
    unsafe { AtomicU8::from_ptr(byte) }
}

pub(super) fn clear_immediate_exit(fd: &mut VcpuFd) {
    immediate_exit(fd).store(0, SeqCst);
}

/// The x87 and SSE registers as `FXSAVE` has them.
pub(super) fn fx_state(fd: &VcpuFd) -> Option<[u64; 64]> {
    let area = fd.get_xsave().ok()?;
    let word = |index: usize| u64::from(area.region[index]);
    Some(core::array::from_fn(|index| word(index * 2) | word(index * 2 + 1) << 32))
}

//! The context that a signal leaves on a vCPU's signal stack, which is where the stub goes on from.
//!
//! The guest can write that stack at any time, so it is read once, and nothing read from it is trusted: a wrong
//! register is the guest's own.

use super::handover::Handover;
use super::layout::*;
use crate::engine::{Access, Fault, Registers};
use crate::shared::SharedFile;
use std::sync::atomic::Ordering::Relaxed;

/// What the monitor takes from a signal's context.
#[derive(Debug)]
pub(super) struct Frame {
    pub registers: Registers,
    /// Address that the signal is about.
    pub address: u64,
    code_selector: u16,
    error: u64,
    vector: u64,
    system_call: u32,
}

const WORDS: usize = ucontext::SIZE / 8;

/// Offset in the exchange file of an address in a vCPU's signal stack, if `length` bytes from there are in it.
fn stack_offset(vcpu: u32, address: u64, length: u64) -> Option<u64> {
    let base = vcpu_area(vcpu) + STACK;
    let offset = address.checked_sub(base)?;
    let inside = offset.checked_add(length)? <= STACK_SIZE && address.is_multiple_of(8);
    inside.then_some(super::vcpu::handover_offset(vcpu) + 4096 + offset)
}

/// Reads the context that the hand-over page points to. `None` if that is not in the signal stack.
pub(super) fn read(exchange: &SharedFile, vcpu: u32, handover: &Handover) -> Option<Frame> {
    let context = stack_offset(vcpu, handover.frame.load(Relaxed), ucontext::SIZE as u64)?;
    let words: [u64; WORDS] = exchange.copy_words(context);
    let word = |offset: u64| words[offset as usize / 8];
    let [r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp] =
        core::array::from_fn(|i| word(ucontext::R8 + i as u64 * 8));
    let (rip, rflags) = (word(ucontext::RIP), word(ucontext::EFLAGS));
    let registers = Registers {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rbp,
        rsp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    };
    // A stop has no siginfo of its own; whatever is there is not looked at.
    let info: [u64; 4] = stack_offset(vcpu, handover.siginfo.load(Relaxed), 32)
        .map_or([0; 4], |siginfo| exchange.copy_words(siginfo));
    Some(Frame {
        registers,
        address: word(ucontext::CR2),
        code_selector: word(ucontext::SELECTORS) as u16,
        error: word(ucontext::ERR),
        vector: word(ucontext::TRAPNO),
        system_call: info[3] as u32,
    })
}

impl Frame {
    /// What the guest did, from the signal that the host raised for it.
    pub(super) fn fault(&self, signal: i32) -> Fault {
        const INVALID_OPCODE: u64 = 6;
        const PAGE_FAULT: u64 = 14;
        if u64::from(self.code_selector) != USER_CS {
            return Fault::Selector { cs: self.code_selector };
        }
        if signal == libc::SIGSYS {
            return Fault::SystemCall { number: self.system_call };
        }
        if signal == libc::SIGILL && self.vector != INVALID_OPCODE {
            // The kernel's own refusal, and the vector is of some fault before.
            return Fault::Exception { vector: INVALID_OPCODE, error: 0 };
        }
        if self.vector != PAGE_FAULT {
            return Fault::Exception { vector: self.vector, error: self.error };
        }
        let access = match self.error {
            error if error & 0x10 != 0 => Access::Execute,
            error if error & 2 != 0 => Access::Write,
            _ => Access::Read,
        };
        Fault::PageFault { address: self.address, access }
    }
}

/// Writes a vCPU's first context, from which the stub begins; gives its address in the sandbox.
pub(super) fn write_first(exchange: &SharedFile, vcpu: u32, entry: u64, argument: u64) -> u64 {
    const FLAGS: u64 = 0x202;
    const XSAVE_MXCSR: u64 = 24;
    const DEFAULT_MXCSR: u64 = 0x1f80;
    const RDI: u64 = ucontext::R8 + 8 * 8;
    let stack = vcpu_area(vcpu) + STACK;
    let file = |offset: u64| super::vcpu::handover_offset(vcpu) + 4096 + offset;
    let put = |offset, value| exchange.store_word(file(FIRST_CONTEXT + offset), value);
    put(RDI, argument);
    put(ucontext::RIP, entry);
    put(ucontext::EFLAGS, FLAGS);
    put(ucontext::FPSTATE, stack + FIRST_XSTATE);
    // An all-zero XSAVE header asks for the initial state of everything; MXCSR is loaded all the same.
    exchange.store_word(file(FIRST_XSTATE + XSAVE_MXCSR), DEFAULT_MXCSR);
    stack + FIRST_CONTEXT
}

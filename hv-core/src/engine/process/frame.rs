//! The context that a signal leaves on a vCPU's signal stack, which is where the stub goes on from.
//!
//! The guest can write that stack at any time, so it is read once, and nothing read from it is trusted: a wrong
//! register is the guest's own.

use super::handover::{Handover, USER_WORDS};
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
    /// Behind the instruction that made a system call.
    call_address: u64,
    system_call: u32,
    /// Architecture of the system call.
    architecture: u32,
    /// `si_code`: why the signal was raised.
    code: i32,
}

/// `si_code` of a signal that the host's kernel raised of itself: vector, error and address are of some fault before.
const SI_KERNEL: i32 = 0x80;

/// `si_code` of a watchpoint that the host keeps; the vector is of some fault before.
const TRAP_PERF: i32 = 6;

/// Vector of a fault that is nothing more particular.
const GENERAL_PROTECTION: u64 = 13;

const WORDS: usize = ucontext::SIZE / 8;

/// Offset in the exchange file of an address in a vCPU's signal stack, if `length` bytes from there are in it.
fn stack_offset(vcpu: u32, address: u64, length: u64) -> Option<u64> {
    let base = vcpu_area(vcpu) + STACK;
    let offset = address.checked_sub(base)?;
    let inside = offset.checked_add(length)? <= STACK_SIZE && address.is_multiple_of(8);
    inside.then_some(super::vcpu::handover_offset(vcpu) + EXCHANGE_STACK + offset)
}

/// Where the kernel's context has each of [`Registers`], in words behind R8; all but FS base, which is elsewhere.
const PLACES: [u64; USER_WORDS - 1] = [13, 11, 14, 12, 9, 8, 10, 15, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17];

/// Reads the context that the hand-over page points to. `None` if that is not in the signal stack.
pub(super) fn read(exchange: &SharedFile, vcpu: u32, handover: &Handover) -> Option<Frame> {
    let context = stack_offset(vcpu, handover.frame.load(Relaxed), ucontext::SIZE as u64)?;
    let words: [u64; WORDS] = exchange.copy_words(context);
    let word = |offset: u64| words[offset as usize / 8];
    let mut registers = handover.registers();
    if handover.is_user.load(Relaxed) == 0 {
        let mut words: [u64; USER_WORDS] = zerocopy::transmute!(registers);
        words.iter_mut().zip(PLACES).for_each(|(register, place)| *register = word(ucontext::R8 + place * 8));
        registers = zerocopy::transmute!(words);
    }
    // A stop has no siginfo of its own; whatever is there is not looked at.
    let info: [u64; 4] = stack_offset(vcpu, handover.siginfo.load(Relaxed), 32)
        .map_or([0; 4], |siginfo| exchange.copy_words(siginfo));
    Some(Frame {
        registers,
        address: word(ucontext::CR2),
        code_selector: word(ucontext::SELECTORS) as u16,
        error: word(ucontext::ERR),
        vector: word(ucontext::TRAPNO),
        call_address: info[2],
        system_call: info[3] as u32,
        architecture: (info[3] >> 32) as u32,
        code: info[1] as i32,
    })
}

/// What a user program's signal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UserFault {
    /// It has stopped, as it was asked to.
    None,
    SystemCall,
    PageFault {
        address: u64,
        access: Access,
    },
    Exception {
        vector: u64,
    },
    /// It ran what is no longer there, and is to run what is.
    Again,
    /// The host could not give it what its tables allow, or the engine's own code failed.
    Lost,
}

impl Frame {
    /// What a user program did, from the signal; corrects RIP where the host has it elsewhere than the processor.
    pub(super) fn user_fault(&mut self, signal: i32) -> UserFault {
        const UPPER_HALF: u64 = u64::MAX << 47;
        const CALL: i32 = libc::SIGSYS;
        if signal == CALL && self.call_address >= UPPER_HALF && self.registers.rip < UPPER_HALF {
            // The host's vsyscall page, from which the host has returned in the program's name.
            self.registers.rip = self.call_address;
            self.registers.rsp = self.registers.rsp.wrapping_sub(8);
        }
        let rip = &mut self.registers.rip;
        if super::stub::contains(*rip) {
            return UserFault::Lost;
        }
        if signal != 0 && *rip >= UPPER_HALF {
            // The host's vsyscall page, which no guest's tables map; the host may tell of the fault before this one.
            return UserFault::PageFault { address: *rip, access: Access::Execute };
        }
        if signal == CALL && self.architecture != super::filter::AUDIT_ARCH_X86_64 {
            *rip = rip.wrapping_sub(2); // `int 0x80`: a fault, whose RIP is at the instruction
            return UserFault::Exception { vector: GENERAL_PROTECTION };
        }
        if signal == 0 && u64::from(self.code_selector) == USER_CS {
            return UserFault::None;
        }
        match self.fault(signal) {
            Fault::SystemCall { .. } => UserFault::SystemCall,
            Fault::Selector { .. } => UserFault::Exception { vector: GENERAL_PROTECTION },
            Fault::PageFault { .. } if signal == libc::SIGBUS => UserFault::Lost,
            Fault::PageFault { address, access } => UserFault::PageFault { address, access },
            Fault::Exception { vector, .. } => UserFault::Exception { vector },
            Fault::InEngine { .. } => UserFault::Lost,
        }
    }

    /// What the guest did, from the signal that the host raised for it.
    pub(super) fn fault(&self, signal: i32) -> Fault {
        const DEBUG: u64 = 1;
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
        if signal == libc::SIGTRAP && self.code == TRAP_PERF {
            return Fault::Exception { vector: DEBUG, error: 0 };
        }
        if self.vector == PAGE_FAULT && self.code == SI_KERNEL {
            return Fault::Exception { vector: GENERAL_PROTECTION, error: 0 };
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

/// Bytes that there are for the extended state of a first context.
const MOST_XSTATE: u64 = STACK_SIZE - FIRST_XSTATE;

/// Writes a vCPU's first context, from which the stub begins, with initial extended state; gives its address in the
/// sandbox.
pub(super) fn write_first(exchange: &SharedFile, vcpu: u32, registers: &Registers) -> u64 {
    const XSAVE_MXCSR: u64 = 24;
    const DEFAULT_MXCSR: u64 = 0x1f80;
    let stack = vcpu_area(vcpu) + STACK;
    let file = |offset: u64| super::vcpu::handover_offset(vcpu) + EXCHANGE_STACK + offset;
    write_registers(exchange, file(FIRST_CONTEXT), registers);
    exchange.store_word(file(FIRST_CONTEXT + ucontext::FPSTATE), stack + FIRST_XSTATE);
    // An all-zero XSAVE header asks for the initial state of everything; MXCSR is loaded all the same.
    exchange.store_word(file(FIRST_XSTATE + XSAVE_MXCSR), DEFAULT_MXCSR);
    stack + FIRST_CONTEXT
}

/// Changes the registers that the guest kernel goes on with, if its context is where it should be.
pub(super) fn set_registers(exchange: &SharedFile, vcpu: u32, handover: &Handover, registers: &Registers) {
    if let Some(context) = stack_offset(vcpu, handover.frame.load(Relaxed), ucontext::SIZE as u64) {
        write_registers(exchange, context, registers);
        handover.set_registers(registers);
    }
}

/// Writes the general registers of the context at `offset` in the exchange file. FS base is elsewhere.
fn write_registers(exchange: &SharedFile, offset: u64, registers: &Registers) {
    let words: [u64; USER_WORDS] = zerocopy::transmute!(*registers);
    for (value, place) in words.into_iter().zip(PLACES) {
        exchange.store_word(offset + ucontext::R8 + place * 8, value);
    }
    // It goes on in 64-bit mode, wherever it came from.
    exchange.store_word(offset + ucontext::SELECTORS, USER_CS | USER_SS << 48);
}

/// The contexts of user programs: the one that a sandbox's vCPU thread goes on with.
pub(super) struct UserFrame<'a> {
    pub exchange: &'a SharedFile,
    pub handover: &'a Handover,
    pub vcpu: u32,
}

impl UserFrame<'_> {
    fn offset(&self) -> Option<u64> {
        stack_offset(self.vcpu, self.handover.frame.load(Relaxed), ucontext::SIZE as u64)
    }

    /// Changes the general registers of the program that trapped last.
    pub(super) fn set_registers(&self, registers: &Registers) {
        self.handover.set_registers(registers);
    }

    /// Makes the thread go on as another program, with this extended state, in words.
    pub(super) fn replace(&self, registers: &Registers, xstate: &[u64]) {
        let context = write_first(self.exchange, self.vcpu, registers);
        assert!(xstate.len() as u64 * 8 <= MOST_XSTATE, "no processor has so much extended state");
        let file = super::vcpu::handover_offset(self.vcpu) + EXCHANGE_STACK + FIRST_XSTATE;
        for (i, word) in (0..).zip(xstate) {
            self.exchange.store_word(file + i * 8, *word);
        }
        self.handover.frame.store(context, Relaxed);
        self.handover.set_registers(registers);
    }

    /// The extended state of the program that trapped last, as a claim. `None` if it is nowhere.
    pub(super) fn xstate(&self, words: usize) -> Option<Vec<u64>> {
        let at: [u64; 1] = self.exchange.copy_words(self.offset()? + ucontext::FPSTATE);
        let offset = stack_offset(self.vcpu, at[0], words as u64 * 8)?;
        Some((0..words as u64).map(|i| self.exchange.copy_words::<1>(offset + i * 8)[0]).collect())
    }
}

//! Calling the hypercall page with every register known.

#![expect(unsafe_code, reason = "calling the hypercall page")]

use core::arch::asm;
use guest_sdk::hv_abi::address::HYPERCALL_PAGE;
use guest_sdk::hv_abi::{Call, Status};

/// What an entry gave, in full registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// EAX; the upper half of RAX is unspecified.
    pub status: u32,
    /// RDX.
    pub value: u64,
    /// Bits of RBX, RBP, RSP and R12 to R15 that are not as they were, one register over the other.
    pub changed: u64,
    /// Whether DF was set on return.
    pub df: bool,
}

/// An answer as it should be.
pub fn good(status: Status, value: u64) -> Answer {
    Answer { status: status.0, value, changed: 0, df: false }
}

/// Calls an entry with RDI, RSI, RDX, RCX, R8 and R9.
pub fn enter(entry: u64, [rdi, rsi, rdx, rcx, r8, r9]: [u64; 6]) -> Answer {
    let (rax, value, changed, flags): (u64, u64, u64, u64);
    // SAFETY: the entries are functions of the System V convention and write no guest memory of this image's but what
    // the arguments name, which the tests own. RBX and RBP are put back; all that is changed is declared lost.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "mov rbx, 0x0b0b0b0b0b0b0b0b",
            "mov rbp, 0x0c0c0c0c0c0c0c0c",
            "mov r12, 0x1212121212121212",
            "mov r13, 0x1313131313131313",
            "mov r14, 0x1414141414141414",
            "mov r15, rsp",
            "call r11",
            "pushfq",
            "pop rsi",
            "sub r15, rsp",
            "mov rcx, 0x0b0b0b0b0b0b0b0b", "xor rcx, rbx", "or r15, rcx",
            "mov rcx, 0x0c0c0c0c0c0c0c0c", "xor rcx, rbp", "or r15, rcx",
            "mov rcx, 0x1212121212121212", "xor rcx, r12", "or r15, rcx",
            "mov rcx, 0x1313131313131313", "xor rcx, r13", "or r15, rcx",
            "mov rcx, 0x1414141414141414", "xor rcx, r14", "or r15, rcx",
            "cld",
            "pop rbp",
            "pop rbx",
            inout("r11") HYPERCALL_PAGE + entry => _,
            inout("rdi") rdi => _, inout("rsi") rsi => flags, inout("rdx") rdx => value, inout("rcx") rcx => _,
            inout("r8") r8 => _, inout("r9") r9 => _,
            out("rax") rax, out("r12") _, out("r13") _, out("r14") _, out("r15") changed,
            clobber_abi("sysv64"),
        );
    }
    const DF: u64 = 1 << 10;
    Answer { status: rax as u32, value, changed, df: flags & DF != 0 }
}

/// Makes a call through the entry; arguments that are not given are zero.
pub fn call<const N: usize>(call: Call, arguments: [u64; N]) -> Answer {
    let mut registers = [0; 6];
    registers[0] = call.0.into();
    registers[1..=N].copy_from_slice(&arguments);
    enter(guest_sdk::hv_abi::address::entry::CALL, registers)
}

//! A number over what calls answer and programs come to, that is the same on every engine: the act `digest` prints it.
//!
//! What goes in is what the ABI fixes: statuses and values of calls with arguments at random, their exchanges of page-table entries,
//! and contexts of programs after their traps. What engines may differ in (section 19) stays out: addresses of this image, time,
//! how often a program is interrupted, where extended state is, and RCX and R11 behind a `SYSCALL`.
//!
//! Start at [`digest`].

use crate::program::{HEAP, Program, TABLE, TEXT, code, page, set};
use crate::{phys, raw};
use guest_sdk::hv_abi::call::CALLS;
use guest_sdk::hv_abi::mmu::Entry;
use guest_sdk::hv_abi::user::{GATE, UserContext, trap};
use guest_sdk::hv_abi::{Call, GuestPhys};

/// FNV-1a, 64 bits.
struct Sum(u64);

impl Sum {
    fn add(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn add_result(&mut self, result: Result<u64, guest_sdk::hv_abi::Status>) {
        match result {
            Ok(value) => [0, value].into_iter().for_each(|word| self.add(word)),
            Err(status) => [1, status.0.into()].into_iter().for_each(|word| self.add(word)),
        }
    }
}

/// Calls that end something, wait, or answer what is not fixed.
const LEFT_OUT: &[Call] = &[
    Call::SHUTDOWN,
    Call::PANIC,
    Call::POLL,
    Call::VCPU_START,
    Call::VCPU_STOP,
    Call::CONSOLE_WRITE,
    Call::TIMER_SET,
    Call::PAGES_REPORT,
    Call::PAGES_CLAIM,
    Call::TRACE_RING,
    Call::MULTICALL,
];

/// All of it.
pub fn digest() -> u64 {
    let mut sum = Sum(0xcbf2_9ce4_8422_2325);
    calls(&mut sum);
    entries(&mut sum);
    programs(&mut sum);
    sum.0
}

/// Each call with arguments of all kinds: good ones, limits and what lies beyond them. No pointer leads to what is used.
fn calls(sum: &mut Sum) {
    let own = page();
    let values =
        [0, 1, 2, 7, 8, 16, 17, 600, 1 << 46, 1 << 47, u64::MAX, u64::MAX - 7, phys(own), phys(own) + 4];
    let mut random = 1_u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        values[(random >> 33) as usize % values.len()]
    };
    for call in CALLS.iter().map(|call| call.call).filter(|call| !LEFT_OUT.contains(call)) {
        for _ in 0..200 {
            let arguments = [next(), next(), next(), 0, if next() == 7 { 1 } else { 0 }];
            own.0.fill(0);
            sum.add_result(raw(call, arguments));
        }
    }
    sum.add_result(raw(Call(77), [0; 5]));
}

/// Values of page-table entries, each bit by itself, and what they replace.
fn entries(sum: &mut Sum) {
    let (table, to) = (page(), page());
    let at = GuestPhys(phys(table) + 8);
    for bit in 0..64 {
        for base in [0, phys(to) | TABLE.bits(), u64::MAX] {
            let new = base ^ 1 << bit;
            let old = set(at, Entry::from_bits_retain(new), 0);
            // Where the page is, is this image's own affair.
            sum.add_result(
                old.map(|old| old & !(Entry::ADDRESS) | u64::from(old & Entry::ADDRESS == phys(to)) << 12),
            );
        }
    }
}

/// What programs come to, by single instructions.
fn programs(sum: &mut Sum) {
    let codes: [&[u8]; 12] = [
        code!("syscall"),
        code!("mov rax, [rdi]"),
        code!("mov [rdi], rax"),
        code!("jmp rdi"),
        code!("ud2"),
        code!("int3"),
        code!("hlt"),
        code!("xor ecx, ecx", "div rcx"),
        code!("int 0x80"),
        code!("movq xmm3, rsi", "paddq xmm3, xmm3", "movq rbx, xmm3", "pushfq", "pop r10", "syscall"),
        code!("fld1", "fadd st, st(0)", "fistp qword ptr [rsp - 8]", "mov rbx, [rsp - 8]", "syscall"),
        code!("call rax", "syscall"),
    ];
    for code in codes {
        for round in 0..4_u64 {
            let mut program = Program::new(code);
            let context = &mut *program.context;
            (context.rax, context.rdi, context.rsi) = (GATE, 0x1000 << (round * 8), round * 0x1111_2222);
            (context.rsp, context.rflags) = (HEAP + 4096, 0x202 | [0, 1, 0x400, 0x8d5][round as usize]);
            if code[0] != 0xff && code != codes[11] {
                context.rax = 39 + round;
            }
            for _ in 0..3 {
                let trap = program.run();
                add_context(sum, trap, &program.context);
                if trap != trap::SYSCALL {
                    break;
                }
                program.context.rip = TEXT;
            }
            sum.add(program.data.0[511]);
        }
    }
}

fn add_context(sum: &mut Sum, trap: u32, context: &UserContext) {
    let after_call = trap == trap::SYSCALL;
    let rcx = if after_call { 0 } else { context.rcx };
    let upper = if context.rip == TEXT && trap == trap::EXCEPTION { u64::from(u32::MAX) } else { u64::MAX };
    let words = [context.rax & upper, context.rbx, rcx, context.rdx, context.rsi, context.rdi, context.rbp];
    words.into_iter().for_each(|word| sum.add(word));
    for (index, word) in context.r8_to_r15.into_iter().enumerate() {
        sum.add(if after_call && index == 3 { 0 } else { word });
    }
    let rest = [context.rsp, context.rip, context.rflags, context.fs_base, trap.into()];
    rest.into_iter().for_each(|word| sum.add(word));
    match trap {
        trap::PAGE_FAULT => {
            [context.address, context.access.into()].into_iter().for_each(|word| sum.add(word))
        }
        trap::EXCEPTION => sum.add(context.vector.into()),
        _ => {}
    }
}

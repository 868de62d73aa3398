//! Traps with the processor in a state that the handler must survive.

#![expect(unsafe_code, reason = "loading flags, segments and stacks that break things")]

use crate::{Numbers, hurtful};
use core::arch::{asm, naked_asm};
use fastrand::Rng;
use guest_sdk::hv_abi::address::VCPU_PAGES;

const TF: u64 = 1 << 8;
const DF: u64 = 1 << 10;
const NT: u64 = 1 << 14;
const AC: u64 = 1 << 18;
const ID: u64 = 1 << 21;

/// Code that traps, or that goes on when the host lets breakpoints pass. Each ends in `ud2`.
const TRAPS: &[&[u8]] = &[
    &[0x0f, 0x0b],                                        // ud2
    &[0xcc, 0x0f, 0x0b],                                  // int3
    &[0xcd, 0x03, 0x0f, 0x0b],                            // int 3, the long form
    &[0xf1, 0x0f, 0x0b],                                  // int1
    &[0xcd, 0x80, 0x0f, 0x0b],                            // int 0x80
    &[0xcd, 0x04, 0x0f, 0x0b],                            // int 4
    &[0xcd, 0x0e, 0x0f, 0x0b],                            // int 14
    &[0x31, 0xc9, 0xf7, 0xf1, 0x0f, 0x0b],                // xor ecx, ecx; div ecx
    &[0x31, 0xc0, 0x8b, 0x00, 0x0f, 0x0b],                // load from null
    &[0xf4, 0x0f, 0x0b],                                  // hlt
    &[0xfa, 0x0f, 0x0b],                                  // cli
    &[0xe4, 0x60, 0x0f, 0x0b],                            // in al, 0x60
    &[0x0f, 0x05, 0x0f, 0x0b],                            // syscall
    &[0x0f, 0x34, 0x0f, 0x0b],                            // sysenter
    &[0x0f, 0x07, 0x0f, 0x0b],                            // sysret
    &[0x0f, 0x01, 0xc1, 0x0f, 0x0b],                      // vmcall
    &[0x0f, 0x20, 0xc0, 0x0f, 0x0b],                      // mov rax, cr0
    &[0x0f, 0x32, 0x0f, 0x0b],                            // rdmsr
    &[0x48, 0xcf, 0x0f, 0x0b],                            // iretq from whatever is on the stack
    &[0x48, 0x0f, 0xa9, 0xcc, 0x0f, 0x0b],                // pop gs; int3
    &[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0xe0], // jump to a non-canonical address
    &[0x48, 0xc7, 0xc0, 0, 0, 0, 0x80, 0xff, 0xe0],       // jump to the host kernel's half
    &[0x8e, 0xd0, 0xcc, 0x0f, 0x0b],                      // mov ss, eax; int3
    &[0x8b, 0x44, 0x24, 0x01, 0x0f, 0x0b],                // a misaligned load from the stack
    &[0xf0, 0x0f, 0xc7, 0xc8, 0x0f, 0x0b],                // lock cmpxchg8b eax
    &[0x66, 0x0f, 0xae, 0x28, 0x0f, 0x0b], // xrstor from somewhere, with a prefix that it cannot have
    &[0xc8, 0xff, 0xff, 0x1f, 0x0f, 0x0b], // enter with nesting
    &[0x9b, 0xd9, 0x3c, 0x24, 0x0f, 0x0b], // wait; fnstcw
    &[0xeb, 0xfe],                         // a loop, for the flags to catch
    &[0x90, 0x90, 0x90, 0xeb, 0xfb],
];

/// What `enter` loads: selectors DS, ES, FS, GS, or 0xffff_ffff to leave one; then flags, RSP, target, and CS if not 0.
#[repr(C)]
struct State {
    selectors: [u32; 4],
    flags: u64,
    rsp: u64,
    target: u64,
    cs: u64,
}

/// Loads a state, flags last, and goes to its target.
#[unsafe(naked)]
unsafe extern "C" fn enter(state: &State, scratch: &mut [u64; 8]) -> ! {
    naked_asm!(
        "mov rax, [rdi + 16]",
        "mov rcx, [rdi + 32]",
        "mov rdx, [rdi + 40]",
        "mov r8, [rdi + 24]",
        "mov [rsi + 56], rax",
        "mov [rsi + 40], ecx",
        "mov [rsi + 44], edx",
        "cmp dword ptr [rdi], -1",
        "je 2f",
        "mov ds, [rdi]",
        "2: cmp dword ptr [rdi + 4], -1",
        "je 2f",
        "mov es, [rdi + 4]",
        "2: cmp dword ptr [rdi + 8], -1",
        "je 2f",
        "mov fs, [rdi + 8]",
        "2: cmp dword ptr [rdi + 12], -1",
        "je 2f",
        "mov gs, [rdi + 12]",
        "2: test rdx, rdx",
        "jnz 3f",
        "lea r9, [rsi + 56]",
        "mov rsp, r9",
        "popfq", // single-stepping begins behind the next instruction
        "mov rsp, r8",
        "jmp rcx",
        "3: lea r9, [rsi + 56]",
        "mov rsp, r9",
        "popfq",
        "mov rsp, r8",
        ".byte 0xff, 0x6e, 0x28", // a far jump to the pointer at rsi + 40, 32 bits and a selector
    )
}

fn selector(random: &mut Rng) -> u32 {
    match random.u8(..6) {
        0 => random.u32(..0x1_0000),
        1 => [0, 3, 0x23, 0x2b, 0x33, 0x7, 0xf, 0x63, 0x6b, 0x73, 0x7b][random.usize(..11)],
        _ => u32::MAX,
    }
}

/// A random state, then the trap with this index.
pub fn trap([seed, trap, _]: Numbers) {
    let mut random = Rng::with_seed(seed);
    let mut scratch = [0; 8];
    let code = TRAPS[trap as usize % TRAPS.len()];
    let mut flags = 0x202;
    for flag in [TF, DF, NT, AC, ID, 0x8d5, 3 << 12] {
        flags |= if random.u8(..3) == 0 { flag } else { 0 };
    }
    // SAFETY: not met, in many ways: what is broken here is what the trap must cope with.
    unsafe {
        match random.u8(..6) {
            0 => asm!("ldmxcsr [{}]", in(reg) &random.u32(..0x1_0000)),
            1 => asm!("fldcw [{}]", "fldz", "fld1", in(reg) &random.u16(..)),
            2 => asm!("wrfsbase {}", in(reg) canonical(&mut random)),
            3 => asm!("wrgsbase {}", in(reg) canonical(&mut random)),
            _ => {}
        }
    }
    let rsp = match random.u8(..6) {
        0 => hurtful(&mut random),
        1 => VCPU_PAGES + random.u64(..0x2_0000),
        2 => VCPU_PAGES + 0x2_0000,
        3 => 0,
        _ => (&raw const crate::jump::ROOM).addr() as u64 + 0x2_0000 + random.u64(..16),
    };
    let cs = match random.u8(..6) {
        0 => 0x23,
        1 => random.u64(..0x1_0000),
        _ => 0,
    };
    let selectors = core::array::from_fn(|_| selector(&mut random));
    let state = State { selectors, flags, rsp, target: executable(code), cs };
    // SAFETY: as above.
    unsafe { enter(&state, &mut scratch) }
}

fn canonical(random: &mut Rng) -> u64 {
    hurtful(random) & 0x7fff_ffff_ffff
}

/// The traps' bytes are constants, and constants are not executable: finds them as instructions below.
fn executable(code: &[u8]) -> u64 {
    let index = TRAPS.iter().position(|trap| *trap == code).expect("one of them");
    (&raw const CODE).addr() as u64 + index as u64 * 16
}

/// All of `TRAPS`, 16 bytes each, in the image's text.
#[unsafe(link_section = ".text.traps")]
static CODE: [[u8; 16]; TRAPS.len()] = {
    let mut all = [[0xcc; 16]; TRAPS.len()];
    let mut i = 0;
    while i < TRAPS.len() {
        let mut j = 0;
        while j < TRAPS[i].len() {
            all[i][j] = TRAPS[i][j];
            j += 1;
        }
        i += 1;
    }
    all
};

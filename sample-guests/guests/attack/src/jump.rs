//! Jumps to where no guest should go, with registers that nobody expects there.

#![expect(unsafe_code, reason = "jumping into the engine's code is what this is for")]

use crate::{Numbers, hurtful};
use core::arch::naked_asm;
use fastrand::Rng;
use guest_sdk::hv_abi::address::{HYPERCALL_PAGE, VCPU_PAGES};
use guest_sdk::hv_abi::user::GATE;
use guest_sdk::println;

const RAX: usize = 0;
const RCX: usize = 1;
const RSI: usize = 4;
const RSP: usize = 15;

/// RAX, RCX, RDX, RBX, RSI, RDI, RBP, R8 to R15, RSP, and where to.
type Registers = [u64; 17];

/// Somewhere that a GS base or stack can point to and be written.
#[repr(align(4096))]
pub struct Room {
    _bytes: [u8; 0x3_0000],
}

pub static mut ROOM: Room = Room { _bytes: [0; 0x3_0000] };

/// Loads all registers and jumps.
#[unsafe(naked)]
unsafe extern "C" fn go(registers: &Registers) -> ! {
    naked_asm!(
        "push qword ptr [rdi + 128]",
        "pop qword ptr [rip + 2f]",
        "mov rax, [rdi]",
        "mov rcx, [rdi + 8]",
        "mov rdx, [rdi + 16]",
        "mov rbx, [rdi + 24]",
        "mov rsi, [rdi + 32]",
        "mov rbp, [rdi + 48]",
        "mov r8,  [rdi + 56]",
        "mov r9,  [rdi + 64]",
        "mov r10, [rdi + 72]",
        "mov r11, [rdi + 80]",
        "mov r12, [rdi + 88]",
        "mov r13, [rdi + 96]",
        "mov r14, [rdi + 104]",
        "mov r15, [rdi + 112]",
        "mov rsp, [rdi + 120]",
        "mov rdi, [rdi + 40]",
        "jmp qword ptr [rip + 2f]",
        ".pushsection .data",
        ".balign 8",
        "2: .quad 0",
        ".popsection",
    )
}

fn room(random: &mut Rng) -> u64 {
    (&raw const ROOM).addr() as u64 + random.u64(0x1000..0x2_f000) / 16 * 16
}

/// Registers, most of which point somewhere.
fn registers(random: &mut Rng, to: u64) -> Registers {
    let mut registers = [0; 17];
    registers.fill_with(|| if random.u8(..3) == 0 { room(random) } else { hurtful(random) });
    registers[RSP] = match random.u8(..8) {
        0 => hurtful(random),
        1 => VCPU_PAGES + 0x1_0000 + random.u64(..0x1_0000),
        _ => room(random),
    };
    registers[16] = to;
    registers
}

/// Bytes of the stub's mapping; the test compares them with what the host has.
pub const STUB_BYTES: usize = 0x2000;

/// To `offset` in the stub's mapping.
pub fn anywhere([seed, offset, _]: Numbers) {
    let mut random = Rng::with_seed(seed);
    if random.u8(..4) == 0 {
        // SAFETY: not met, since hypercalls and upcalls need it elsewhere: the point.
        unsafe { core::arch::asm!("wrgsbase {}", in(reg) room(&mut random) / 0x1000 * 0x1000) };
    }
    let registers = registers(&mut random, HYPERCALL_PAGE + offset);
    // SAFETY: not met: whatever is there does not expect this, which is the point.
    unsafe { go(&registers) }
}

/// To `offset` in the page of the gate and the low jump table behind it, or to the middle of a call of this program's that is
/// made often enough to go through the table.
pub fn table([seed, offset, _]: Numbers) {
    let mut random = Rng::with_seed(seed);
    let site = often();
    let to = if random.u8(..4) == 0 { site + random.u64(..8) } else { GATE + offset };
    let mut registers = registers(&mut random, to);
    if random.bool() {
        registers[RAX] = random.u64(..0x1_0000);
    }
    // SAFETY: not met: whatever is there does not expect this, which is the point.
    unsafe { go(&registers) }
}

/// Makes a system call often, from one place; gives the V of its `mov`.
fn often() -> u64 {
    let mut site = 0;
    for _ in 0..16 {
        // SAFETY: a system call changes RAX, RCX and R11, and what the kernel changes, which is nothing else.
        unsafe {
            core::arch::asm!(
                "lea {site}, [rip + 2f]", "2: mov eax, 39", "syscall",
                site = out(reg) site, out("rax") _, out("rcx") _, out("r11") _,
            );
        }
    }
    site
}

/// To the `index`th `syscall` instruction of the engine's code, with `number` in RAX and its address in RCX. Without
/// one, tells how many there are.
pub fn gadget([seed, index, number]: Numbers) {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    let mut random = Rng::with_seed(seed);
    // SAFETY: not promised to be readable, but it is, and the test knows how far.
    let code = unsafe { core::slice::from_raw_parts(HYPERCALL_PAGE as *const u8, STUB_BYTES) };
    let mut gadgets = code.windows(2).enumerate().filter(|(_, bytes)| *bytes == SYSCALL);
    let Some((offset, _)) = gadgets.nth(index as usize) else {
        println!("{} instructions", code.windows(2).filter(|bytes| *bytes == SYSCALL).count());
        return;
    };
    let mut registers = registers(&mut random, HYPERCALL_PAGE + offset as u64);
    registers[RAX] = number;
    registers[RCX] = registers[16];
    if random.bool() {
        registers[RSI] = random.u64(..16); // an operation of futex, perhaps
    }
    // SAFETY: not met, which is the point.
    unsafe { go(&registers) }
}

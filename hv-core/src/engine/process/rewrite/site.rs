//! Whether a system call of a guest user program may be made a jump, from the bytes of its page alone.
//!
//! Two forms are taken, with a number below 0x10000:
//!
//! * `mov eax, n; syscall`: its seven bytes become `jmp [slot]`, where the slot is in the low jump table;
//! * `mov rax, n` and then `syscall`: the seven bytes of the first become it, and the `syscall` stays as it is.
//!
//! x86 code has no marks, so what looks like the `mov` can be the middle of another instruction. What is known is that
//! control did reach the `syscall`, with that number in RAX. So either the `mov` was executed, or another way through
//! the bytes before it ends at the `syscall`: each is tried, and one that cannot be ruled out refuses the site. So does a
//! direct branch to the middle.
//!
//! An indirect jump to the `syscall` of the first form is no reason to refuse. The table is at 0x1xxxx, so the jump ends
//! in the bytes `01 00`, which are `add [rax], eax`: with a number below 0x10000 in RAX, that is a fault that the engine
//! knows for what it is, since nothing is ever mapped there.
//!
//! Start at [`Site::find`].

use hv_abi::PAGE_SIZE;
use hv_abi::address::LOWEST_MAPPABLE;
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// The bytes of a page.
pub(super) type Code = [u8; PAGE_SIZE as usize];

/// Bytes of a site: those that become the jump.
pub(super) const LENGTH: usize = 7;

/// Bytes of the longest instruction.
const LONGEST: usize = 15;

/// Numbers from here on are refused: an address can be one of them.
const NUMBERS: u32 = LOWEST_MAPPABLE as u32;

/// An access through RAX so close below the lowest address that can be mapped may reach past it.
const WIDEST_ACCESS: u64 = 64;

/// A system call that may become a jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Site {
    /// Offset of its first byte in the page.
    pub start: usize,
    /// Offset of the `syscall`: inside the site, or behind it.
    pub syscall: usize,
    /// The number that it loads.
    pub number: u32,
}

/// Why a system call stays one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("what is before it is no `mov` of the number in RAX")]
    Form,
    #[error("it is too close to the beginning or end of its page")]
    Edge,
    #[error("its number is {NUMBERS:#x} or above")]
    Number,
    #[error("other instructions before it may lead to it")]
    Ambiguous,
    #[error("a branch goes to its middle")]
    Branch,
}

impl Site {
    /// The site of the `syscall` at an offset in its page, which was executed with this RAX.
    pub(super) fn find(code: &Code, syscall: usize, rax: u64) -> Result<Self, Refusal> {
        let end = syscall + 2;
        if end > code.len() || syscall < LENGTH + LONGEST {
            return Err(Refusal::Edge);
        }
        let number = u32::from_le_bytes([1, 2, 3, 4].map(|i| code[syscall - 5 + i]));
        let start = if code[..syscall].ends_with(&[&[0x48, 0xc7, 0xc0], &number.to_le_bytes()[..]].concat()) {
            syscall - 7
        } else if code[syscall - 5] == 0xb8 {
            syscall - 5
        } else {
            return Err(Refusal::Form);
        };
        let site = Self { start, syscall, number };
        if code[syscall..end] != [0x0f, 0x05] || u64::from(number) != rax {
            return Err(Refusal::Form);
        }
        if number >= NUMBERS {
            return Err(Refusal::Number);
        }
        if (start + 1 - LONGEST..start).any(|first| site.is_passed_by(code, first)) {
            return Err(Refusal::Ambiguous);
        }
        if branch_targets(code, end).any(|target| (start + 1..start + LENGTH).contains(&target)) {
            return Err(Refusal::Branch);
        }
        Ok(site)
    }

    /// Its bytes as a jump through the slot at this V.
    pub(super) fn jump(self, slot: u32) -> [u8; LENGTH] {
        let [a, b, c, d] = slot.to_le_bytes();
        [0xff, 0x24, 0x25, a, b, c, d]
    }

    /// Whether the `syscall` is a part of the jump, so that a jump to it does not execute it.
    pub(super) fn has_syscall_inside(self) -> bool {
        self.syscall < self.start + LENGTH
    }

    /// Whether instructions from `first` on, the first of which reaches over the site's start, can lead to the `syscall`.
    fn is_passed_by(self, code: &Code, first: usize) -> bool {
        let mut way = Vec::new();
        let mut at = first;
        while at < self.syscall {
            let instruction = decode(code, at);
            at += instruction.len();
            if instruction.is_invalid() || at <= self.start {
                return false;
            }
            way.push(instruction);
        }
        at == self.syscall && !faults(&way, self.number.into())
    }
}

/// Whether instructions that end with this RAX must have used an address below all that can be mapped.
fn faults(way: &[Instruction], rax: u64) -> bool {
    for instruction in way.iter().rev().take_while(|instruction| keeps_rax(instruction)) {
        let address = rax.wrapping_add(instruction.memory_displacement64());
        let through_rax = instruction.memory_base() == Register::RAX
            && instruction.memory_index() == Register::None
            && instruction.segment_prefix() == Register::None;
        if through_rax && address < LOWEST_MAPPABLE - WIDEST_ACCESS {
            return true;
        }
    }
    false
}

/// Whether it is one of the plain instructions that access their memory operand, if they have one, and certainly do not
/// write RAX.
fn keeps_rax(instruction: &Instruction) -> bool {
    use Mnemonic::{Adc, Add, And, Cmp, Mov, Or, Sbb, Sub, Test, Xor};
    let plain = matches!(instruction.mnemonic(), Adc | Add | And | Cmp | Mov | Or | Sbb | Sub | Test | Xor);
    let rax = [Register::RAX, Register::EAX, Register::AX, Register::AL, Register::AH];
    let to_rax = instruction.op0_kind() == OpKind::Register && rax.contains(&instruction.op0_register());
    plain && !to_rax
}

/// The instruction at an offset; an invalid one has at least one byte.
fn decode(code: &Code, at: usize) -> Instruction {
    Decoder::with_ip(64, &code[at..], BASE + at as u64, DecoderOptions::NONE).decode()
}

/// Where the page is taken to be; so that no branch wraps around.
const BASE: u64 = 1 << 32;

/// Offsets in the page to which direct branches of the page go.
///
/// Where instructions begin is not known but at `known`. Decoding from any byte soon falls into step with the true ones, so
/// it is begun at each of the page's first bytes. Branches with 32-bit displacements are looked for at all bytes.
fn branch_targets(code: &Code, known: usize) -> impl Iterator<Item = usize> {
    let mut seen = vec![false; code.len()];
    let mut targets = Vec::new();
    for first in (0..LONGEST).chain([known]) {
        let mut at = first;
        while at < code.len() && !std::mem::replace(&mut seen[at], true) {
            let instruction = decode(code, at);
            if instruction.op0_kind() == OpKind::NearBranch64 {
                targets.push(instruction.near_branch64());
            }
            at += if instruction.is_invalid() { 1 } else { instruction.len() };
        }
    }
    for (at, bytes) in code.windows(5).enumerate() {
        let before = at.checked_sub(1).map(|before| code[before]);
        if matches!((before, bytes[0]), (_, 0xe8 | 0xe9) | (Some(0x0f), 0x80..=0x8f)) {
            let displacement = i32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
            targets.push((BASE + at as u64 + 5).wrapping_add_signed(displacement.into()));
        }
    }
    targets.into_iter().filter_map(|target| usize::try_from(target.checked_sub(BASE)?).ok())
}

#[cfg(test)]
#[path = "site_tests.rs"]
mod tests;

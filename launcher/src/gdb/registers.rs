//! The registers of a vCPU as gdb knows them: which there are, in which order, and which are known.

use gdbstub::arch::{Arch, RegId, Registers};
use hv_core::debug::Standing;
use std::num::NonZeroUsize;
use zerocopy::IntoBytes;

/// What gdb is told of the processor, in the order in which [`Frame`] has it.
const TARGET: &str = include_str!("target.xml");

/// x86-64 as guests have it: 64-bit code, x87 and SSE, FS and GS base.
pub(super) enum X86_64 {}

impl Arch for X86_64 {
    type Usize = u64;
    type Registers = Frame;
    type BreakpointKind = usize;
    type RegId = Number;

    fn target_description_xml() -> Option<&'static str> {
        Some(TARGET)
    }
}

/// General registers, in 8 bytes each: RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15, RIP.
const GENERAL: usize = 17;
const RBP: usize = 6;
const RSP: usize = 7;
const RIP: usize = 16;
/// EFLAGS and CS, SS, DS, ES, FS, GS, in 4 bytes each.
const FLAGS: usize = 17;
const SEGMENTS: usize = 18;
/// The x87 stack, in 10 bytes each.
const STACK: usize = 24;
/// FCTRL, FSTAT, FTAG, FISEG, FIOFF, FOSEG, FOOFF, FOP, in 4 bytes each.
const CONTROL: usize = 32;
const XMM: usize = 40;
const MXCSR: usize = 56;
const FS_BASE: usize = 57;
const GS_BASE: usize = 58;
const REGISTERS: usize = 59;

/// Selectors of 64-bit code and its data.
const USER_CS: u32 = 0x33;
const USER_SS: u32 = 0x2b;

/// A register's number, which is its place in the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number(usize);

impl Number {
    /// Its bytes.
    const fn size(self) -> usize {
        match self.0 {
            0..GENERAL | FS_BASE | GS_BASE => 8,
            FLAGS..STACK | CONTROL..XMM | MXCSR => 4,
            STACK..CONTROL => 10,
            _ => 16,
        }
    }

    /// Where it is in a frame.
    fn offset(self) -> usize {
        (0..self.0).map(|number| Self(number).size()).sum()
    }
}

impl RegId for Number {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        (id < REGISTERS).then(|| (Self(id), NonZeroUsize::new(Self(id).size())))
    }
}

/// The registers of a vCPU that stands; what is not known is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame(Vec<Option<u8>>);

impl Frame {
    pub(super) fn of(standing: &Standing) -> Self {
        let mut frame = Self(vec![None; Number(REGISTERS).offset()]);
        let registers = &standing.registers;
        let words: [u64; 19] = zerocopy::transmute!(*registers);
        for (number, word) in words.iter().enumerate().take(GENERAL) {
            if !standing.in_call || [RBP, RSP, RIP].contains(&number) {
                frame.put(Number(number), &word.to_le_bytes());
            }
        }
        if !standing.in_call {
            frame.put(Number(FLAGS), &(registers.rflags as u32).to_le_bytes());
            frame.put(Number(FS_BASE), &registers.fs_base.to_le_bytes());
        }
        for (number, selector) in (SEGMENTS..STACK).zip([USER_CS, USER_SS, 0, 0, 0, 0]) {
            frame.put(Number(number), &selector.to_le_bytes());
        }
        if let Some(state) = &standing.fx_state {
            frame.put_fx_state(state.as_bytes());
        }
        frame
    }

    fn put(&mut self, number: Number, bytes: &[u8]) {
        let places = &mut self.0[number.offset()..][..number.size()];
        places.iter_mut().zip(bytes).for_each(|(place, byte)| *place = Some(*byte));
    }

    /// What `FXSAVE` has written.
    fn put_fx_state(&mut self, state: &[u8]) {
        let half = |at: usize| u32::from(u16::from_le_bytes([state[at], state[at + 1]]));
        let word = |at: usize| u32::from_le_bytes([state[at], state[at + 1], state[at + 2], state[at + 3]]);
        let control = [half(0), half(2), full_tags(state), half(12), word(8), half(20), word(16), half(6)];
        for (number, value) in (CONTROL..XMM).zip(control) {
            self.put(Number(number), &value.to_le_bytes());
        }
        for (number, at) in (STACK..CONTROL).zip((32..).step_by(16)) {
            self.put(Number(number), &state[at..at + 10]);
        }
        for (number, at) in (XMM..MXCSR).zip((160..).step_by(16)) {
            self.put(Number(number), &state[at..at + 16]);
        }
        self.put(Number(MXCSR), &state[24..28]);
    }

    /// One register; nothing if it is not known.
    pub(super) fn get(&self, number: Number) -> Vec<u8> {
        let bytes = self.0[number.offset()..][..number.size()].iter().copied();
        bytes.collect::<Option<Vec<u8>>>().unwrap_or_default()
    }

    /// A number of 64 bits, if it is known.
    fn word(&self, number: Number) -> Option<u64> {
        let mut word = [0; 8];
        let bytes = self.get(number);
        word.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        (!bytes.is_empty()).then(|| u64::from_le_bytes(word))
    }

    /// Changes one register. Whether it is one of those that can be changed.
    pub(super) fn set(&mut self, number: Number, bytes: &[u8]) -> bool {
        let is_one = number.0 <= FLAGS || number.0 == FS_BASE;
        if is_one && bytes.len() == number.size() {
            self.put(number, bytes);
        }
        is_one && bytes.len() == number.size()
    }

    /// Those that a vCPU can go on with, as they were but for what is known here.
    pub(super) fn registers(&self, old: &hv_core::engine::Registers) -> hv_core::engine::Registers {
        let mut words: [u64; 19] = zerocopy::transmute!(*old);
        let places = (0..=FLAGS).chain([FS_BASE]);
        for (word, number) in words.iter_mut().zip(places) {
            *word = self.word(Number(number)).unwrap_or(*word);
        }
        zerocopy::transmute!(words)
    }
}

/// The x87 tag word of two bits each, of `FXSAVE`'s, which has one.
fn full_tags(state: &[u8]) -> u32 {
    const EMPTY: u32 = 3;
    (0..8).map(|i| if state[4] >> i & 1 == 0 { EMPTY << (2 * i) } else { 0 }).sum()
}

impl Registers for Frame {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.word(Number(RIP)).unwrap_or(0)
    }

    fn gdb_serialize(&self, write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().copied().for_each(write_byte);
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        self.0 = bytes.iter().map(|byte| Some(*byte)).collect();
        (self.0.len() == Number(REGISTERS).offset()).then_some(()).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of each register of the description, in its order.
    fn described() -> Vec<usize> {
        let document = roxmltree::Document::parse(TARGET).expect("it is XML");
        let registers = document.descendants().filter(|node| node.has_tag_name("reg"));
        let bits = registers.map(|node| node.attribute("bitsize").expect("it has one").parse::<usize>());
        bits.map(|bits| bits.expect("a number") / 8).collect()
    }

    #[test]
    fn the_description_has_what_a_frame_has() {
        let sizes: Vec<_> = (0..REGISTERS).map(|number| Number(number).size()).collect();
        assert_eq!(described(), sizes);
    }

    #[test]
    fn tags_say_what_is_empty() {
        let mut state = [0; 512];
        assert_eq!(full_tags(&state), 0xffff);
        state[4] = 0b1000_0001;
        assert_eq!(full_tags(&state), 0x3ffc);
    }
}

//! Reports: whatever a guest's registers, its stack and its image's symbols are, a backtrace of bounded size that
//! cannot be taken for anything else.

use crate::backtrace::{Address, MOST_FRAMES, StackFrame, hint, symbolise, walk};
use crate::engine::{Access, Fault, Mapping, Registers};
use crate::memory::GuestMemory;
use crate::symbols::{LONGEST_TEXT, find};
use crate::view::View;
use arbitrary::Unstructured;
use hv_abi::{GuestPhys, PAGE_SIZE};

/// Where the images of the corpus have their code.
const CODE: u64 = 0x40_1000;
/// Where the stack is.
const STACK: u64 = 0x50_0000;
/// Work that such small images may take.
const WORK: usize = 1 << 20;

/// Makes the backtrace of a made-up guest, whose image is the rest of the input.
pub fn symbols(input: &[u8]) {
    let input = &mut Unstructured::new(input);
    let _ = made_up(input).map(|case| case.check()); // too short an input is no case
}

struct Case<'a> {
    registers: Registers,
    stack: Vec<u64>,
    image: &'a [u8],
}

fn made_up<'a>(u: &mut Unstructured<'a>) -> arbitrary::Result<Case<'a>> {
    let registers =
        Registers { rip: u.arbitrary()?, rsp: u.arbitrary()?, rbp: u.arbitrary()?, ..<_>::default() };
    let words = usize::from(u.arbitrary::<u8>()?);
    let stack = (0..words).map(|_| u.arbitrary()).collect::<Result<_, _>>()?;
    Ok(Case { registers, stack, image: u.peek_bytes(u.len()).unwrap_or_default() })
}

impl Case<'_> {
    fn check(&self) {
        let memory = GuestMemory::new(PAGE_SIZE).expect("a page can be had");
        for (at, word) in (0..).step_by(8).zip(&self.stack) {
            memory.write(GuestPhys(at), word).expect("the stack fits");
        }
        let mapping =
            |virt, execute: bool| Mapping { virt, phys: 0, length: PAGE_SIZE, write: !execute, execute };
        let mappings = [mapping(CODE, true), mapping(STACK, false)];
        let view = View::kernel(&memory, &mappings, None);
        let mut addresses = walk(&view, &self.registers, MOST_FRAMES).addresses;
        assert!(addresses.len() <= MOST_FRAMES);
        for access in [Access::Read, Access::Write, Access::Execute] {
            hint(Fault::PageFault { address: self.registers.rip, access }, &self.registers, &view);
        }

        // Where the guest is, and everywhere else that it could be.
        addresses.extend((CODE..CODE + 512).map(Address::Instruction));
        let frames = symbolise(self.image, &addresses);
        check_frames(&frames);
        let mut told: Vec<_> = frames.iter().map(|frame| frame.address).collect();
        told.dedup();
        let address = |(Address::Instruction(at) | Address::Return(at) | Address::Nowhere(at))| at;
        let mut asked: Vec<_> = addresses.into_iter().map(address).collect();
        asked.dedup();
        assert!(asked.starts_with(&told), "out of order: {told:x?}");
        assert!(asked.len() == told.len() || frames.len() == MOST_FRAMES, "left out: {told:x?}");
        let edges = [0, 1, u64::MAX];
        find(self.image, edges.into_iter(), WORK).iter().for_each(|found| check_frames(&found.frames));
    }
}

fn check_frames(frames: &[StackFrame]) {
    assert!(frames.len() <= MOST_FRAMES);
    for text in frames.iter().flat_map(|frame| [&frame.function, &frame.file]).flatten() {
        assert!(text.len() <= LONGEST_TEXT && !text.contains(char::is_control), "{text:?}");
    }
}

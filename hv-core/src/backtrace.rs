//! Where a guest was: its stack, by frame pointers, in the words of its source.
//!
//! The stack is the guest's, so it is read with the same distrust as everything else, and a walk ends after a
//! fixed number of frames. Names and lines come from the image's own symbols, if it has any: see `symbols`.

use crate::engine::{Access, Fault, Registers};
use crate::symbols;
use crate::view::View;
use core::fmt;
use hv_abi::PAGE_SIZE;
use serde::Serialize;

/// Frames in a backtrace, at the most.
pub(crate) const MOST_FRAMES: usize = 4096;

/// How far below a stack an overflow is still taken for one, in bytes.
const GUARD: u64 = 64 << 10;

/// One function on a guest's stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StackFrame {
    /// Address of the instruction, or of the return.
    pub address: u64,
    /// The function, if the image says.
    pub function: Option<String>,
    /// Source file, if the image says.
    pub file: Option<String>,
    /// Line, if the image says.
    pub line: Option<u32>,
}

impl fmt::Display for StackFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#012x} {}", self.address, self.function.as_deref().unwrap_or("?"))?;
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            write!(f, "  at {file}:{line}")?;
        }
        Ok(())
    }
}

/// An address on a guest's stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// Of an instruction that was being executed.
    Instruction(u64),
    /// Behind a call, which may be the last instruction of another line or function.
    Return(u64),
    /// Where the guest was, though no code of its is there: whatever it is, the image has no name for it.
    Nowhere(u64),
}

/// What was found on a stack.
pub(crate) struct Stack {
    /// Innermost first.
    pub addresses: Vec<Address>,
    /// It was walked to the outermost frame, whose frame pointer is 0.
    pub complete: bool,
}

/// Walks a stack, for at most so many addresses.
pub(crate) fn walk(view: &View<'_>, registers: &Registers, most: usize) -> Stack {
    let executable = |address| view.is_executable(address);
    let mut addresses = Vec::new();
    match registers.rip {
        0 => {}
        rip if executable(rip) => addresses.push(Address::Instruction(rip)),
        rip => addresses.push(Address::Nowhere(rip)),
    }
    // In a hypercall RIP is not known, and after a jump to nowhere it says nothing; both have left the return address
    // of their call on top of the stack.
    if !executable(registers.rip) {
        let top = view.read_word(registers.rsp).filter(|address| executable(*address));
        addresses.extend(top.map(Address::Return));
    }
    let mut frame = registers.rbp;
    while addresses.len() < most {
        let (Some(next), Some(address)) = (view.read_word(frame), view.read_word(frame.wrapping_add(8)))
        else {
            break;
        };
        if !executable(address) {
            break;
        }
        addresses.push(Address::Return(address));
        let last = std::mem::replace(&mut frame, next);
        if next <= last {
            break; // stacks grow down, so frames go up
        }
    }
    Stack { addresses, complete: frame == 0 }
}

/// A telling sign about a fault.
pub(crate) fn hint(fault: Fault, registers: &Registers, view: &View<'_>) -> Option<&'static str> {
    let Fault::PageFault { address, access } = fault else { return None };
    let mapping = view.find(address);
    let writable = |address| view.find(address).is_some_and(|mapping| mapping.write);
    let below_a_mapping =
        || (PAGE_SIZE..=GUARD).step_by(PAGE_SIZE as usize).any(|up| writable(address.saturating_add(up)));
    if mapping.is_none() && registers.rsp.abs_diff(address) <= GUARD && below_a_mapping() {
        return Some("the stack has overflowed into its guard page");
    }
    match (mapping, access) {
        (None, _) if address < hv_abi::address::LOWEST_MAPPABLE => Some("a null pointer, or near one"),
        (Some(_), Access::Write) => Some("the page is read-only"),
        (Some(_), Access::Execute) => Some("the page is not executable"),
        _ => None,
    }
}

/// Names the functions at some addresses, innermost first, inlined ones included. The result is in the order of addresses, each
/// once. An image is a stranger's: what takes too much work stays unnamed.
pub fn names(image: &[u8], addresses: impl Iterator<Item = u64>) -> Vec<(u64, Vec<StackFrame>)> {
    let found = symbols::find(image, addresses, symbols::WORK);
    found.into_iter().map(|found| (found.at, found.frames)).collect()
}

/// Names the functions on a stack, inlined ones included.
pub(crate) fn symbolise(image: &[u8], addresses: &[Address]) -> Vec<StackFrame> {
    // The address shown, and the one looked up.
    let addresses = addresses.iter().map(|address| match *address {
        Address::Instruction(at) => (at, Some(at)),
        Address::Return(at) => (at, Some(at.saturating_sub(1))),
        Address::Nowhere(at) => (at, None),
    });
    let found = symbols::find(image, addresses.clone().filter_map(|(_, at)| at), symbols::WORK);
    let frames = |(address, at): (u64, Option<u64>)| -> Vec<StackFrame> {
        let index = at.and_then(|at| found.binary_search_by_key(&at, |found| found.at).ok());
        match index {
            Some(index) => found[index].frames.iter().map(|f| StackFrame { address, ..f.clone() }).collect(),
            None => vec![StackFrame { address, function: None, file: None, line: None }],
        }
    };
    addresses.flat_map(frames).take(MOST_FRAMES).collect()
}

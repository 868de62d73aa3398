//! Where a guest was: its stack, by frame pointers, in the words of its source.
//!
//! The stack is the guest's, so it is read with the same distrust as everything else, and a walk ends after a
//! fixed number of frames. Names and lines come from the image's own symbols, if it has any.

use crate::engine::{Access, Fault, Mapping, Registers};
use crate::memory::GuestMemory;
use addr2line::gimli::{Dwarf, EndianSlice, LittleEndian, SectionId};
use core::fmt;
use hv_abi::GuestPhys;
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};
use serde::Serialize;

/// Frames in a backtrace, at the most.
const MOST_FRAMES: usize = 64;

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

/// Reads 8 bytes at a guest-virtual address of the guest kernel.
fn read_virtual(memory: &GuestMemory, mappings: &[Mapping], address: u64) -> Option<u64> {
    let mapping = mappings.iter().find(|m| (m.virt..m.virt + m.length).contains(&address))?;
    memory.read(GuestPhys(mapping.phys + (address - mapping.virt))).ok()
}

/// Return addresses on the stack, innermost first; RIP is the first if it is known.
pub(crate) fn walk(memory: &GuestMemory, mappings: &[Mapping], registers: &Registers) -> Vec<u64> {
    let executable = |address: u64| {
        mappings.iter().any(|m| m.execute && (m.virt..m.virt + m.length).contains(&address))
    };
    let read = |address| read_virtual(memory, mappings, address);
    let mut addresses = Vec::new();
    if registers.rip != 0 {
        addresses.push(registers.rip);
        // A jump to nowhere leaves the return address of its call on top of the stack.
        if !executable(registers.rip) {
            addresses.extend(read(registers.rsp).filter(|address| executable(*address)));
        }
    } else {
        // In a hypercall: the return address of the entry's caller.
        addresses.extend(read(registers.rsp).filter(|address| executable(*address)));
    }
    let mut frame = registers.rbp;
    while addresses.len() < MOST_FRAMES {
        let (Some(next), Some(address)) = (read(frame), read(frame.wrapping_add(8))) else { break };
        if !executable(address) {
            break;
        }
        addresses.push(address);
        if next <= frame {
            break; // stacks grow down, so frames go up
        }
        frame = next;
    }
    addresses
}

/// A telling sign about a fault.
pub(crate) fn hint(fault: Fault, registers: &Registers, mappings: &[Mapping]) -> Option<&'static str> {
    let Fault::PageFault { address, access } = fault else { return None };
    let mapped = |address: u64| mappings.iter().find(|m| (m.virt..m.virt + m.length).contains(&address));
    let below_a_mapping = mappings.iter().any(|m| m.write && address < m.virt && m.virt - address <= GUARD);
    if mapped(address).is_none() && below_a_mapping && registers.rsp.abs_diff(address) <= GUARD {
        return Some("the stack has overflowed into its guard page");
    }
    match (mapped(address), access) {
        (None, _) if address < hv_abi::address::LOWEST_MAPPABLE => Some("a null pointer, or near one"),
        (Some(_), Access::Write) => Some("the page is read-only"),
        (Some(_), Access::Execute) => Some("the page is not executable"),
        _ => None,
    }
}

/// Names the functions at some addresses, inlined ones included.
pub(crate) fn symbolise(image: &[u8], addresses: &[u64]) -> Vec<StackFrame> {
    let Ok(file) = object::File::parse(image) else {
        return addresses.iter().map(|address| unnamed(*address)).collect();
    };
    let section = |id: SectionId| {
        let data = file.section_by_name(id.name()).and_then(|s| s.data().ok()).unwrap_or_default();
        Ok::<_, addr2line::gimli::Error>(EndianSlice::new(data, LittleEndian))
    };
    let context = Dwarf::load(section).and_then(addr2line::Context::from_dwarf).ok();
    let first = addresses.first().copied();
    addresses
        .iter()
        .flat_map(|address| {
            // A return address is behind its call, which may be the last instruction of another line.
            let at = if Some(*address) == first { *address } else { *address - 1 };
            let frames = context.as_ref().map(|context| inlined(context, *address, at)).unwrap_or_default();
            if frames.is_empty() { vec![by_symbol(&file, *address, at)] } else { frames }
        })
        .collect()
}

type Reader<'a> = EndianSlice<'a, LittleEndian>;

fn inlined(context: &addr2line::Context<Reader<'_>>, address: u64, at: u64) -> Vec<StackFrame> {
    let mut frames = Vec::new();
    let Ok(mut found) = context.find_frames(at).skip_all_loads() else { return frames };
    while let Ok(Some(frame)) = found.next() {
        let Some(function) = &frame.function else { continue };
        frames.push(StackFrame {
            address,
            function: function.demangle().ok().map(std::borrow::Cow::into_owned),
            file: frame.location.as_ref().and_then(|l| l.file).map(str::to_owned),
            line: frame.location.as_ref().and_then(|l| l.line),
        });
    }
    frames
}

/// The function that an address is in, by the symbol table.
fn by_symbol(file: &object::File<'_>, address: u64, at: u64) -> StackFrame {
    let holds = |s: &object::Symbol<'_, '_>| {
        matches!(s.kind(), SymbolKind::Text | SymbolKind::Unknown)
            && s.address() <= at
            && at - s.address() < s.size().max(1)
    };
    let name = file.symbols().find(holds).and_then(|s| s.name().ok().map(str::to_owned));
    let function = name.map(|name| format!("{:#}", rustc_demangle::demangle(&name)));
    StackFrame { function, ..unnamed(address) }
}

fn unnamed(address: u64) -> StackFrame {
    StackFrame { address, function: None, file: None, line: None }
}

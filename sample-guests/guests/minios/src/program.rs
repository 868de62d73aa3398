//! Making a process's memory from a program: its ELF file's segments, a stack, and the arguments on it.
//!
//! Nothing of the file is copied here but the arguments: its pages are filled in when they are first touched.

use crate::memory::{Memory, Region};
use guest_sdk::hv_abi::PAGE_SIZE;
use guest_sdk::space::Rights;
use minios_abi::Error;
use object::LittleEndian;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PF_W, PF_X, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use zerocopy::IntoBytes;

/// Where the stack ends, and how long it can get.
const STACK_END: u64 = 0x7f_0000_0000;
const STACK: u64 = 1 << 20;

const ENDIAN: LittleEndian = LittleEndian;

/// What a program is started with.
#[derive(Debug)]
pub struct Start {
    /// All that it can touch.
    pub memory: Memory,
    /// Its first instruction.
    pub entry: u64,
    /// The first stack pointer, and the address of a [`minios_abi::Start`].
    pub stack: u64,
}

/// Makes memory for a program.
///
/// # Errors
///
/// The file is no program, or there is no memory.
pub fn load(file: &'static [u8], arguments: &[u8]) -> Result<Start, Error> {
    let bad = |_| Error::NotExecutable;
    let header = FileHeader64::<LittleEndian>::parse(file).map_err(bad)?;
    if header.e_machine(ENDIAN) != EM_X86_64 || header.e_type(ENDIAN) != ET_EXEC {
        return Err(Error::NotExecutable);
    }
    let memory = Memory::new()?;
    for segment in header.program_headers(ENDIAN, file).map_err(bad)? {
        if segment.p_type(ENDIAN) == PT_LOAD && segment.p_memsz(ENDIAN) > 0 {
            memory.add(region(file, segment).ok_or(Error::NotExecutable)?)?;
        }
    }
    let range = STACK_END - STACK..STACK_END;
    memory.add(Region { range, rights: Rights::WRITE, content: (STACK_END, &[]) })?;
    let length = arguments.len() as u64;
    let arguments_at = STACK_END - length;
    memory.write(arguments_at, arguments)?;
    let stack = (arguments_at & !15) - size_of::<minios_abi::Start>() as u64;
    memory.write(stack, minios_abi::Start { arguments: arguments_at, length }.as_bytes())?;
    Ok(Start { memory, entry: header.e_entry(ENDIAN), stack })
}

/// What a segment is in memory; `None` if it is not sound.
fn region(file: &'static [u8], segment: &ProgramHeader64<LittleEndian>) -> Option<Region> {
    let bytes = segment.data(ENDIAN, file).ok()?;
    let (start, size) = (segment.p_vaddr(ENDIAN), segment.p_memsz(ENDIAN));
    if bytes.len() as u64 > size {
        return None;
    }
    let range = start - start % PAGE_SIZE..start.checked_add(size)?.checked_next_multiple_of(PAGE_SIZE)?;
    let flags = segment.p_flags(ENDIAN);
    let rights = Rights { write: (flags & PF_W).0 != 0, execute: (flags & PF_X).0 != 0 };
    Some(Region { range, rights, content: (start, bytes) })
}

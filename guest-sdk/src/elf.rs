//! Loading programs: static ELF files for x86-64.
//!
//! A file is not trusted: whatever is in it gives a program or an error.
//!
//! Start at [`load`].

use crate::frames;
use crate::space::{AddressSpace, MapError, Rights, USER};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use hv_abi::PAGE_SIZE;
use object::LittleEndian;
use object::elf::{EM_X86_64, ET_EXEC, FileHeader64, PF_W, PF_X, PT_INTERP, PT_LOAD, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};

/// What a program needs to know of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its first instruction.
    pub entry: u64,
    /// The first page behind all that was loaded.
    pub end: u64,
}

/// Why a file is no program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    /// It is no ELF file, or cut off.
    NotElf,
    /// It is one, but for another machine, or to be relocated or linked before it is run.
    NotStatic,
    /// A segment has addresses that a program cannot have, or its part of the file is not in the file.
    BadSegment,
    /// There are not enough frames for it.
    OutOfMemory,
}

impl core::fmt::Display for LoadError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NotElf => "not an ELF file",
            Self::NotStatic => "not a static program for x86-64",
            Self::BadSegment => "a segment is not in the file, or not at addresses of a program",
            Self::OutOfMemory => "not enough memory for the program",
        })
    }
}

impl core::error::Error for LoadError {}

impl From<frames::OutOfMemory> for LoadError {
    fn from(frames::OutOfMemory: frames::OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<MapError> for LoadError {
    fn from(error: MapError) -> Self {
        match error {
            MapError::BadAddress => Self::BadSegment,
            MapError::OutOfMemory => Self::OutOfMemory,
        }
    }
}

/// Pages of a program, by number.
type Pages = BTreeMap<u64, (Arc<frames::Frame>, Rights)>;

/// Maps the program in `file` into `space`, in the place of what is there: its segments with their rights, and what they
/// have beyond the file zeroed. A page that two segments share has the rights of both.
///
/// # Errors
///
/// [`LoadError`]. Nothing is mapped then, unless it is `OutOfMemory`. Does not block.
pub fn load(space: &mut AddressSpace, file: &[u8]) -> Result<Program, LoadError> {
    let header = FileHeader64::<LittleEndian>::parse(file).map_err(|_| LoadError::NotElf)?;
    let endian = LittleEndian;
    if header.e_machine(endian) != EM_X86_64 || header.e_type(endian) != ET_EXEC {
        return Err(LoadError::NotStatic);
    }
    let segments = header.program_headers(endian, file).map_err(|_| LoadError::NotElf)?;
    if segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP) {
        return Err(LoadError::NotStatic);
    }
    let mut pages = Pages::new();
    for segment in segments.iter().filter(|segment| segment.p_type(endian) == PT_LOAD) {
        load_segment(&mut pages, segment, file)?;
    }
    let end = pages.last_key_value().map_or(USER.start, |(page, _)| (page + 1) * PAGE_SIZE);
    for (page, (frame, rights)) in pages {
        space.map(page * PAGE_SIZE, frame, rights)?;
    }
    Ok(Program { entry: header.e_entry(endian), end })
}

/// Copies a segment into `pages`.
fn load_segment(
    pages: &mut Pages,
    segment: &ProgramHeader64<LittleEndian>,
    file: &[u8],
) -> Result<(), LoadError> {
    let endian = LittleEndian;
    let (start, size) = (segment.p_vaddr(endian), segment.p_memsz(endian));
    let data = segment.data(endian, file).map_err(|()| LoadError::BadSegment)?;
    let end = start.checked_add(size).ok_or(LoadError::BadSegment)?;
    if data.len() as u64 > size || start < USER.start || end > USER.end {
        return Err(LoadError::BadSegment);
    }
    if (end - start).div_ceil(PAGE_SIZE) > frames::available() {
        return Err(LoadError::OutOfMemory); // before a size that is a lie takes all there is
    }
    let flags = segment.p_flags(endian);
    let (write, execute) = (flags.0 & PF_W.0 != 0, flags.0 & PF_X.0 != 0);
    let first = start / PAGE_SIZE;
    for page in first..end.div_ceil(PAGE_SIZE).max(first) {
        if let alloc::collections::btree_map::Entry::Vacant(vacant) = pages.entry(page) {
            vacant.insert((Arc::new(frames::allocate_zeroed(0)?), Rights::READ));
        }
        let (frame, rights) = pages.get_mut(&page).expect("there, or just made");
        rights.write |= write;
        rights.execute |= execute;
        // The part of the file that is in this page.
        let from = start.max(page * PAGE_SIZE);
        let to = (start + data.len() as u64).min((page + 1) * PAGE_SIZE);
        if from < to {
            frame
                .write_at((from % PAGE_SIZE) as usize, &data[(from - start) as usize..(to - start) as usize]);
        }
    }
    Ok(())
}

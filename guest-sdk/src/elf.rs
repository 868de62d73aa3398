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

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// A segment: type, flags, offset in the file, V, bytes in the file, bytes in memory.
    type Segment = (u32, u32, u64, u64, u64, u64);

    const LOAD: u32 = 1;
    const READ_EXECUTE: u32 = 5;
    const READ_WRITE: u32 = 6;

    /// A program with these segments, in a file of 0x3000 bytes that count up behind the headers.
    fn file(segments: &[Segment]) -> Vec<u8> {
        let mut file: Vec<u8> = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
        file.extend(0x40_0010_u64.to_le_bytes());
        file.extend(64_u64.to_le_bytes()); // program headers
        file.extend([0; 8 + 4]);
        for half in [64, 56, segments.len() as u16, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        for (kind, flags, offset, virt, in_file, in_memory) in segments {
            file.extend(kind.to_le_bytes());
            file.extend(flags.to_le_bytes());
            for word in [offset, virt, virt, in_file, in_memory, &0x1000] {
                file.extend(word.to_le_bytes());
            }
        }
        let rest = (file.len()..0x3000).map(|i| i as u8);
        file.extend(rest.collect::<Vec<u8>>());
        file
    }

    fn load_new(file: &[u8]) -> (Result<Program, LoadError>, AddressSpace) {
        let mut space = AddressSpace::new().unwrap();
        (load(&mut space, file), space)
    }

    #[test]
    fn segments_have_their_bytes_and_rights_and_zeros_behind() {
        let file = file(&[
            (LOAD, READ_EXECUTE, 0x1000, 0x40_0000, 0x1000, 0x1000),
            (LOAD, READ_WRITE, 0x2010, 0x40_1010, 0x20, 0x2000),
        ]);
        let (program, space) = load_new(&file);
        assert_eq!(program, Ok(Program { entry: 0x40_0010, end: 0x40_4000 }));
        let rights = |virt| space.translate(virt).map(|found| found.rights);
        assert_eq!(rights(0x40_0000), Some(Rights::EXECUTE));
        assert_eq!(rights(0x40_3000), Some(Rights::WRITE));
        assert_eq!(rights(0x40_4000), None);
        let mut bytes = [1; 0x3000];
        space.copy_in(0x40_0000, &mut bytes).unwrap();
        assert_eq!(bytes[..0x1000], file[0x1000..0x2000]);
        assert_eq!(bytes[0x1000..0x1010], [0; 16], "what other segments do not fill");
        assert_eq!(bytes[0x1010..0x1030], file[0x2010..0x2030]);
        assert!(bytes[0x1030..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn segments_in_one_page_share_it() {
        let (program, space) = load_new(&file(&[
            (LOAD, READ_EXECUTE, 0x1000, 0x40_0000, 8, 8),
            (LOAD, READ_WRITE, 0x1008, 0x40_0008, 8, 8),
        ]));
        assert!(program.is_ok());
        let found = space.translate(0x40_0000).unwrap();
        assert_eq!(found.rights, Rights { write: true, execute: true });
        let mut bytes = [0; 16];
        space.copy_in(0x40_0000, &mut bytes).unwrap();
        assert_eq!(bytes, core::array::from_fn(|i| i as u8));
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let bad = |segment: Segment| load_new(&file(&[segment])).0.unwrap_err();
        assert_eq!(bad((LOAD, 4, 0, 0x1000, 8, 8)), LoadError::BadSegment, "the host's addresses");
        assert_eq!(bad((LOAD, 4, 0, u64::MAX - 4, 8, 8)), LoadError::BadSegment);
        assert_eq!(bad((LOAD, 4, 0, USER.end - 8, 8, 16)), LoadError::BadSegment);
        assert_eq!(bad((LOAD, 4, 0x2fff, 0x40_0000, 8, 8)), LoadError::BadSegment, "not in the file");
        assert_eq!(bad((LOAD, 4, u64::MAX, 0x40_0000, 8, 8)), LoadError::BadSegment);
        assert_eq!(bad((LOAD, 4, 0, 0x40_0000, 9, 8)), LoadError::BadSegment, "more in file than in memory");
        assert_eq!(bad((LOAD, 4, 0, 0x40_0000, 8, 1 << 45)), LoadError::OutOfMemory);
        assert_eq!(bad((3, 4, 0, 0x40_0000, 8, 8)), LoadError::NotStatic);
        let mut other = file(&[]);
        other[18] = 40;
        assert_eq!(load_new(&other).0, Err(LoadError::NotStatic), "another machine");
        assert_eq!(load_new(b"#!/bin/sh").0, Err(LoadError::NotElf));
    }

    #[test]
    fn no_file_makes_it_panic() {
        let good = file(&[(LOAD, READ_WRITE, 0x1000, 0x40_0000, 0x100, 0x2000)]);
        for length in 0..200 {
            let _ = load_new(&good[..length]).0;
        }
        let mut random = 5_u64;
        for _ in 0..3000 {
            let mut bad = good.clone();
            for _ in 0..3 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                bad[(random >> 33) as usize % 120] = (random >> 50) as u8;
            }
            let (result, space) = load_new(&bad);
            if result.is_err() && result != Err(LoadError::OutOfMemory) {
                assert_eq!(space.mappings().count(), 0);
            }
        }
    }
}

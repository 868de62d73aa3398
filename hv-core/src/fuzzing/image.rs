//! The ELF loader: whatever the bytes, an image that keeps every rule of docs/abi.md, section 4, or a refusal that is
//! true. The file is read a second time here, field by field, without the library that the loader uses.

use super::boot::Case;
use crate::image::{Image, ImageError, Segment};
use hv_abi::{Features, PAGE_SIZE};

const MACHINE: (u8, u8, u16) = (2, 1, 62);
const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;
const PT_DYNAMIC_OR_INTERP: [u64; 2] = [2, 3];
/// An image that fits into this is loaded, too.
const MEMORY: usize = 1 << 20;

/// Parses a file and, if it is an image, loads it.
pub fn image(bytes: &[u8]) {
    let file = File(bytes);
    match Image::parse(bytes.to_vec()) {
        Ok(image) => {
            file.check(&image);
            if image.phys_end() <= MEMORY as u64 {
                let (ramdisk, command_line, features) = (Vec::new(), Vec::new(), Features::empty());
                Case { image, ramdisk, command_line, features, memory: MEMORY }.check();
            }
        }
        Err(error) => assert!(file.is_refused_for(&error), "not true: {error:?}"),
    }
}

/// An ELF file.
struct File<'a>(&'a [u8]);

/// What a program header says.
struct Header {
    kind: u64,
    flags: u64,
    offset: u64,
    virt: u64,
    phys: u64,
    file: u64,
    memory: u64,
    align: u64,
}

impl Header {
    /// Whether both have a page in common, `space` telling where they are.
    fn shares_a_page(&self, other: &Self, space: fn(&Self) -> u64) -> bool {
        let first = |header: &Self| u128::from(space(header) / PAGE_SIZE);
        let last = |header: &Self| {
            (u128::from(space(header)) + u128::from(header.memory) - 1) / u128::from(PAGE_SIZE)
        };
        first(self) <= last(other) && first(other) <= last(self)
    }

    fn is_outside(&self) -> bool {
        let end = u128::from(self.virt) + u128::from(self.memory);
        self.virt < 0x1_0000 || end > 0x1000_0000_0000
    }

    fn is_past_all_memory(&self) -> bool {
        u128::from(self.phys) + u128::from(self.memory) > 512 << 30
    }
}

impl File<'_> {
    /// The little-endian number of `size` bytes at `at`.
    fn number(&self, at: u64, size: usize) -> Option<u64> {
        let bytes = self.0.get(usize::try_from(at).ok()?..)?.get(..size)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// The program headers, up to the first that is not in the file.
    fn headers(&self) -> Vec<Header> {
        let (at, count) = (self.number(32, 8).unwrap_or(0), self.number(56, 2).unwrap_or(0));
        let header = |index: u64| {
            let at = at.checked_add(index * 56).filter(|at| *at > 0)?;
            let word = |offset| self.number(at.checked_add(offset)?, 8);
            Some(Header {
                kind: self.number(at, 4)?,
                flags: self.number(at + 4, 4)?,
                offset: word(8)?,
                virt: word(16)?,
                phys: word(24)?,
                file: word(32)?,
                memory: word(40)?,
                align: word(48)?,
            })
        };
        (0..count).map_while(header).collect()
    }

    fn loads(&self) -> Vec<Header> {
        self.headers().into_iter().filter(|header| header.kind == PT_LOAD && header.memory > 0).collect()
    }

    /// Descriptors of the notes of owner `hv` and type 1.
    fn notes(&self) -> Vec<&[u8]> {
        let mut found = Vec::new();
        for header in self.headers().iter().filter(|header| header.kind == PT_NOTE && header.align <= 8) {
            let align = if header.align == 8 {
                8
            } else if header.align <= 4 {
                4
            } else {
                continue;
            };
            let Some(mut rest) =
                self.0.get(header.offset as usize..).and_then(|rest| rest.get(..header.file as usize))
            else {
                continue;
            };
            while let Some(note) = note(rest, align) {
                if note.owner == b"hv" && note.kind == 1 {
                    found.push(note.descriptor);
                }
                rest = note.behind;
            }
        }
        found
    }

    /// Whether what the error says is so.
    fn is_refused_for(&self, error: &ImageError) -> bool {
        let length = self.0.len() as u64;
        let loads = self.loads();
        let ends_at = |kind, end| {
            self.headers()
                .iter()
                .any(|header| header.kind == kind && header.offset.saturating_add(header.file) == end)
        };
        match *error {
            ImageError::TooShort { found } => found == self.0.len() && found < 64,
            ImageError::NotElf { found } => self.0.starts_with(&found) && found != *b"\x7fELF",
            ImageError::WrongMachine { class, encoding, machine } => {
                (self.0[4], self.0[5], u16::from_le_bytes([self.0[18], self.0[19]]))
                    == (class, encoding, machine)
                    && (class, encoding, machine) != MACHINE
            }
            ImageError::ElfVersion { found } => self.0[6] == found && found != 1,
            ImageError::NotExecutable { found } => self.number(16, 2) == Some(found.into()) && found != 2,
            ImageError::HeaderSize { found } => self.number(54, 2) == Some(found.into()) && found != 56,
            ImageError::ManyHeaders => self.number(56, 2) == Some(0xffff),
            ImageError::Dynamic => {
                self.headers().iter().any(|header| PT_DYNAMIC_OR_INTERP.contains(&header.kind))
            }
            ImageError::Truncated { what, end, length: told } => {
                let named = match what {
                    "program headers" => Some(end) == self.headers_end(),
                    "the notes" => ends_at(PT_NOTE, end),
                    "a segment's data" => ends_at(PT_LOAD, end),
                    _ => false,
                };
                named && told == length && end > length
            }
            ImageError::NoNote => self.notes().is_empty(),
            ImageError::ManyNotes { found } => self.notes().len() == found && found > 1,
            ImageError::BadNote { found, reserved } => {
                self.notes()[0].len() == found
                    && (found != 32 || reserved != 0 && self.note_word(4, 4) == u64::from(reserved))
            }
            ImageError::AbiVersion { found } => self.note_word(0, 4) == u64::from(found) && found != 1,
            ImageError::Features { missing } => {
                missing == Features::from_bits_retain(self.note_word(8, 8)) - crate::offered_features()
                    && !missing.is_empty()
            }
            ImageError::TooManySegments { found } => loads.len() == found && found > 24,
            ImageError::NoSegments => loads.is_empty(),
            ImageError::OutsideAddressSpace { index, start, length } => {
                let load = &loads[index];
                load.memory == length
                    && (load.virt == start && load.is_outside()
                        || load.phys == start && load.is_past_all_memory())
            }
            ImageError::LargerInFile { index, file, memory } => {
                (loads[index].file, loads[index].memory) == (file, memory) && file > memory
            }
            ImageError::Misaligned { index, virt, phys } => {
                (loads[index].virt, loads[index].phys) == (virt, phys) && virt % PAGE_SIZE != phys % PAGE_SIZE
            }
            ImageError::Overlap { first, second, space } => {
                let at = if space == "virtual" {
                    |header: &Header| header.virt
                } else {
                    |header: &Header| header.phys
                };
                first != second && loads[first].shares_a_page(&loads[second], at)
            }
            ImageError::OverBootInformation { index, start } => {
                loads[index].phys == start && start < 0x1_0000
            }
            ImageError::Entry { entry } => self.number(24, 8) == Some(entry) && !self.is_code(entry),
        }
    }

    /// Where the table of program headers ends, in the file or not.
    fn headers_end(&self) -> Option<u64> {
        Some(self.number(32, 8)?.saturating_add(self.number(56, 2)? * 56))
    }

    /// A field of the one note.
    fn note_word(&self, at: u64, size: usize) -> u64 {
        File(self.notes()[0]).number(at, size).expect("the note is long enough")
    }

    fn is_code(&self, at: u64) -> bool {
        let holds = |load: &Header| load.flags & 1 != 0 && load.virt <= at && at - load.virt < load.memory;
        self.loads().iter().any(holds)
    }

    /// Every rule, and that the image is what the file says.
    fn check(&self, image: &Image) {
        let machine = (self.0[4], self.0[5], u16::from_le_bytes([self.0[18], self.0[19]]));
        assert!(self.0.starts_with(b"\x7fELF") && machine == MACHINE, "[IMAGE-001]");
        assert_eq!(self.number(16, 2), Some(2), "[IMAGE-002]");
        let (headers, loads) = (self.headers(), self.loads());
        assert_eq!(Some(headers.len() as u64), self.number(56, 2), "all headers are in the file");
        assert!(!headers.iter().any(|header| PT_DYNAMIC_OR_INTERP.contains(&header.kind)), "[IMAGE-003]");
        assert!((1..=24).contains(&loads.len()), "[IMAGE-004]");
        for (index, load) in loads.iter().enumerate() {
            assert!(!load.is_outside(), "[IMAGE-005]");
            for other in &loads[..index] {
                assert!(!load.shares_a_page(other, |header| header.virt), "[IMAGE-006]");
                assert!(!load.shares_a_page(other, |header| header.phys), "[IMAGE-006]");
            }
            assert!(load.phys >= 0x1_0000 && !load.is_past_all_memory(), "[IMAGE-007]");
            assert_eq!(load.virt % PAGE_SIZE, load.phys % PAGE_SIZE, "[IMAGE-008]");
            assert!(
                load.file <= load.memory && load.offset + load.file <= self.0.len() as u64,
                "[IMAGE-009]"
            );
        }
        assert_eq!(Some(image.entry), self.number(24, 8));
        assert!(self.is_code(image.entry), "[IMAGE-010]");
        assert_eq!(self.notes().len(), 1, "[IMAGE-013, 014]");
        assert_eq!(
            (self.notes()[0].len(), self.note_word(0, 4), self.note_word(4, 4)),
            (32, 1, 0),
            "[IMAGE-015, 016]"
        );
        let needed = Features::from_bits_retain(self.note_word(8, 8));
        assert!(crate::offered_features().contains(needed), "[IMAGE-017]");
        let note = (needed.bits(), self.note_word(16, 8), self.note_word(24, 8));
        assert_eq!((image.note.needed.bits(), image.note.liked.bits(), image.note.least_memory), note);
        assert_eq!(image.segments, loads.iter().map(segment).collect::<Vec<_>>(), "[IMAGE-012]");
    }
}

fn segment(load: &Header) -> Segment {
    let start = load.offset as usize;
    Segment {
        virt: load.virt,
        phys: load.phys,
        length: load.memory,
        data: start..start + load.file as usize,
        write: load.flags & 2 != 0,
        execute: load.flags & 1 != 0,
    }
}

/// An ELF note, and the bytes behind it.
struct Note<'a> {
    owner: &'a [u8],
    kind: u64,
    descriptor: &'a [u8],
    behind: &'a [u8],
}

/// The first note of a segment.
fn note(bytes: &[u8], align: usize) -> Option<Note<'_>> {
    let word = |at| File(bytes).number(at, 4);
    let (owner_size, size, kind) = (word(0)? as usize, word(4)? as usize, word(8)?);
    let owner = bytes.get(12..12 + owner_size)?;
    let at = (12 + owner_size).next_multiple_of(align);
    let descriptor = bytes.get(at..at + size)?;
    let behind = bytes.get((at + size).next_multiple_of(align)..).unwrap_or_default();
    let name = owner.len() - owner.iter().rev().take_while(|byte| **byte == 0).count();
    Some(Note { owner: &owner[..name], kind, descriptor, behind })
}

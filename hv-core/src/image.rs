//! Guest images: static ELF files with a note that says what they need.
//!
//! An image is whatever somebody passed to `hv run`, so every number in it is checked before it is used, and an
//! image that cannot run is refused before its first instruction, with what was expected and what was found.
//!
//! Start at [`Image::parse`].

use crate::offered_features;
use hv_abi::address::{DIRECT_MAP, LOWEST_MAPPABLE};
use hv_abi::note::{ImageNote, OWNER, TYPE};
use hv_abi::{ABI_VERSION, Features, PAGE_SIZE};
use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use std::borrow::Cow;
use zerocopy::FromBytes;

/// Why an image cannot run. Each message says what was expected and what was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say what the fields are")]
pub enum ImageError {
    #[error(
        "the image is {found} bytes long, too short for an ELF header of 64; is it a guest image at all?"
    )]
    TooShort { found: usize },
    #[error(
        "the image does not begin with an ELF header (7f 45 4c 46), but with {found:02x?}; is it a guest image at all?"
    )]
    NotElf { found: [u8; 4] },
    #[error(
        "the image is for another kind of machine: expected 64-bit little-endian x86-64 (machine 62), found class {class}, encoding {encoding}, machine {machine}; build it for x86_64-unknown-linux-gnu"
    )]
    WrongMachine { class: u8, encoding: u8, machine: u16 },
    #[error("the image is of ELF version {found}, expected 1; is it damaged?")]
    ElfVersion { found: u8 },
    #[error(
        "the image is not a static executable (ELF type {found}, expected 2); link it with `-static -no-pie`, as guest-sdk's linker script does"
    )]
    NotExecutable { found: u16 },
    #[error(
        "the image asks for a dynamic linker or dynamic relocation; link it with `-static -no-pie -nostdlib`"
    )]
    Dynamic,
    #[error("the image's program headers are {found} bytes each, expected 56; is it damaged?")]
    HeaderSize { found: u16 },
    #[error("the image has 65535 program headers or more; use guest-sdk's linker script, which makes five")]
    ManyHeaders,
    #[error("the image is cut short: {what} end at byte {end}, the file at {length}; copy it again")]
    Truncated { what: &'static str, end: u64, length: u64 },
    #[error(
        "the image has no note of owner \"hv\", so it was not built for this hypervisor; declare its entry with guest_sdk::entry!"
    )]
    NoNote,
    #[error("the image has {found} notes of owner \"hv\", expected one; is entry! used twice?")]
    ManyNotes { found: usize },
    #[error(
        "the image's note is {found} bytes with reserved word {reserved:#x}; expected 32 bytes and 0, which ABI version {ABI_VERSION} defines"
    )]
    BadNote { found: usize, reserved: u32 },
    #[error(
        "the image was built for ABI version {found}, this hv serves version {ABI_VERSION}; build it against guest-sdk of this version"
    )]
    AbiVersion { found: u32 },
    #[error("the image needs features that this hv does not serve: {missing:?}")]
    Features { missing: Features },
    #[error(
        "the image has {found} segments to load, at most {MOST_SEGMENTS} are served; use guest-sdk's linker script, which makes four"
    )]
    TooManySegments { found: usize },
    #[error("the image has no segments to load")]
    NoSegments,
    #[error(
        "segment {index} at {start:#x} + {length:#x} is outside the part of the address space that an image may use, {LOWEST_MAPPABLE:#x} to {DIRECT_MAP:#x}"
    )]
    OutsideAddressSpace { index: usize, start: u64, length: u64 },
    #[error("segment {index} holds {file:#x} bytes in the file but only {memory:#x} in memory")]
    LargerInFile { index: usize, file: u64, memory: u64 },
    #[error(
        "segment {index} begins at virtual {virt:#x} and physical {phys:#x}, at different places in their pages of {PAGE_SIZE}; use guest-sdk's linker script"
    )]
    Misaligned { index: usize, virt: u64, phys: u64 },
    #[error("segments {first} and {second} overlap in {space} memory; use guest-sdk's linker script")]
    Overlap { first: usize, second: usize, space: &'static str },
    #[error(
        "segment {index} is to be loaded at guest-physical {start:#x}, below {LOWEST_MAPPABLE:#x}, where boot information is"
    )]
    OverBootInformation { index: usize, start: u64 },
    #[error("the entry point {entry:#x} is not in an executable segment")]
    Entry { entry: u64 },
}

/// A part of the image, as it is to be in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-virtual address.
    pub virt: u64,
    /// Guest-physical address, at the same place in its page.
    pub phys: u64,
    /// Bytes in memory; those past the data are zero.
    pub length: u64,
    /// Where its data is in the file.
    pub data: core::ops::Range<usize>,
    /// Whether the guest may write it.
    pub write: bool,
    /// Whether the guest may execute it.
    pub execute: bool,
}

impl Segment {
    /// Guest-virtual address of its first page.
    pub fn virt_pages(&self) -> u64 {
        self.virt - self.virt % PAGE_SIZE
    }

    /// Guest-physical address of its first page.
    pub fn phys_pages(&self) -> u64 {
        self.phys - self.phys % PAGE_SIZE
    }

    /// Bytes of the pages that it is in.
    pub fn pages_length(&self) -> u64 {
        (self.virt % PAGE_SIZE + self.length).next_multiple_of(PAGE_SIZE)
    }

    /// First guest-physical address behind its pages.
    pub fn phys_end(&self) -> u64 {
        self.phys_pages() + self.pages_length()
    }
}

/// A guest image that has been checked.
#[derive(Clone, Debug)]
pub struct Image {
    /// The whole file. A built-in image is borrowed, so that no VM pays for a copy of its debug information.
    pub bytes: Cow<'static, [u8]>,
    /// Guest-virtual address of the first instruction.
    pub entry: u64,
    /// What the image says about itself.
    pub note: ImageNote,
    /// Its parts, in the file's order; they do not overlap.
    pub segments: Vec<Segment>,
}

/// Segments that an image may have: each is a mapping and two rows of the memory map.
pub(crate) const MOST_SEGMENTS: usize = 24;

type Header = FileHeader64<LittleEndian>;

impl Image {
    /// Checks an image.
    ///
    /// # Errors
    ///
    /// [`ImageError`] says what is wrong with it.
    pub fn parse(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, ImageError> {
        let bytes = bytes.into();
        let header = header(&bytes)?;
        let programs = programs(header, &bytes)?;
        let segments = segments(programs, &bytes)?;
        let note = note(programs, &bytes)?;
        let entry = header.e_entry(LittleEndian);
        let holds_entry = |s: &Segment| s.execute && (s.virt..s.virt + s.length).contains(&entry);
        if !segments.iter().any(holds_entry) {
            return Err(ImageError::Entry { entry });
        }
        Ok(Self { entry, note, segments, bytes })
    }

    /// First guest-physical address behind everything that the image loads.
    pub fn phys_end(&self) -> u64 {
        self.segments.iter().map(Segment::phys_end).max().unwrap_or(0)
    }
}

fn header(bytes: &[u8]) -> Result<&Header, ImageError> {
    let Some(magic) = bytes.first_chunk().copied() else {
        return Err(ImageError::TooShort { found: bytes.len() });
    };
    if magic != elf::ELFMAG {
        return Err(ImageError::NotElf { found: magic });
    }
    if bytes.len() < size_of::<Header>() {
        return Err(ImageError::TooShort { found: bytes.len() });
    }
    let (class, encoding, machine) = (bytes[4], bytes[5], u16::from_le_bytes([bytes[18], bytes[19]]));
    if (class, encoding, machine) != (elf::ELFCLASS64.0, elf::ELFDATA2LSB.0, elf::EM_X86_64.0) {
        return Err(ImageError::WrongMachine { class, encoding, machine });
    }
    let header = Header::parse(bytes).map_err(|_| ImageError::ElfVersion { found: bytes[6] })?;
    let kind = header.e_type(LittleEndian);
    if kind != elf::ET_EXEC {
        return Err(ImageError::NotExecutable { found: kind.0 });
    }
    Ok(header)
}

fn programs<'a>(header: &Header, bytes: &'a [u8]) -> Result<&'a [ProgramHeader64<LittleEndian>], ImageError> {
    let (count, size) = (header.e_phnum(LittleEndian), header.e_phentsize(LittleEndian));
    if count == elf::PN_XNUM {
        return Err(ImageError::ManyHeaders); // how many is said elsewhere, and no guest needs so many
    }
    if count > 0 && usize::from(size) != size_of::<ProgramHeader64<LittleEndian>>() {
        return Err(ImageError::HeaderSize { found: size });
    }
    let programs = header.program_headers(LittleEndian, bytes).map_err(|_| ImageError::Truncated {
        what: "program headers",
        end: header
            .e_phoff(LittleEndian)
            .saturating_add(u64::from(count) * size_of::<ProgramHeader64<LittleEndian>>() as u64),
        length: bytes.len() as u64,
    })?;
    let dynamic = |p: &ProgramHeader64<LittleEndian>| {
        matches!(p.p_type(LittleEndian), elf::PT_INTERP | elf::PT_DYNAMIC)
    };
    if programs.iter().any(dynamic) {
        return Err(ImageError::Dynamic);
    }
    Ok(programs)
}

fn segments(programs: &[ProgramHeader64<LittleEndian>], bytes: &[u8]) -> Result<Vec<Segment>, ImageError> {
    let mut segments: Vec<Segment> = Vec::new();
    let loads =
        || programs.iter().filter(|p| p.p_type(LittleEndian) == elf::PT_LOAD && p.p_memsz(LittleEndian) > 0);
    if loads().count() > MOST_SEGMENTS {
        return Err(ImageError::TooManySegments { found: loads().count() });
    }
    for (index, program) in loads().enumerate() {
        let segment = segment(index, program, bytes)?;
        let overlaps =
            |a: u64, b: u64, s: &Segment| a < b + s.pages_length() && b < a + segment.pages_length();
        for (first, other) in segments.iter().enumerate() {
            if overlaps(segment.virt_pages(), other.virt_pages(), other) {
                return Err(ImageError::Overlap { first, second: index, space: "virtual" });
            }
            if overlaps(segment.phys_pages(), other.phys_pages(), other) {
                return Err(ImageError::Overlap { first, second: index, space: "physical" });
            }
        }
        segments.push(segment);
    }
    if segments.is_empty() {
        return Err(ImageError::NoSegments);
    }
    Ok(segments)
}

fn segment(
    index: usize,
    program: &ProgramHeader64<LittleEndian>,
    bytes: &[u8],
) -> Result<Segment, ImageError> {
    let (virt, phys) = (program.p_vaddr(LittleEndian), program.p_paddr(LittleEndian));
    let (file, length) = (program.p_filesz(LittleEndian), program.p_memsz(LittleEndian));
    if file > length {
        return Err(ImageError::LargerInFile { index, file, memory: length });
    }
    if virt % PAGE_SIZE != phys % PAGE_SIZE {
        return Err(ImageError::Misaligned { index, virt, phys });
    }
    let outside = ImageError::OutsideAddressSpace { index, start: virt, length };
    match virt.checked_add(length) {
        Some(end) if virt >= LOWEST_MAPPABLE && end <= DIRECT_MAP => {}
        _ => return Err(outside),
    }
    if phys < LOWEST_MAPPABLE {
        return Err(ImageError::OverBootInformation { index, start: phys });
    }
    // Past any memory that a VM can have; whether it fits this VM's is checked when it is loaded.
    if phys.checked_add(length).is_none_or(|end| end > hv_abi::address::MAX_MEMORY) {
        return Err(ImageError::OutsideAddressSpace { index, start: phys, length });
    }
    let start = program.p_offset(LittleEndian);
    let end = start.saturating_add(file);
    if end > bytes.len() as u64 {
        return Err(ImageError::Truncated { what: "a segment's data", end, length: bytes.len() as u64 });
    }
    let flags = program.p_flags(LittleEndian);
    Ok(Segment {
        virt,
        phys,
        length,
        data: start as usize..end as usize,
        write: flags.contains(elf::PF_W),
        execute: flags.contains(elf::PF_X),
    })
}

/// Finds the one note and checks that this host can serve what it says.
fn note(programs: &[ProgramHeader64<LittleEndian>], bytes: &[u8]) -> Result<ImageNote, ImageError> {
    let mut found: Option<&[u8]> = None;
    let mut count = 0; // not a list: many headers can name the same notes
    for program in programs.iter().filter(|p| p.p_type(LittleEndian) == elf::PT_NOTE) {
        let truncated = ImageError::Truncated {
            what: "the notes",
            end: program.p_offset(LittleEndian).saturating_add(program.p_filesz(LittleEndian)),
            length: bytes.len() as u64,
        };
        let data = program.data(LittleEndian, bytes).map_err(|()| truncated)?;
        let align = program.p_align(LittleEndian).max(4);
        let Ok(mut notes) = NoteIterator::<Header>::new(LittleEndian, align, data) else { continue };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == OWNER.as_bytes() && note.n_type(LittleEndian).0 == TYPE {
                found = Some(note.desc());
                count += 1;
            }
        }
    }
    match (found, count) {
        (None, _) => Err(ImageError::NoNote),
        (Some(descriptor), 1) => check_note(descriptor),
        (Some(_), found) => Err(ImageError::ManyNotes { found }),
    }
}

fn check_note(descriptor: &[u8]) -> Result<ImageNote, ImageError> {
    // The version stands first in every version of the note, so it is judged before the rest.
    if let Some(version) = descriptor.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
        && version != ABI_VERSION
    {
        return Err(ImageError::AbiVersion { found: version });
    }
    let bad = |reserved| ImageError::BadNote { found: descriptor.len(), reserved };
    let note = ImageNote::read_from_bytes(descriptor).map_err(|_| bad(0))?;
    if note.reserved != 0 {
        return Err(bad(note.reserved));
    }
    let missing = note.needed - offered_features();
    if !missing.is_empty() {
        return Err(ImageError::Features { missing });
    }
    Ok(note)
}

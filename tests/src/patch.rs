//! Making images that are wrong in one place, out of good ones.

use hv_abi::note::{ImageNote, OWNER};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD, PT_NOTE, ProgramFlags, ProgramHeader64};
use object::pod;
use zerocopy::{FromBytes, IntoBytes};

/// An ELF file that is being changed. [`Patch::bytes`] is what has become of it.
#[derive(Clone, Debug)]
pub struct Patch {
    /// The file.
    pub bytes: Vec<u8>,
}

/// A file header.
pub type Header = FileHeader64<LittleEndian>;
/// A program header.
pub type Program = ProgramHeader64<LittleEndian>;

impl Patch {
    /// Begins with a good image.
    pub fn new(image: &[u8]) -> Self {
        Self { bytes: image.to_vec() }
    }

    /// The file's header.
    pub fn header(&mut self) -> &mut Header {
        pod::from_bytes_mut(&mut self.bytes).expect("a good image has a header").0
    }

    /// The program headers.
    pub fn programs(&mut self) -> &mut [Program] {
        let (start, count) =
            (self.header().e_phoff.get(LittleEndian), self.header().e_phnum.get(LittleEndian));
        let table = &mut self.bytes[start as usize..];
        pod::slice_from_bytes_mut(table, count.into()).expect("a good image has program headers").0
    }

    /// The `PT_LOAD` segment of this index.
    pub fn load(&mut self, index: usize) -> &mut Program {
        self.programs()
            .iter_mut()
            .filter(|p| p.p_type.get(LittleEndian) == PT_LOAD)
            .nth(index)
            .expect("it has one")
    }

    /// Puts a copy of all program headers behind the file, with more behind them.
    pub fn add_programs(&mut self, more: &[Program]) {
        let programs = [self.programs(), more].concat();
        let start = self.append(pod::bytes_of_slice(&programs));
        self.header().e_phoff.set(LittleEndian, start);
        self.header().e_phnum.set(LittleEndian, programs.len() as u16);
    }

    /// Adds bytes behind the file; tells where they begin, 8-byte aligned.
    pub fn append(&mut self, bytes: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start as u64
    }

    /// Changes the note's descriptor.
    pub fn note(&mut self, change: impl FnOnce(&mut ImageNote)) {
        let at = self.note_at() + 16;
        let descriptor = &mut self.bytes[at..at + size_of::<ImageNote>()];
        let mut note = ImageNote::read_from_bytes(descriptor).expect("it is as long as a descriptor");
        change(&mut note);
        descriptor.copy_from_slice(note.as_bytes());
    }

    /// Where the note begins in the file.
    pub fn note_at(&mut self) -> usize {
        let mut notes = self.programs().iter().filter(|p| p.p_type.get(LittleEndian) == PT_NOTE);
        let at = notes.next().expect("a good image has a note").p_offset.get(LittleEndian) as usize;
        assert!(self.bytes[at + 12..].starts_with(OWNER.as_bytes()), "the note is the first of its segment");
        at
    }

    /// Makes the notes' segment these bytes, which go behind the file.
    pub fn set_notes(&mut self, notes: &[u8]) {
        let start = self.append(notes);
        let note = self.programs().iter_mut().find(|p| p.p_type.get(LittleEndian) == PT_NOTE);
        let note = note.expect("a good image has a note");
        note.p_offset.set(LittleEndian, start);
        note.p_filesz.set(LittleEndian, notes.len() as u64);
        note.p_memsz.set(LittleEndian, notes.len() as u64);
    }
}

/// What tests want to know of a program header, and to change.
pub trait Segment {
    /// V of its first byte.
    fn virt(&self) -> u64;
    /// P of its first byte.
    fn phys(&self) -> u64;
    /// Its bytes in the file.
    fn file_range(&self) -> std::ops::Range<usize>;
    /// Its bytes in memory.
    fn memory_size(&self) -> u64;
    /// Changes where it is.
    fn set_place(&mut self, virt: u64, phys: u64);
    /// Changes its sizes in the file and in memory.
    fn set_sizes(&mut self, file: u64, memory: u64);
    /// Changes what it may be used for.
    fn set_flags(&mut self, flags: u32);
}

impl Segment for Program {
    fn virt(&self) -> u64 {
        self.p_vaddr.get(LittleEndian)
    }

    fn phys(&self) -> u64 {
        self.p_paddr.get(LittleEndian)
    }

    fn file_range(&self) -> std::ops::Range<usize> {
        let start = self.p_offset.get(LittleEndian) as usize;
        start..start + self.p_filesz.get(LittleEndian) as usize
    }

    fn memory_size(&self) -> u64 {
        self.p_memsz.get(LittleEndian)
    }

    fn set_place(&mut self, virt: u64, phys: u64) {
        self.p_vaddr.set(LittleEndian, virt);
        self.p_paddr.set(LittleEndian, phys);
    }

    fn set_sizes(&mut self, file: u64, memory: u64) {
        self.p_filesz.set(LittleEndian, file);
        self.p_memsz.set(LittleEndian, memory);
    }

    fn set_flags(&mut self, flags: u32) {
        self.p_flags.set(LittleEndian, ProgramFlags(flags));
    }
}

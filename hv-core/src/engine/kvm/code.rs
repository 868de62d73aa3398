//! The code of ring 0, as it was built into this program.
//!
//! Start at [`Code::read`]; its source is in `ring0/`.

use super::layout::{HEADER, Header, PAGE, SLOT_255};
use object::elf::{FileHeader64, PT_LOAD};
use object::read::elf::{FileHeader, ProgramHeader};

static IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ring0"));

/// What is mapped at the hypercall page.
pub(super) struct Code {
    /// Whole pages.
    pub bytes: Vec<u8>,
    pub header: Header,
}

impl Code {
    /// Takes it out of the file that the linker made, which is this program's own.
    pub(super) fn read() -> Self {
        const GOOD: &str = "the linker makes good files";
        let endian = object::LittleEndian;
        let file = FileHeader64::<object::LittleEndian>::parse(IMAGE).expect(GOOD);
        let mut bytes = Vec::new();
        for segment in file.program_headers(endian, IMAGE).expect(GOOD) {
            if segment.p_type(endian) == PT_LOAD {
                let at = (segment.p_vaddr(endian) - SLOT_255) as usize;
                let data = segment.data(endian, IMAGE).expect(GOOD);
                bytes.resize(bytes.len().max((at + data.len()).next_multiple_of(PAGE as usize)), 0);
                bytes[at..at + data.len()].copy_from_slice(data);
            }
        }
        let mut words = bytes[HEADER as usize..]
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().expect("chunks of eight")));
        let mut next = || words.next().expect("it is longer than its header");
        let header = Header {
            syscall: next(),
            syscall_end: next(),
            vectors: next(),
            upcall: next(),
            upcall_end: next(),
            gate: next(),
            probe: next(),
            gate_page: next(),
        };
        Self { bytes, header }
    }
}

//! Crash reports that a debugger reads: an ELF core of the guest kernel, its vCPUs as threads.
//!
//! Guest memory is in the file once, by guest-physical addresses; each program header of the guest kernel's address space
//! refers to a part of it. So whatever its page tables say, the file is no longer than guest memory and a header of
//! bounded size. Pages that are absent or zero are holes in it.
//!
//! Start at [`CoreDump::write`]. `notes` says what is told beside memory.

mod notes;

use crate::engine::{Mapping, Registers};
use crate::memory::GuestMemory;
use crate::report::End;
use crate::view::View;
use hv_abi::{GuestPhys, PAGE_SIZE};
use object::elf;
use object::endian::LittleEndian as Little;
use object::pod::bytes_of;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Program headers for what the guest kernel's own page tables map, at the most; the rest is in the direct map all the same.
const MOST_REGIONS: usize = 4096;

/// Guest memory that is looked at in one go.
const PIECE: u64 = 1 << 20;

/// All that a core says of a VM. Its memory is the VM's: to be written while nothing of the guest runs.
#[derive(Clone, Debug)]
pub struct CoreDump {
    memory: GuestMemory,
    regions: Vec<Mapping>,
    /// Each vCPU that stands; the one that ended the VM is the first.
    threads: Vec<(u32, Registers)>,
    end: Option<End>,
    command_line: String,
}

impl CoreDump {
    /// Of a guest kernel, whose `view` this is. In a hypercall a vCPU's RIP is not known: it is shown as if the call had
    /// returned.
    pub(crate) fn new(
        memory: &GuestMemory,
        view: &View<'_>,
        threads: impl Iterator<Item = (u32, Registers)>,
        end: Option<&End>,
        command_line: &str,
    ) -> Self {
        let returned = |(vcpu, registers): (u32, Registers)| {
            let top = view.read_word(registers.rsp).filter(|_| registers.rip == 0);
            let caller = top.filter(|address| view.is_executable(*address));
            let registers = caller.map_or(registers, |rip| Registers {
                rip,
                rsp: registers.rsp.wrapping_add(8),
                ..registers
            });
            (vcpu, registers)
        };
        Self {
            memory: memory.clone(),
            regions: view.regions(MOST_REGIONS),
            threads: threads.map(returned).collect(),
            end: end.cloned(),
            command_line: command_line.into(),
        }
    }

    /// Writes it to an empty file, and tells `progress` how many bytes of guest memory have been looked at, and how many
    /// there are. Gives what the host spends on it, in bytes.
    ///
    /// # Errors
    ///
    /// What the host says. The file is empty then, if the host allows that: half a core would mislead.
    pub fn write(&self, file: &File, progress: &mut dyn FnMut(u64, u64)) -> io::Result<u64> {
        self.write_all(file, progress).inspect_err(|_| {
            let _ = file.set_len(0);
        })
    }

    fn write_all(&self, file: &File, progress: &mut dyn FnMut(u64, u64)) -> io::Result<u64> {
        let notes = notes::all(self);
        let headers = size_of::<elf::FileHeader64<Little>>()
            + (1 + self.regions.len()) * size_of::<elf::ProgramHeader64<Little>>();
        let data = (headers + notes.len()).next_multiple_of(PAGE_SIZE as usize) as u64;
        let mut head = bytes_of(&file_header(1 + self.regions.len())).to_vec();
        let note = Segment {
            kind: elf::PT_NOTE,
            flags: elf::ProgramFlags(0),
            offset: headers as u64,
            address: 0,
            physical: 0,
            size: notes.len() as u64,
            align: 4,
        };
        head.extend(bytes_of(&note.header()));
        for region in &self.regions {
            let flag = |set: bool, flag: elf::ProgramFlags| if set { flag.0 } else { 0 };
            let rights = flag(region.write, elf::PF_W) | flag(region.execute, elf::PF_X);
            let segment = Segment {
                kind: elf::PT_LOAD,
                flags: elf::ProgramFlags(elf::PF_R.0 | rights),
                offset: data + region.phys,
                address: region.virt,
                physical: region.phys,
                size: region.length,
                align: PAGE_SIZE,
            };
            head.extend(bytes_of(&segment.header()));
        }
        head.extend(notes);
        file.set_len(0)?;
        file.write_all_at(&head, 0)?;
        file.set_len(data + self.memory.size())?;
        let mut at = 0;
        while at < self.memory.size() {
            let length = PIECE.min(self.memory.size() - at);
            let mut bytes = vec![0; length as usize];
            for present in self.memory.present(at..at + length) {
                let bytes = &mut bytes[..(present.end - present.start) as usize];
                self.memory.read_bytes(GuestPhys(present.start), bytes).map_err(io::Error::other)?;
                write_without_zeros(file, bytes, data + present.start)?;
            }
            at += length;
            progress(at, self.memory.size());
        }
        const BLOCK: u64 = 512; // the unit of `st_blocks`
        Ok(rustix::fs::fstat(file)?.st_blocks as u64 * BLOCK)
    }
}

/// Writes pages, but those that are all zero.
fn write_without_zeros(file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
    let mut offset = at;
    let pages: Vec<_> = bytes.chunks(PAGE_SIZE as usize).collect();
    for run in pages.chunk_by(|a, b| is_zero(a) == is_zero(b)) {
        let length: usize = run.iter().map(|page| page.len()).sum();
        if !is_zero(run[0]) {
            let start = (offset - at) as usize;
            file.write_all_at(&bytes[start..start + length], offset)?;
        }
        offset += length as u64;
    }
    Ok(())
}

/// What a program header says.
struct Segment {
    kind: elf::ProgramType,
    flags: elf::ProgramFlags,
    offset: u64,
    address: u64,
    physical: u64,
    size: u64,
    align: u64,
}

impl Segment {
    fn header(&self) -> elf::ProgramHeader64<Little> {
        elf::ProgramHeader64 {
            p_type: self.kind.into(),
            p_flags: self.flags.into(),
            p_offset: self.offset.into(),
            p_vaddr: self.address.into(),
            p_paddr: self.physical.into(),
            p_filesz: self.size.into(),
            p_memsz: self.size.into(),
            p_align: self.align.into(),
        }
    }
}

fn file_header(segments: usize) -> elf::FileHeader64<Little> {
    elf::FileHeader64 {
        e_ident: elf::Ident {
            magic: elf::ELFMAG,
            class: elf::ELFCLASS64,
            data: elf::ELFDATA2LSB,
            version: elf::EV_CURRENT,
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: elf::ET_CORE.into(),
        e_machine: elf::EM_X86_64.into(),
        e_version: u32::from(elf::EV_CURRENT.0).into(),
        e_entry: 0.into(),
        e_phoff: (size_of::<elf::FileHeader64<Little>>() as u64).into(),
        e_shoff: 0.into(),
        e_flags: elf::FileFlags(0).into(),
        e_ehsize: (size_of::<elf::FileHeader64<Little>>() as u16).into(),
        e_phentsize: (size_of::<elf::ProgramHeader64<Little>>() as u16).into(),
        e_phnum: (segments as u16).into(),
        e_shentsize: 0.into(),
        e_shnum: 0.into(),
        e_shstrndx: elf::SymbolSection(0).into(),
    }
}

#[cfg(test)]
mod tests;

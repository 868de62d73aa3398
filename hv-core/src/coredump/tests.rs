//! Cores, read back as a debugger would.

use super::*;
use crate::engine::Fault;
use hv_abi::address::DIRECT_MAP;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};

const MEMORY: u64 = 3 << 20;
const CODE: u64 = 0x40_0000;

/// Registers of a vCPU in a hypercall, whose return address is on the stack at P 0x5000.
const IN_CALL: Registers = Registers { rsp: DIRECT_MAP + 0x5000, rbp: 7, ..ZERO };
const ZERO: Registers = Registers {
    rax: 0,
    rbx: 0,
    rcx: 0,
    rdx: 0,
    rsi: 0,
    rdi: 0,
    rbp: 0,
    rsp: 0,
    r8: 0,
    r9: 0,
    r10: 0,
    r11: 0,
    r12: 0,
    r13: 0,
    r14: 0,
    r15: 0,
    rip: 0,
    rflags: 0,
    fs_base: 0,
};

/// A guest of two vCPUs, of which the second crashed; written, with what the host spends on it.
fn written() -> (Vec<u8>, u64) {
    let memory = GuestMemory::new(MEMORY).unwrap();
    memory.write_bytes(GuestPhys(0x1000), b"code").unwrap();
    memory.write(GuestPhys(0x5000), &(CODE + 2)).unwrap();
    memory.write_bytes(GuestPhys(MEMORY - 1), b"!").unwrap();
    memory.write_bytes(GuestPhys(1 << 20), &[0; 8192]).unwrap();
    let mapping = |virt, phys, length, write| Mapping { virt, phys, length, write, execute: !write };
    let fixed = [mapping(DIRECT_MAP, 0, MEMORY, true), mapping(CODE, 0x1000, 0x1000, false)];
    let view = View::kernel(&memory, &fixed, None);
    let crashed = Registers { rip: CODE + 1, rbx: 5, ..ZERO };
    let end = End::Crash { fault: Fault::Exception { vector: 6, error: 0 }, hint: None };
    let threads = [(1, crashed), (0, IN_CALL)].into_iter();
    let core = CoreDump::new(&memory, &view, threads, Some(&end), "a guest");
    let mut file = tempfile::tempfile().unwrap();
    let mut steps = Vec::new();
    let spent = core.write(&file, &mut |at, of| steps.push((at, of))).unwrap();
    assert_eq!(steps, [(1 << 20, MEMORY), (2 << 20, MEMORY), (MEMORY, MEMORY)]);
    let mut bytes = Vec::new();
    io::Seek::rewind(&mut file).unwrap();
    io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    (bytes, spent)
}

#[test]
fn memory_is_there_once_and_sparse() {
    let (bytes, spent) = written();
    let file = ElfFile64::<Little>::parse(&*bytes).unwrap();
    assert_eq!(file.elf_header().e_type(Little), elf::ET_CORE);
    let loads: Vec<_> = file
        .elf_program_headers()
        .iter()
        .filter(|header| header.p_type(Little) == elf::PT_LOAD)
        .map(|header| (header.p_vaddr(Little), header.data(Little, &*bytes).unwrap()))
        .collect();
    assert_eq!(loads.iter().map(|load| load.0).collect::<Vec<_>>(), [CODE, DIRECT_MAP]);
    assert_eq!(&loads[0].1[..5], b"code\0");
    assert_eq!(loads[1].1.len() as u64, MEMORY);
    assert_eq!(&loads[1].1[0x1000..0x1004], b"code");
    assert_eq!(loads[1].1.last(), Some(&b'!'));
    assert!(bytes.len() as u64 <= MEMORY + 2 * PAGE_SIZE, "{}", bytes.len());
    // Headers and three pages, in blocks of whatever size the host has.
    assert!(spent < MEMORY / 2, "{spent} bytes are spent");
}

#[test]
fn the_crashed_vcpu_is_first_and_a_call_is_shown_as_returned() {
    let (bytes, _) = written();
    let file = ElfFile64::<Little>::parse(&*bytes).unwrap();
    let note = file.elf_program_headers().iter().find_map(|header| header.notes(Little, &*bytes).unwrap());
    let mut notes = note.expect("it has notes");
    let mut threads = Vec::new();
    let mut own = String::new();
    while let Some(note) = notes.next().unwrap() {
        let data = note.desc();
        match (note.name(), note.n_type(Little)) {
            (b"CORE", elf::NT_PRSTATUS) => {
                let word = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
                let register = |index: usize| word(112 + index * 8);
                let signal = i32::from_le_bytes(data[..4].try_into().unwrap());
                threads.push((word(32) as u32, signal, register(16), register(19), register(5)));
            }
            (b"hv", _) => own = String::from_utf8(data.to_vec()).unwrap(),
            _ => {}
        }
    }
    let crashed = (2, libc::SIGILL, CODE + 1, 0, 5);
    let in_call = (1, 0, CODE + 2, IN_CALL.rsp + 8, 0);
    assert_eq!(threads, [crashed, in_call]);
    for part in ["\"vcpus\":[1,0]", "\"command_line\":\"a guest\"", "illegal instruction"] {
        assert!(own.contains(part), "{part} is not in {own}");
    }
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let memory = GuestMemory::new(MEMORY).unwrap();
    let view = View::kernel(&memory, &[], None);
    let core = CoreDump::new(&memory, &view, [(0, ZERO)].into_iter(), None, "");
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert!(core.write(&full, &mut |_, _| {}).is_err());
}

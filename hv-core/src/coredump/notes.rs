//! The notes of a core: its threads' registers, as Linux has them, and what hv itself has to say.
//!
//! A debugger knows a thread by a number of Linux's, which is never 0: a vCPU's is its own and 1.
//!
//! Start at [`all`].

use super::CoreDump;
use crate::engine::{Fault, Registers};
use crate::report::End;
use object::elf;
use object::endian::LittleEndian as Little;
use object::pod::bytes_of;
use serde::Serialize;
use zerocopy::{Immutable, IntoBytes};

/// The owner of hv's own note, and its kind: a line of JSON.
const OWN_NAME: &[u8] = b"hv\0";
const OWN_KIND: elf::NoteType = elf::NoteType(1);

/// Selectors of 64-bit user mode on Linux.
const CODE_SELECTOR: u64 = 0x33;
const DATA_SELECTOR: u64 = 0x2b;

/// `struct elf_prstatus`.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct Status {
    signal_info: [i32; 3],
    signal: i16,
    padding: u16,
    pending: [u64; 2],
    thread: i32,
    parents: [i32; 3],
    times: [u64; 8],
    /// R15, R14, R13, R12, RBP, RBX, R11 to R8, RAX, RCX, RDX, RSI, RDI, the system call or -1, RIP, CS, flags, RSP, SS, FS
    /// and GS base, DS, ES, FS, GS.
    registers: [u64; 27],
    has_floating_point: i32,
    padding_after: u32,
}
const _: () = assert!(size_of::<Status>() == 336 && core::mem::offset_of!(Status, registers) == 112);

/// `struct elf_prpsinfo`.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct Process {
    state: [u8; 4],
    padding: u32,
    flags: u64,
    owner: [u32; 2],
    ids: [i32; 4],
    name: [u8; 16],
    arguments: [u8; 80],
}
const _: () = assert!(size_of::<Process>() == 136);

/// All notes of a core, one behind the other.
pub(super) fn all(core: &CoreDump) -> Vec<u8> {
    let mut notes = Vec::new();
    let signal = core.end.as_ref().map_or(0, signal);
    for (index, (vcpu, registers)) in core.threads.iter().enumerate() {
        let signal = if index == 0 { signal } else { 0 };
        append(&mut notes, b"CORE\0", elf::NT_PRSTATUS, status(*vcpu, registers, signal).as_bytes());
        if index == 0 {
            append(&mut notes, b"CORE\0", elf::NT_PRPSINFO, process(&core.command_line).as_bytes());
        }
    }
    append(&mut notes, OWN_NAME, OWN_KIND, own(core).as_bytes());
    notes
}

/// What hv knows and Linux has no field for.
fn own(core: &CoreDump) -> String {
    #[derive(Serialize)]
    struct Own<'a> {
        hv: &'static str,
        vcpus: Vec<u32>,
        memory: u64,
        command_line: &'a str,
        #[serde(flatten)]
        end: Option<&'a End>,
        reason: Option<String>,
    }
    let own = Own {
        hv: env!("CARGO_PKG_VERSION"),
        vcpus: core.threads.iter().map(|(vcpu, _)| *vcpu).collect(),
        memory: core.memory.size(),
        command_line: &core.command_line,
        end: core.end.as_ref(),
        reason: core.end.as_ref().map(End::to_string),
    };
    serde_json::to_string(&own).expect("numbers and texts are JSON")
}

fn append(notes: &mut Vec<u8>, name: &[u8], kind: elf::NoteType, data: &[u8]) {
    let header = elf::NoteHeader64::<Little> {
        n_namesz: (name.len() as u32).into(),
        n_descsz: (data.len() as u32).into(),
        n_type: kind.into(),
    };
    notes.extend(bytes_of(&header));
    for part in [name, data] {
        notes.extend(part);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}

fn status(vcpu: u32, r: &Registers, signal: i32) -> Status {
    let thread = vcpu as i32 + 1;
    Status {
        signal_info: [signal, 0, 0],
        signal: signal as i16,
        padding: 0,
        pending: [0; 2],
        thread,
        parents: [0, 1, 1],
        times: [0; 8],
        registers: [
            r.r15,
            r.r14,
            r.r13,
            r.r12,
            r.rbp,
            r.rbx,
            r.r11,
            r.r10,
            r.r9,
            r.r8,
            r.rax,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            u64::MAX,
            r.rip,
            CODE_SELECTOR,
            r.rflags,
            r.rsp,
            DATA_SELECTOR,
            r.fs_base,
            0,
            0,
            0,
            0,
            0,
        ],
        has_floating_point: 0,
        padding_after: 0,
    }
}

fn process(command_line: &str) -> Process {
    let mut arguments = [0; 80];
    let shown = command_line.len().min(arguments.len() - 1);
    arguments[..shown].copy_from_slice(&command_line.as_bytes()[..shown]);
    let mut name = [0; 16];
    name[..8].copy_from_slice(b"hv-guest");
    Process {
        state: [0, b'R', 0, 0],
        padding: 0,
        flags: 0,
        owner: [0; 2],
        ids: [1, 0, 1, 1],
        name,
        arguments,
    }
}

/// The signal that a program on Linux would have died of.
fn signal(end: &End) -> i32 {
    match end {
        End::Crash { fault, .. } => match fault {
            Fault::Exception { vector: 0 | 16 | 19, .. } => libc::SIGFPE,
            Fault::Exception { vector: 1 | 3, .. } => libc::SIGTRAP,
            Fault::Exception { vector: 6, .. } => libc::SIGILL,
            Fault::SystemCall { .. } => libc::SIGSYS,
            _ => libc::SIGSEGV,
        },
        End::Panic { .. } => libc::SIGABRT,
        End::Shutdown { .. } | End::Stopped => 0,
        _ => libc::SIGKILL,
    }
}

//! What page tables cost: changes of entries, faults, protection, mapping. Measured by the kernel, around a program that does
//! nothing but touch pages.
//!
//! Samples are printed in picoseconds for one page or operation.
//!
//! Start at [`measure`].

use crate::print_all;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use guest_sdk::frames::{self, Frame};
use guest_sdk::hv_abi::mmu::{EAGER, Entry, MmuUpdate};
use guest_sdk::hv_abi::user::GATE;
use guest_sdk::hv_abi::{GuestPhys, PAGE_SIZE};
use guest_sdk::space::{Access, AddressSpace, Mapping, Rights};
use guest_sdk::time::Instant;
use guest_sdk::user::{Task, Trap};
use guest_sdk::{boot, hypercall};

// The program: writes to, or reads from, a byte of each of RSI pages from RDI on, RDX apart; then makes a system call.
core::arch::global_asm!(
    ".pushsection .rodata.bench_program, \"a\", @progbits",
    "bench_program:",
    "bench_program_write:",
    "2: mov byte ptr [rdi], 1",
    "add rdi, rdx",
    "dec rsi",
    "jnz 2b",
    "jmp bench_program_call",
    "bench_program_read:",
    "3: mov al, byte ptr [rdi]",
    "add rdi, rdx",
    "dec rsi",
    "jnz 3b",
    "bench_program_call:",
    "mov ecx, {gate}",
    "call rcx",
    "ud2",
    "bench_program_end:",
    ".popsection",
    gate = const GATE,
);

unsafe extern "C" {
    static bench_program: u8;
    static bench_program_write: u8;
    static bench_program_read: u8;
    static bench_program_call: u8;
    static bench_program_end: u8;
}

/// Where the program is, its stack, and what it touches.
const TEXT: u64 = 0x40_0000;
const STACK: u64 = 0x60_0000;
const PAGES: u64 = 0x4000_0000;

/// Entries of a table.
const TABLE: u64 = 512;

/// Pages that a kernel maps around a fault: 64 KiB.
const AROUND_ORDER: u32 = 4;
const AROUND: u64 = PAGE_SIZE << AROUND_ORDER;

/// Measures what `what` names; false if it is nothing.
pub fn measure<'a>(what: &str, samples: usize, mut arguments: impl Iterator<Item = &'a str>) -> bool {
    match what {
        "update" => {
            let batch = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(1);
            let (mut flags, mut used) = (0, false);
            for word in arguments {
                match word {
                    "eager" => flags = EAGER,
                    "used" => used = true,
                    _ => return false,
                }
            }
            update(samples, batch, flags, used);
        }
        "stream" => stream(samples, true),
        "stream-unused" => stream(samples, false),
        "fault" => fault(samples),
        "protect" => protect(samples),
        "map" => map(samples),
        _ => return false,
    }
    true
}

/// What the program does.
#[derive(Clone, Copy)]
enum Deed {
    Write,
    Read,
    Nothing,
}

impl Deed {
    fn entry(self) -> u64 {
        let label = match self {
            Self::Write => &raw const bench_program_write,
            Self::Read => &raw const bench_program_read,
            Self::Nothing => &raw const bench_program_call,
        };
        TEXT + (label.addr() - (&raw const bench_program).addr()) as u64
    }
}

struct Program {
    space: AddressSpace,
    task: Task,
}

impl Program {
    fn new() -> Self {
        let mut space = AddressSpace::new().expect("the host has user mode");
        let start = &raw const bench_program;
        let length = (&raw const bench_program_end).addr() - start.addr();
        // SAFETY: between the two labels is the program, in the image, and nobody writes there.
        let code = unsafe { core::slice::from_raw_parts(start, length) };
        let text = zeroed(0);
        text.write_at(0, code);
        space.map(TEXT, text, Rights::EXECUTE).expect("a free page");
        space.map(STACK - PAGE_SIZE, zeroed(0), Rights::WRITE).expect("a free page");
        Self { space, task: Task::new(TEXT, STACK) }
    }

    /// Has the program touch `count` pages that are `stride` apart; `mend` sees to it that what faults succeeds.
    fn run(
        &mut self,
        deed: Deed,
        (start, count, stride): (u64, u64, u64),
        mut mend: impl FnMut(&mut AddressSpace, u64, Access),
    ) {
        let registers = self.task.registers_mut();
        (registers.rip, registers.rsp) = (deed.entry(), STACK);
        (registers.rdi, registers.rsi, registers.rdx) = (start, count, stride);
        loop {
            match self.task.run(&mut self.space) {
                Trap::Syscall => return,
                Trap::PageFault { address, access } => mend(&mut self.space, address, access),
                Trap::Interrupted => {}
                trap => panic!("the program is ended: {trap:x?}"),
            }
        }
    }

    /// As [`run`](Self::run), for consecutive pages that are there.
    fn run_mapped(&mut self, deed: Deed, count: u64) {
        self.run(deed, (PAGES, count, PAGE_SIZE), |_, address, _| panic!("{address:#x} is mapped"));
    }
}

fn zeroed(order: u32) -> Frame {
    frames::allocate_zeroed(order).expect("the guest has memory enough")
}

fn range(start: u64, pages: u64) -> Range<u64> {
    start..start + pages * PAGE_SIZE
}

fn picoseconds(start: Instant, count: u64) -> u64 {
    start.elapsed().as_nanos() as u64 * 1000 / count
}

/// Prints what `sample` gives, but for the first, which readies what lasts.
fn print_samples(samples: usize, mut sample: impl FnMut() -> u64) {
    sample();
    print_all((0..samples).map(|_| sample()).collect::<Vec<_>>().into_iter());
}

/// MMU_UPDATE, for each entry: takes away or gives back the right to write. If `used`, a program has read all of the pages
/// before, so that the host has mappings that have to go.
fn update(samples: usize, batch: usize, flags: u64, used: bool) {
    const PASSES: u64 = 8;
    let mut program = Program::new();
    let frame: Arc<Frame> = zeroed(TABLE.ilog2()).into();
    let phys = frame.phys();
    // One by one, so that no large page serves.
    for first in 0..TABLE {
        let mapping = Mapping { frame: frame.clone(), first, pages: 1, rights: Rights::WRITE };
        program.space.insert(PAGES + first * PAGE_SIZE, mapping).expect("a free page");
    }
    program.space.flush();
    let table = lowest_table(program.space.root(), PAGES);
    let mut writable = true;
    print_samples(samples, || {
        let mut passed = 0;
        for _ in 0..PASSES {
            if used {
                program.run_mapped(Deed::Read, TABLE);
            }
            writable = !writable;
            let mut updates = rights_of_all(table, phys, writable);
            let start = Instant::now();
            for batch in updates.chunks_mut(batch) {
                // SAFETY: the entries are of a table of this measurement's own, under a program's root.
                unsafe { hypercall::mmu_update(batch, flags) }.expect("a good batch");
            }
            passed += start.elapsed().as_nanos() as u64;
            assert!(updates.iter().all(|update| update.status.is_success()), "the host refuses an entry");
        }
        passed * 1000 / (PASSES * TABLE)
    });
}

/// Changes of all entries of `table`, which maps consecutive pages from `phys` on.
fn rights_of_all(table: GuestPhys, phys: GuestPhys, writable: bool) -> Vec<MmuUpdate> {
    let flags = Entry::PRESENT | Entry::USER | Entry::NO_EXECUTE;
    let flags = if writable { flags | Entry::WRITE } else { flags };
    let update = |i| MmuUpdate {
        entry: GuestPhys(table.0 + i * 8),
        new: Entry::new(GuestPhys(phys.0 + i * PAGE_SIZE), flags).bits(),
        ..MmuUpdate::default()
    };
    (0..TABLE).map(update).collect()
}

/// Where the lowest table is that translates `virt`.
fn lowest_table(root: GuestPhys, virt: u64) -> GuestPhys {
    [39, 30, 21].into_iter().fold(root, |table, shift| {
        let at = boot::info().direct_map + table.0 + (virt >> shift & (TABLE - 1)) * 8;
        // SAFETY: the tables are in guest memory, which the direct map has; entries are aligned, and nothing changes them now.
        let entry = unsafe { core::ptr::with_exposed_provenance::<u64>(at as usize).read_volatile() };
        let entry = Entry::from_bits_retain(entry);
        assert!(entry.contains(Entry::PRESENT) && !entry.contains(Entry::LARGE), "a table is there");
        entry.phys()
    })
}

/// First touches of memory in order, by page, in a kernel that maps 64 KiB around each fault. If `reused`, of memory that was
/// used before and has to be zeroed; otherwise of memory that nobody has used since the VM was started.
fn stream(samples: usize, reused: bool) {
    const COUNT: u64 = 1024;
    let mut program = Program::new();
    let mut start = PAGES;
    print_samples(samples, || {
        let begun = Instant::now();
        program.run(Deed::Write, (start, COUNT, PAGE_SIZE), |space, address, _| {
            let block = address - address % AROUND;
            space.map(block, zeroed(AROUND_ORDER), Rights::WRITE).expect("a free block");
        });
        let passed = picoseconds(begun, COUNT);
        if reused {
            program.space.unmap(range(start, COUNT)).expect("whole pages");
            program.space.flush();
        } else {
            start += COUNT * PAGE_SIZE;
        }
        passed
    });
}

/// A first touch for which the kernel maps one page and no more.
fn fault(samples: usize) {
    const COUNT: u64 = 64;
    let mut program = Program::new();
    print_samples(samples, || {
        let begun = Instant::now();
        program.run(Deed::Write, (PAGES, COUNT, AROUND), |space, address, _| {
            let page = address - address % PAGE_SIZE;
            space.map(page, zeroed(0), Rights::WRITE).expect("a free page");
        });
        let passed = picoseconds(begun, COUNT);
        program.space.unmap(PAGES..PAGES + COUNT * AROUND).expect("whole pages");
        program.space.flush();
        passed
    });
}

/// Pages that are protected together, written to, and each given back at its fault; for each.
fn protect(samples: usize) {
    const COUNT: u64 = 64;
    let mut program = Program::new();
    for block in range(PAGES, COUNT).step_by(AROUND as usize) {
        program.space.map(block, zeroed(AROUND_ORDER), Rights::WRITE).expect("a free block");
    }
    program.run_mapped(Deed::Write, COUNT);
    print_samples(samples, || {
        let begun = Instant::now();
        program.space.protect(range(PAGES, COUNT), Rights::READ).expect("whole pages");
        program.run(Deed::Write, (PAGES, COUNT, PAGE_SIZE), |space, address, access| {
            assert_eq!(access, Access::Write, "it is there to be read");
            let page = address - address % PAGE_SIZE;
            space.protect(range(page, 1), Rights::WRITE).expect("a whole page");
        });
        picoseconds(begun, COUNT)
    });
}

/// Mapping 64 KiB that are there, touching them, and unmapping them, with a system call of the program's for each of the two.
fn map(samples: usize) {
    const COUNT: u64 = 50;
    let pages = AROUND / PAGE_SIZE;
    let mut program = Program::new();
    let frame: Arc<Frame> = zeroed(AROUND_ORDER).into();
    print_samples(samples, || {
        let begun = Instant::now();
        for _ in 0..COUNT {
            program.space.map(PAGES, frame.clone(), Rights::WRITE).expect("a free block");
            program.run_mapped(Deed::Write, pages);
            program.space.unmap(range(PAGES, pages)).expect("whole pages");
            program.run_mapped(Deed::Nothing, 1);
        }
        picoseconds(begun, COUNT)
    });
}

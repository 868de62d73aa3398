//! The engine's own part of a VM's machine memory: the tables of the guest kernel's address space, the code of ring 0, and the
//! pages that go with it.
//!
//! Machine address p is guest-physical address p, as far as the guest's memory goes. Behind it, out of every guest-physical
//! address, is a file of the engine's, and behind that the pages of vCPUs, which are the monitor's.
//!
//! Start at [`MachineMemory::build`].

use super::code::Code;
use super::layout::{
    self, EnginePage, Header, IDT, KERNEL_TABLE, PAGE, SHARED, SLOT_255, SPACE_PAGES, SPACES_MAX, Shared,
    VCPU_PAGES, VCPU_STRIDE, VECTOR_BYTES, area, frame, selector, vector,
};
use super::tables::{NO_EXECUTE, PRESENT, Tables, USER, WRITE};
use crate::engine::{EngineError, Mapping, Setup};
use crate::events::VcpuPages;
use crate::memory::GuestMemory;
use crate::shared::SharedFile;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU64};

const LARGE_PAGE: u64 = 2 << 20;
const LARGE: u64 = 1 << 7;
const READ: u64 = PRESENT | NO_EXECUTE;
const READ_WRITE: u64 = READ | WRITE;
const EXECUTE: u64 = PRESENT;

/// Pages of one vCPU: those from its engine page on, without what is between the stacks and the batch.
const AREA_PAGES: u64 = (area::FATAL_END - area::ENGINE + area::END - area::BATCH) / PAGE;

pub(super) struct MachineMemory {
    file: SharedFile,
    /// Machine address of the file's first byte, and of the first page of vCPUs.
    base: u64,
    pages: u64,
    length: u64,
    /// Offsets in the file.
    kernel_table: u64,
    shared: u64,
    frames: u64,
    spaces: u64,
    areas: u64,
    header: Header,
}

/// A part of the host's memory that is machine memory.
pub(super) struct Region {
    pub machine: u64,
    pub host: u64,
    pub length: u64,
}

impl MachineMemory {
    /// Lays out and fills all of it.
    pub(super) fn build(setup: &Setup<'_>, addresses: u64, xstate: &Xstate) -> Result<Self, EngineError> {
        let size = setup.memory.size();
        let vcpus = setup.pages.vcpus();
        let code = Code::read();
        let frames = size.div_ceil(PAGE).next_multiple_of(PAGE);
        let code_pages = code.bytes.len() as u64;
        let fixed = code_pages + PAGE + layout::SHARED_PAGES * PAGE + u64::from(vcpus) * AREA_PAGES * PAGE;
        let spaces = SPACES_MAX as u64 * SPACE_PAGES * PAGE;
        let length = tables_at_most(setup.mappings, vcpus, size) * PAGE + fixed + frames + spaces;
        let base = size.next_multiple_of(LARGE_PAGE);
        let pages = base + length.next_multiple_of(LARGE_PAGE);
        let end = pages + VcpuPages::offset(vcpus) + PAGE;
        if end > addresses {
            let what = "so much memory: the processor's machine addresses are too few for it";
            return Err(EngineError::NoKvm(super::NoKvm::Lacks(what).to_string()));
        }
        let file = SharedFile::new("hv-kvm", length)
            .map_err(|source| EngineError::Host { what: "making memory for the KVM engine", source })?;
        let mut filling = Filling { file: &file, base, next: 0 };
        let kernel_table = filling.take(1);
        let [code_at, idt, shared, areas, frames_at, spaces_at] = [
            code_pages / PAGE,
            1,
            layout::SHARED_PAGES,
            u64::from(vcpus) * AREA_PAGES,
            frames / PAGE,
            SPACES_MAX as u64 * SPACE_PAGES,
        ]
        .map(|pages| filling.take(pages));
        file.store_bytes(code_at, &code.bytes);
        let mut map = |virt, machine, length, rights| {
            filling.map(kernel_table, &Run { virt, machine, length, rights });
        };
        for Mapping { virt, phys, length, write, execute } in setup.mappings {
            let rights = if *write { WRITE } else { 0 } | if *execute { 0 } else { NO_EXECUTE };
            map(*virt, *phys, *length, PRESENT | rights);
        }
        map(SLOT_255, base + code_at, code_pages, EXECUTE);
        map(IDT, base + idt, PAGE, READ);
        map(SHARED, base + shared, layout::SHARED_PAGES * PAGE, READ_WRITE);
        map(KERNEL_TABLE, base + kernel_table, PAGE, READ_WRITE);
        map(layout::FRAMES, base + frames_at, frames, READ_WRITE);
        map(layout::SPACES, base + spaces_at, spaces, READ_WRITE);
        for vcpu in 0..vcpus {
            let virt = VCPU_PAGES + u64::from(vcpu) * VCPU_STRIDE;
            let area = base + areas + u64::from(vcpu) * AREA_PAGES * PAGE;
            map(virt, pages + VcpuPages::offset(vcpu), PAGE, READ_WRITE);
            map(virt + area::CLOCK, pages, PAGE, if vcpu == 0 { READ | USER } else { READ });
            let stacks = area::FATAL_END - area::ENGINE;
            map(virt + area::ENGINE, area, stacks, READ_WRITE);
            map(virt + area::BATCH, area + stacks, area::END - area::BATCH, READ_WRITE);
        }
        let memory = Self {
            file,
            base,
            pages,
            length,
            kernel_table,
            shared,
            frames: frames_at,
            spaces: spaces_at,
            areas,
            header: code.header,
        };
        memory.fill_gates(idt);
        memory.fill_shared(setup, code_at);
        (0..vcpus).for_each(|vcpu| memory.fill_area(vcpu, xstate));
        Ok(memory)
    }
}

/// What a guest has of extended state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Xstate {
    pub mask: u64,
    pub size: u64,
    pub has_xsaveopt: bool,
}

impl MachineMemory {
    /// The file, and the pages of vCPUs; guest memory is beside them.
    pub(super) fn regions(&self, pages: &VcpuPages) -> [Region; 2] {
        let of_pages = VcpuPages::offset(pages.vcpus()) + PAGE;
        let host = |file: &SharedFile, length: u64| file.pointer(0, length as usize).addr().get() as u64;
        [
            Region { machine: self.base, host: host(&self.file, self.length), length: self.length },
            Region { machine: self.pages, host: host(pages.file(), of_pages), length: of_pages },
        ]
    }

    /// What begins the code of ring 0.
    pub(super) fn header(&self) -> &Header {
        &self.header
    }

    pub(super) fn engine_page(&self, vcpu: u32) -> &EnginePage {
        self.file.at(self.area(vcpu))
    }

    pub(super) fn shared(&self) -> &Shared {
        self.file.at(self.shared)
    }

    /// Tables, as the monitor reaches them.
    pub(super) fn tables<'a>(&'a self, memory: &'a GuestMemory) -> Tables<'a> {
        let at = |offset| self.file.pointer(offset, 1).addr().get() as u64;
        Tables {
            shared: self.shared(),
            direct_map: memory.host_address(),
            frames: at(self.frames),
            pages: at(self.spaces),
            kernel_table: at(self.kernel_table),
        }
    }

    /// Machine address of the guest kernel's table of the highest level.
    pub(super) fn kernel_cr3(&self) -> u64 {
        self.base + self.kernel_table
    }

    /// The words of the frame that the monitor's interrupt has pushed: RIP, CS, RFLAGS, RSP, SS.
    pub(super) fn interrupt_frame(&self, vcpu: u32) -> [u64; 5] {
        self.file.copy_words(self.area(vcpu) + area::UPCALL_END - area::ENGINE - 5 * 8)
    }

    /// Offset of a vCPU's engine page.
    fn area(&self, vcpu: u32) -> u64 {
        self.areas + u64::from(vcpu) * AREA_PAGES * PAGE
    }

    /// Interrupt gates: exceptions on a stack of theirs, and those that nothing can be gone on from on another.
    fn fill_gates(&self, idt: u64) {
        const PROGRAM_MAY: u64 = 3 << 45;
        const BREAKPOINT: u64 = 3;
        const FATAL: [u64; 3] = [2, 8, 18];
        let gate = |vector: u64, entry: u64, stack: u64, rights: u64| {
            let low = entry & 0xffff | selector::KERNEL_CODE << 16 | stack << 32 | 0x8e << 40 | rights;
            self.file.store_word(idt + vector * 16, low | (entry >> 16 & 0xffff) << 48);
            self.file.store_word(idt + vector * 16 + 8, entry >> 32);
        };
        for vector in 0..32 {
            let stack = if FATAL.contains(&vector) { 3 } else { 1 };
            let rights = if vector == BREAKPOINT { PROGRAM_MAY } else { 0 };
            gate(vector, self.header.vectors + vector * VECTOR_BYTES, stack, rights);
        }
        gate(vector::UPCALL, self.header.upcall, 2, 0);
        gate(vector::GATE, self.header.gate, 0, PROGRAM_MAY);
    }

    fn fill_shared(&self, setup: &Setup<'_>, code_at: u64) {
        let shared = self.shared();
        shared.memory.store(setup.memory.size(), Relaxed);
        let slot_255 = self.file.at::<AtomicU64>(self.kernel_table + 255 * 8).load(Relaxed);
        shared.slot_255.store(slot_255, Relaxed);
        let gate_page = self.base + code_at + self.header.gate_page - SLOT_255;
        shared.gate.store(gate_page | PRESENT | USER, Relaxed);
        shared.ask.store(u32::from(setup.sees_entries || setup.kernel_root.is_none()), Relaxed);
        for (place, space) in (0..).zip(&shared.spaces) {
            space.cr3.store(self.base + self.spaces + place * SPACE_PAGES * PAGE, Relaxed);
        }
        if let Some(root) = setup.kernel_root {
            self.frame(root).store(frame::KERNEL_ROOT, Relaxed);
        }
    }

    /// What is known of a frame of guest memory.
    pub(super) fn frame(&self, phys: u64) -> &AtomicU8 {
        self.file.at(self.frames + phys / PAGE)
    }

    fn fill_area(&self, vcpu: u32, xstate: &Xstate) {
        let virt = VCPU_PAGES + u64::from(vcpu) * VCPU_STRIDE;
        let page = self.engine_page(vcpu);
        page.kernel_cr3.store(self.kernel_cr3(), Relaxed);
        page.stack_end.store(virt + area::STACK_END, Relaxed);
        page.xstate_mask.store(xstate.mask, Relaxed);
        page.xstate_size.store(xstate.size, Relaxed);
        page.has_xsaveopt.store(xstate.has_xsaveopt.into(), Relaxed);
        let task = self.area(vcpu) + area::TASK - area::ENGINE;
        let store = |offset: u64, value: u64| self.file.store_bytes(task + offset, &value.to_le_bytes());
        store(4, virt + area::STACK_END);
        store(0x24, virt + area::TRAP_END);
        store(0x2c, virt + area::UPCALL_END);
        store(0x34, virt + area::FATAL_END);
        self.file.store_bytes(task + 0x66, &(TASK_LIMIT as u16 + 1).to_le_bytes()); // no port is a program's
        let segments = self.area(vcpu) + area::SEGMENTS - area::ENGINE;
        let at = virt + area::TASK;
        let task_low = TASK_LIMIT | (at & 0xff_ffff) << 16 | 0x8b << 40 | (at >> 24 & 0xff) << 56;
        for (selector, descriptor) in [
            (selector::KERNEL_CODE, 0x00af_9b00_0000_ffff),
            (selector::KERNEL_DATA, 0x00cf_9300_0000_ffff),
            (selector::USER_DATA, 0x00cf_f300_0000_ffff),
            (selector::USER_CODE, 0x00af_fb00_0000_ffff),
            (selector::TASK, task_low),
            (selector::TASK + 8, at >> 32),
        ] {
            self.file.store_word(segments + (selector & !7), descriptor);
        }
    }
}

/// Of the task state's segment, and of the table of segments.
pub(super) const TASK_LIMIT: u64 = 0x67;
pub(super) const SEGMENTS_LIMIT: u16 = selector::TASK as u16 + 15;

/// Tables that the mappings of a VM take, at the most.
fn tables_at_most(mappings: &[Mapping], vcpus: u32, memory: u64) -> u64 {
    let of = |length: u64| length.div_ceil(LARGE_PAGE) + 2 + (length >> 30) + 2 + 1;
    let direct = (memory >> 30) + 8;
    let images = mappings.iter().filter(|mapping| mapping.length < memory).map(|mapping| of(mapping.length));
    // Slot 255: the table of its pages, those of the code and of vCPUs, of frames, and of spaces.
    let own = 1
        + 3
        + u64::from(vcpus).div_ceil(16)
        + of(memory / PAGE)
        + of(SPACES_MAX as u64 * SPACE_PAGES * PAGE);
    1 + direct + images.sum::<u64>() + own
}

/// A file that is being laid out.
struct Filling<'a> {
    file: &'a SharedFile,
    base: u64,
    next: u64,
}

/// A run of V that is mapped.
struct Run {
    virt: u64,
    machine: u64,
    length: u64,
    rights: u64,
}

impl Filling<'_> {
    /// Offset of so many fresh pages, which are zero.
    fn take(&mut self, pages: u64) -> u64 {
        let at = self.next;
        self.next += pages * PAGE;
        at
    }

    fn map(&mut self, root: u64, run: &Run) {
        let mut done = 0;
        while done < run.length {
            let (virt, machine) = (run.virt + done, run.machine + done);
            let fits = run.length - done >= LARGE_PAGE;
            let large = fits && virt.is_multiple_of(LARGE_PAGE) && machine.is_multiple_of(LARGE_PAGE);
            let level = if large { 2 } else { 1 };
            let entry = self.entry(root, virt, level);
            self.file.store_word(entry, machine | run.rights | if large { LARGE } else { 0 });
            done += if large { LARGE_PAGE } else { PAGE };
        }
    }

    /// Offset of the entry for a V in a table of that level, with the tables above it.
    fn entry(&mut self, root: u64, virt: u64, level: u32) -> u64 {
        let mut table = root;
        for above in (level + 1..=4).rev() {
            let entry = table + (virt >> (12 + 9 * (above - 1)) & 511) * 8;
            let next = self.file.at::<AtomicU64>(entry).load(Relaxed);
            table = if next == 0 {
                let fresh = self.take(1);
                self.file.store_word(entry, (self.base + fresh) | PRESENT | WRITE | USER);
                fresh
            } else {
                (next & super::tables::ADDRESS) - self.base
            };
        }
        table + (virt >> (12 + 9 * (level - 1)) & 511) * 8
    }
}

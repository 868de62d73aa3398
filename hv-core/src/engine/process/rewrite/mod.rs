//! System calls of ordinary guest user programs, made jumps.
//!
//! A `syscall` costs a signal each time. Once it has trapped some times, and its bytes show that it is safe (`site`), its
//! page gets a *copy* in a file of the engine's, in which it is a jump through the low jump table (`table`), and the copy is
//! what the program's sandbox maps there. Guest memory is never changed.
//!
//! A copy is good for one frame at one V, in all address spaces that map the frame there, executable and not writable. It
//! counts as long as nobody writes the frame:
//!
//! * the guest kernel's direct map of the frame is made read-only, and its first write drops the copy;
//! * what the monitor writes in a call drops the copy before the call returns;
//! * a user mapping that could write it drops the copy, and as long as there is one, none is made;
//! * when the last space has unmapped it, it is gone, and the frame is the guest kernel's to write again.
//!
//! Start at [`Rewriter::rewrite`].

mod site;
mod table;

use super::frame::UserFault;
use super::layout::{COPIES_OFFSET, COPY_PAGES, Command, MOST_COPIES, TABLE};
use super::mapper;
use super::sandbox::{Files, Sandbox};
use super::users::Space;
use crate::engine::{Access, EngineError, Mapping, Registers};
use crate::memory::GuestMemory;
use crate::shared::SharedFile;
use hv_abi::address::DIRECT_MAP;
use hv_abi::user::LOWEST_USER;
use hv_abi::{GuestPhys, PAGE_SIZE};
use site::{Code, Site};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use table::Table;

/// How often a system call traps before it is looked at: making it a jump costs as much as some traps do.
pub(super) const TRAPS: u32 = 4;

/// The middle of a jump is an access to where RAX points, and a site's number is not above this.
const MOST_NUMBER: u64 = 0xffff;

/// As a number of traps: more than are counted.
pub(super) const NEVER: u32 = u32::MAX;

/// Why a system call stays one.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Site(#[from] site::Refusal),
    #[error("its page is not mapped executable and not writable")]
    NotCode,
    #[error("its page can be written elsewhere")]
    Writable,
    #[error("its page has changed meanwhile")]
    Changed,
    #[error("the jump table is full")]
    Full,
    #[error("its sandbox, or the guest kernel's, is gone")]
    Gone(#[from] EngineError),
}

/// The copies of a VM's user address spaces.
pub(super) struct Rewriter {
    memory: GuestMemory,
    /// Table and copies, which only the monitor writes.
    file: Arc<SharedFile>,
    /// Whose direct map is made read-only.
    kernel: Arc<Sandbox>,
    /// What the guest kernel can write by another address than in its direct map.
    written_elsewhere: Vec<Range<u64>>,
    table: Table,
    /// The oldest first.
    copies: VecDeque<Copy>,
}

/// A page with sites that are jumps.
struct Copy {
    /// The frame that it is a copy of.
    phys: u64,
    virt: u64,
    /// Where it is in the file; 0 until it is made.
    offset: u64,
    /// With the slots that their jumps go through.
    sites: Vec<(Site, u32)>,
}

impl Rewriter {
    /// For a VM whose guest kernel has these mappings.
    pub(super) fn new(files: &Files, kernel: Arc<Sandbox>, mappings: &[Mapping]) -> Self {
        let (memory, file) = (files.memory.clone(), files.rewritten.clone());
        let others = mappings.iter().filter(|mapping| mapping.write && mapping.virt != DIRECT_MAP);
        let written_elsewhere = others.map(|mapping| mapping.phys..mapping.phys + mapping.length).collect();
        Self { memory, file, kernel, written_elsewhere, table: Table::default(), copies: VecDeque::new() }
    }

    /// Makes the system call at V `at`, which a program under `root` has made with this RAX, a jump, if that is safe. Gives
    /// whether it is one now.
    pub(super) fn rewrite(&mut self, spaces: &mut HashMap<u64, Space>, root: u64, at: u64, rax: u64) -> bool {
        let result = self.try_rewrite(spaces, root, at, rax);
        match &result {
            Ok(()) => tracing::debug!(root, at, rax, "a system call is rewritten"),
            Err(refusal) => tracing::debug!(root, at, rax, %refusal, "a system call is not rewritten"),
        }
        result.is_ok()
    }

    fn try_rewrite(
        &mut self,
        spaces: &mut HashMap<u64, Space>,
        root: u64,
        at: u64,
        rax: u64,
    ) -> Result<(), Refusal> {
        let (virt, syscall) = (at - at % PAGE_SIZE, (at % PAGE_SIZE) as usize);
        let shadow = &spaces.get(&root).ok_or(Refusal::NotCode)?.shadow;
        let phys = shadow.code_page(virt).ok_or(Refusal::NotCode)?;
        if self.written_elsewhere.iter().any(|range| range.contains(&phys))
            || spaces.values().any(|space| space.shadow.can_write(phys))
        {
            return Err(Refusal::Writable);
        }
        let code = self.read(phys)?;
        let site = Site::find(&code, syscall, rax)?;
        let slot = self.table.slot(&self.file, virt, site).ok_or(Refusal::Full)?;
        let index = match self.copies.iter().position(|copy| copy.phys == phys && copy.virt == virt) {
            Some(index) => index,
            None => self.add(spaces, phys, virt, &code)?,
        };
        let mut sites = self.copies[index].sites.clone();
        if !sites.contains(&(site, slot)) {
            sites.push((site, slot));
            self.replace(spaces, index, code, sites);
        }
        let copy = &self.copies[index];
        let space = spaces.get_mut(&root).expect("found above");
        space.shadow.overlay(virt, copy.offset);
        Ok(space.sandbox.command(&space.shadow.take_commands())?)
    }

    /// Makes the copy one with other sites, of `code`. Other vCPUs may run what it was: so it is a new page, and takes the
    /// place of the old one in one piece.
    fn replace(
        &mut self,
        spaces: &mut HashMap<u64, Space>,
        index: usize,
        mut code: Code,
        sites: Vec<(Site, u32)>,
    ) {
        for (site, slot) in &sites {
            let jump = site.jump(*slot);
            code[site.start..site.start + jump.len()].copy_from_slice(&jump);
        }
        let offset = self.free_offset();
        self.file.store_bytes(offset, &code);
        let copy = &mut self.copies[index];
        let (virt, old) = (copy.virt, std::mem::replace(&mut copy.offset, offset));
        copy.sites = sites;
        for space in spaces.values_mut().filter(|space| space.shadow.is_overlaid(virt, old)) {
            space.shadow.overlay(virt, offset);
            // Fails if the sandbox is dead, and then nothing runs there.
            let _ = space.sandbox.command(&space.shadow.take_commands());
        }
    }

    /// Where there is room for a copy.
    fn free_offset(&self) -> u64 {
        let taken = |offset| self.copies.iter().any(|copy| copy.offset == offset);
        let mut offsets = (0..COPY_PAGES).map(|i| COPIES_OFFSET + i * PAGE_SIZE);
        offsets.find(|offset| !taken(*offset)).expect("there is one more than copies")
    }

    /// Adds a copy of a frame, and keeps the frame from being written without notice. Gives its index.
    fn add(
        &mut self,
        spaces: &mut HashMap<u64, Space>,
        phys: u64,
        virt: u64,
        code: &Code,
    ) -> Result<usize, Refusal> {
        if self.copies.len() as u64 == MOST_COPIES {
            let oldest = self.copies[0].phys;
            self.drop_frames(spaces, oldest..oldest + PAGE_SIZE);
        }
        self.kernel.command(&[protect(phys, libc::PROT_READ)])?;
        self.copies.push_back(Copy { phys, virt, offset: 0, sites: Vec::new() });
        self.memory.watched().watch(phys, true);
        if self.read(phys)? != *code {
            self.drop_frames(spaces, phys..phys + PAGE_SIZE);
            return Err(Refusal::Changed);
        }
        Ok(self.copies.len() - 1)
    }

    /// The bytes of a frame.
    fn read(&self, phys: u64) -> Result<Code, Refusal> {
        let mut code = [0; PAGE_SIZE as usize];
        self.memory.read_bytes(GuestPhys(phys), &mut code).map_err(|_| Refusal::NotCode)?;
        Ok(code)
    }

    /// Drops the copies of frames that the monitor has written.
    pub(super) fn drop_written(&mut self, spaces: &mut HashMap<u64, Space>) {
        for frame in self.memory.watched().take_written() {
            self.drop_frames(spaces, frame..frame + PAGE_SIZE);
        }
    }

    /// Before a sandbox makes what its shadow says: copies of frames that it could write are dropped, and copies of pages
    /// that are mapped anew are mapped instead.
    pub(super) fn before_update(&mut self, spaces: &mut HashMap<u64, Space>, root: u64) {
        let Some(space) = spaces.get_mut(&root).filter(|space| space.shadow.has_changes()) else { return };
        let writable: Vec<_> = space.shadow.new_writable().collect();
        let is_users = !space.is_kernel();
        for copy in &self.copies {
            if is_users && space.shadow.code_page(copy.virt) == Some(copy.phys) {
                space.shadow.overlay(copy.virt, copy.offset);
            }
        }
        for range in writable {
            self.drop_frames(spaces, range);
        }
    }

    /// Drops the copies of frames that are to be written: no program has them mapped when this returns, and the guest
    /// kernel can write the frames. Whether there were any.
    pub(super) fn drop_frames(&mut self, spaces: &mut HashMap<u64, Space>, frames: Range<u64>) -> bool {
        let mut dropped = false;
        for copy in self.copies.iter().filter(|copy| frames.contains(&copy.phys)) {
            dropped = true;
            for space in spaces.values_mut() {
                if space.shadow.uncover(copy.virt, copy.offset) {
                    // Fails if the sandbox is dead, and then it maps nothing, either.
                    let _ = space.sandbox.command(&space.shadow.take_commands());
                }
            }
        }
        if dropped {
            self.retire(spaces);
        }
        dropped
    }

    /// Forgets copies that no space maps any more; the guest kernel can write their frames again.
    pub(super) fn retire(&mut self, spaces: &HashMap<u64, Space>) {
        let mapped =
            |copy: &Copy| spaces.values().any(|space| space.shadow.is_overlaid(copy.virt, copy.offset));
        let mut retired = Vec::new();
        self.copies.retain(|copy| {
            let keep = mapped(copy);
            if !keep {
                retired.push(copy.phys);
            }
            keep
        });
        retired.retain(|phys| self.copies.iter().all(|copy| copy.phys != *phys));
        retired.iter().for_each(|phys| self.memory.watched().watch(*phys, false));
        let commands: Vec<Command> =
            retired.into_iter().map(|phys| protect(phys, libc::PROT_READ | libc::PROT_WRITE)).collect();
        if !commands.is_empty() {
            // Fails if the guest kernel is dead, and then it writes nothing.
            let _ = self.kernel.command(&commands);
        }
    }

    /// What a program of the space did, where its signal came from a jump or a trampoline; the registers become those of the
    /// original program.
    pub(super) fn original(&self, space: &Space, fault: UserFault, registers: &mut Registers) -> UserFault {
        const DEBUG: u64 = 1;
        let on_access = match fault {
            UserFault::PageFault { access, .. } => access != Access::Execute,
            UserFault::Exception { vector } => vector != DEBUG,
            _ => false,
        };
        if (TABLE..LOWEST_USER).contains(&registers.rip) {
            // Single steps find the trampoline's beginning; nothing else of the table's is ever seen of an honest program.
            let Some(call) = self.table.call_at(registers.rip) else { return UserFault::Lost };
            (registers.rip, registers.rax) = (call.at, call.number.into());
        } else if on_access && self.has_become_a_jump(space, registers.rip) {
            registers.rip += 2;
            (registers.rcx, registers.r11) = (registers.rip, registers.rflags);
            return UserFault::SystemCall;
        } else if let UserFault::PageFault { address, .. } = fault
            && on_access
            && address <= MOST_NUMBER
            && self.is_a_call(space, registers.rip)
        {
            // What it came to was the middle of a jump, whose copy another vCPU has had dropped since.
            return UserFault::Again;
        }
        fault
    }

    /// Whether there is a `syscall` at a V, in the frame that the space maps there.
    fn is_a_call(&self, space: &Space, at: u64) -> bool {
        let code = space.shadow.code_page(at - at % PAGE_SIZE).and_then(|phys| self.read(phys).ok());
        code.is_some_and(|code| code[(at % PAGE_SIZE) as usize..].starts_with(&[0x0f, 0x05]))
    }

    /// Whether a V is that of a `syscall` that has become a part of a jump, in what the space maps.
    fn has_become_a_jump(&self, space: &Space, at: u64) -> bool {
        let (virt, syscall) = (at - at % PAGE_SIZE, (at % PAGE_SIZE) as usize);
        let mut copies = self.copies.iter().filter(|copy| space.shadow.is_overlaid(virt, copy.offset));
        copies.any(|copy| {
            copy.sites.iter().any(|(site, _)| site.syscall == syscall && site.has_syscall_inside())
        })
    }
}

/// The command that changes what the guest kernel may do with a frame in its direct map.
fn protect(phys: u64, protection: i32) -> Command {
    mapper::protect(DIRECT_MAP + phys, PAGE_SIZE, protection)
}

//! Areas: memory of the guest kernel's at addresses of its own, with nothing mapped on either side of it.
//!
//! What runs past an end of an [`Area`] ends the VM with a report, where in the direct map it would reach somebody else's
//! memory. That is what a kernel's stacks need most: [`Stack`].
//!
//! Areas are mapped under the guest kernel's own root (docs/abi.md, section 14). An area is one frame, so that
//! [`phys_of`](crate::memory::phys_of) finds it in one piece, and what lies in it can be handed to the host.
//!
//! A kernel that changes the tables of its own root by itself leaves the addresses from `KERNEL_SPACE` on to areas.
//!
//! Start at [`Area::new`].

#![expect(unsafe_code, reason = "memory at an address that the tables map, and another stack")]

use crate::events::without_upcalls;
use crate::frames::{self, Frame};
use crate::hypercall::mmu_update;
use crate::sync::Lock;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use hv_abi::address::{KERNEL_SPACE, SLOT_255};
use hv_abi::mmu::{Entry, MMU_UPDATE_MAX, MmuUpdate};
use hv_abi::{GuestPhys, PAGE_SIZE, Status};

/// What an area allows, and what its tables do.
const ALL: Entry = Entry::PRESENT.union(Entry::WRITE);

/// Where the next areas go.
struct Addresses {
    /// Behind all areas so far, and the page that follows each.
    end: u64,
    /// Where areas were, and how many pages they had.
    free: Vec<(u64, u64)>,
}

static ADDRESSES: Lock<Addresses> =
    lock_api::Mutex::new(Addresses { end: KERNEL_SPACE + PAGE_SIZE, free: Vec::new() });

impl Addresses {
    fn take(&mut self, pages: u64) -> Option<u64> {
        if let Some(index) = self.free.iter().position(|(_, free)| *free == pages) {
            return Some(self.free.swap_remove(index).0);
        }
        let (start, end) = (self.end, self.end + (pages + 1) * PAGE_SIZE);
        (end <= SLOT_255).then(|| {
            self.end = end;
            start
        })
    }
}

/// Zeroed memory of its own, between two pages where nothing is mapped.
#[derive(Debug)]
pub struct Area {
    start: u64,
    frame: ManuallyDrop<Frame>,
}

impl Area {
    /// An area of 2^`order` pages. Does not block.
    ///
    /// # Errors
    ///
    /// `NO_SPACE` without memory; `UNKNOWN_CALL` if the host has no page tables for guests.
    pub fn new(order: u32) -> Result<Self, Status> {
        if crate::boot::info().kernel_root.0 == 0 {
            return Err(Status::UNKNOWN_CALL);
        }
        let frame = frames::allocate_zeroed(order).map_err(|_| Status::NO_SPACE)?;
        let start = ADDRESSES.lock().take(frame.pages()).ok_or(Status::NO_SPACE)?;
        let area = Self { start, frame: ManuallyDrop::new(frame) };
        area.map(ALL | Entry::NO_EXECUTE)?; // what has been mapped of it when this fails is unmapped as it is dropped
        Ok(area)
    }

    /// Its first address.
    pub fn address(&self) -> u64 {
        self.start
    }

    /// Where it is in guest-physical memory.
    pub fn phys(&self) -> GuestPhys {
        self.frame.phys()
    }

    /// Makes the entries of its pages have these rights, or none.
    fn map(&self, rights: Entry) -> Result<(), Status> {
        let mut updates = Vec::new();
        for page in 0..self.frame.pages() {
            let offset = page * PAGE_SIZE;
            let entry = without_upcalls(|| entry_of(self.start + offset))?;
            let new = if rights == Entry::empty() {
                rights
            } else {
                Entry::new(GuestPhys(self.phys().0 + offset), rights)
            };
            updates.push(MmuUpdate { entry, new: new.bits(), ..MmuUpdate::default() });
        }
        updates.chunks_mut(MMU_UPDATE_MAX as usize).try_for_each(update)
    }

    /// Where its bytes are for this program.
    fn pointer(&self) -> *mut u8 {
        #[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
        return crate::boot::at::<u8>(self.phys()).cast_mut(); // there is no such address in a host's test
        #[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
        core::ptr::with_exposed_provenance_mut(self.start as usize)
    }
}

impl Drop for Area {
    /// Unmaps it, and frees its frame. If the host refuses, both are lost.
    fn drop(&mut self) {
        if self.map(Entry::empty()).is_ok() {
            ADDRESSES.lock().free.push((self.start, self.frame.pages()));
            // SAFETY: `ManuallyDrop::drop` asks that the value is not used again: this is the area's own end, and nothing
            // leads to the frame any more, for `MMU_UPDATE` is in force when it returns.
            unsafe { ManuallyDrop::drop(&mut self.frame) };
        }
    }
}

impl Deref for Area {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the slice needs memory that is there, initialised, and that nobody writes meanwhile. The frame is mapped
        // there for as long as the area lives, was zeroed, and belongs to the area alone, so that only `deref_mut` gives a
        // way to write it.
        unsafe { core::slice::from_raw_parts(self.pointer(), self.frame.size()) }
    }
}

impl DerefMut for Area {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed for writing.
        unsafe { core::slice::from_raw_parts_mut(self.pointer(), self.frame.size()) }
    }
}

/// A stack with nothing mapped below it: overflowing it ends the VM, and the report says so.
#[derive(Debug)]
pub struct Stack(Area);

impl Stack {
    /// A stack of 2^`order` pages.
    ///
    /// # Errors
    ///
    /// As [`Area::new`].
    pub fn new(order: u32) -> Result<Self, Status> {
        Area::new(order).map(Self)
    }

    /// Runs `work` on this stack. A panic in it ends the guest, as everywhere.
    pub fn run<R>(&mut self, work: impl FnOnce() -> R) -> R {
        let mut result = None;
        let mut work = Some(work);
        let mut step = || result = work.take().map(|work| work());
        call(self.0.start + self.0.len() as u64, &mut step);
        result.expect("the step has run")
    }
}

/// Calls `step` on the stack below `top`, which nobody uses.
#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
fn call(top: u64, mut step: &mut dyn FnMut()) {
    extern "C" fn enter(step: *mut &mut dyn FnMut()) {
        // SAFETY: `call` passes a pointer to its own parameter, and waits.
        unsafe { (*step)() };
    }
    // SAFETY: the function gets a stack and its argument, and keeps what its convention says; all else is declared lost.
    // 1. The stack is mapped and writable, aligned at its top, and lent for writing by the one caller.
    // 2. RSP is put back from RBX, which the function keeps; RBX is the compiler's own, so it is put back, too.
    // 3. Nothing unwinds through here: guests abort.
    unsafe {
        core::arch::asm!(
            "push rbx", "mov rbx, rsp", "mov rsp, {top}", "call {enter}", "mov rsp, rbx", "pop rbx",
            top = in(reg) top, enter = in(reg) enter as *const (), in("rdi") &raw mut step, clobber_abi("sysv64"),
        );
    }
}

/// In a host's test there is no such stack: calls `step` on its own.
#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
fn call(_: u64, step: &mut dyn FnMut()) {
    step();
}

/// Makes updates, all of which are good.
fn update(updates: &mut [MmuUpdate]) -> Result<(), Status> {
    // SAFETY: 1. the entries are of tables that this module makes of frames of its own, and of the root, which is a table;
    // 2. the addresses are of an area, which nobody uses while it is changed.
    unsafe { mmu_update(updates, 0)? };
    updates.iter().try_for_each(|update| update.status.ok())
}

/// P of the entry for an address, in tables that are made if they are missing. They are never unmade: addresses are used
/// again. Upcalls are masked, so that nobody makes the same one meanwhile.
fn entry_of(virt: u64) -> Result<GuestPhys, Status> {
    let mut table = crate::boot::info().kernel_root;
    for level in [4, 3, 2] {
        let at = entry_in(table, virt, level);
        let mut entry = read(at);
        if !entry.contains(Entry::PRESENT) {
            let frame = frames::allocate_zeroed(0).map_err(|_| Status::NO_SPACE)?;
            entry = Entry::new(frame.phys(), ALL);
            update(&mut [MmuUpdate { entry: at, new: entry.bits(), ..MmuUpdate::default() }])?;
            core::mem::forget(frame); // the table's, from here on
        }
        table = entry.phys();
    }
    Ok(entry_in(table, virt, 1))
}

fn entry_in(table: GuestPhys, virt: u64, level: u32) -> GuestPhys {
    GuestPhys(table.0 + (virt >> (3 + 9 * level)) % 512 * 8)
}

fn read(at: GuestPhys) -> Entry {
    // SAFETY: an aligned word of a table that this module has made, or of the root; only the host changes it, in our calls.
    Entry::from_bits_retain(unsafe { crate::boot::at::<u64>(at).read_volatile() })
}

/// Where `length` bytes of areas are in guest-physical memory, if they are in one.
#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
pub(crate) fn phys_of(start: u64, length: u64) -> Option<GuestPhys> {
    let page = |virt: u64| {
        let mut table = crate::boot::info().kernel_root;
        for level in [4, 3, 2, 1] {
            let entry = read(entry_in(table, virt, level));
            table = entry.contains(Entry::PRESENT).then(|| entry.phys())?;
        }
        Some(table.0 + virt % PAGE_SIZE)
    };
    let first = page(start)?;
    let next = (start + 1).next_multiple_of(PAGE_SIZE)..start + length;
    let in_one_piece =
        next.step_by(PAGE_SIZE as usize).all(|virt| page(virt) == Some(first + (virt - start)));
    in_one_piece.then_some(GuestPhys(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use hv_abi::Features;

    /// The entry for an address, if its tables are there.
    fn mapped(virt: u64) -> Entry {
        read(entry_of(virt).unwrap())
    }

    #[test]
    fn an_area_is_mapped_between_pages_that_are_not() {
        let mut area = Area::new(2).unwrap();
        for page in 0..4 {
            let phys = GuestPhys(area.phys().0 + page * PAGE_SIZE);
            assert_eq!(mapped(area.address() + page * PAGE_SIZE), Entry::new(phys, ALL | Entry::NO_EXECUTE));
        }
        assert_eq!(mapped(area.address() - PAGE_SIZE), Entry::empty());
        assert_eq!(mapped(area.address() + 4 * PAGE_SIZE), Entry::empty());
        assert!(area.iter().all(|byte| *byte == 0));
        area[5] = 7;
        assert_eq!((area.len(), area[5]), (4 * 4096, 7));
    }

    #[test]
    fn an_area_that_is_dropped_is_unmapped_and_its_memory_free() {
        drop(Area::new(3).unwrap()); // makes the tables
        let before = frames::available();
        let area = Area::new(3).unwrap();
        let start = area.address();
        assert_eq!(frames::available(), before - 8);
        drop(area);
        assert_eq!(frames::available(), before);
        assert!((0..8).all(|page| mapped(start + page * PAGE_SIZE) == Entry::empty()));
    }

    #[test]
    fn work_on_a_stack_gives_its_result() {
        let mut stack = Stack::new(2).unwrap();
        let mut sum = 0;
        assert_eq!(
            stack.run(|| {
                sum += 1;
                "done"
            }),
            "done"
        );
        assert_eq!(sum, 1);
    }

    #[test]
    fn without_page_tables_there_is_no_area() {
        fake::set_features(Features::EVENTS);
        assert_eq!(Area::new(0).map(drop), Err(Status::UNKNOWN_CALL));
    }

    #[test]
    fn without_memory_there_is_no_area() {
        let mut all = Vec::new();
        while let Ok(frame) = frames::allocate(0) {
            all.push(frame);
        }
        assert_eq!(Area::new(0).map(drop), Err(Status::NO_SPACE));
    }
}

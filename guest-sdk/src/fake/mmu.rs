//! Page tables and who is in user mode, by the rules of the real host (`docs/abi.md`, sections 13 and 14).
//!
//! What the real host answers with a status to be fixed is a panic here. So is what it cannot tell: an update of a page that
//! was never a table's, a root whose tables are still to be told of.

use super::lent::Lent;
use super::state::misuse;
use hv_abi::address::SLOT_255;
use hv_abi::boot::region;
use hv_abi::mmu::{EAGER, Entry, MMU_UPDATE_MAX, MmuUpdate, ROOTS_MAX};
use hv_abi::user::{LOWEST_USER, RFLAGS, RFLAGS_FIXED, UserContext};
use hv_abi::{GuestPhys, PAGE_SIZE, Status};
use std::collections::BTreeMap;
use std::vec::Vec;

type CallResult = Result<u64, Status>;

const FIRST_RESERVED_SLOT: u64 = 255;

/// The entries of the guest kernel's own root that it may change.
const KERNEL_SLOTS: core::ops::Range<u64> = 33..FIRST_RESERVED_SLOT;

/// What the host knows of roots.
#[derive(Debug, Default)]
pub(super) struct Mmu {
    /// The context whose extended state is held, for each root.
    roots: BTreeMap<u64, Option<GuestPhys>>,
}

impl Mmu {
    pub(super) fn root_create(&mut self, table: u64) -> CallResult {
        if !table.is_multiple_of(PAGE_SIZE) || !is_memory(table, PAGE_SIZE) {
            misuse!("ROOT_CREATE of {table:#x}, which is no page of usable memory");
        }
        if let Some(slot) = (FIRST_RESERVED_SLOT..512).find(|slot| read(table + slot * 8) != 0) {
            misuse!(
                "ROOT_CREATE of {table:#x}, whose entry {slot} is not zero: 255 and above are the host's"
            );
        }
        if self.roots.len() as u64 >= ROOTS_MAX {
            return Err(Status::NO_SPACE);
        }
        if self.roots.contains_key(&table) {
            misuse!("ROOT_CREATE of {table:#x}, which is a root already");
        }
        self.roots.insert(table, None);
        Ok(0)
    }

    pub(super) fn root_destroy(&mut self, table: u64) -> CallResult {
        self.expect_root("ROOT_DESTROY", table);
        self.roots.remove(&table);
        Ok(0)
    }

    fn expect_root(&self, what: &str, root: u64) {
        if !self.roots.contains_key(&root) {
            misuse!("{what} of {root:#x}, which is no root: never created, or destroyed");
        }
    }

    /// Changes entries.
    ///
    /// # Safety
    ///
    /// What was lent is initialised and still there.
    pub(super) unsafe fn update(
        &self,
        lent: &Lent,
        updates: GuestPhys,
        count: u64,
        flags: u64,
    ) -> CallResult {
        if count > MMU_UPDATE_MAX {
            misuse!("MMU_UPDATE of {count} entries: at most {MMU_UPDATE_MAX}");
        }
        if flags & !EAGER != 0 {
            misuse!("MMU_UPDATE with flags {flags:#x}: there is EAGER");
        }
        if count == 0 {
            return Ok(0);
        }
        let at = lent.check_table::<MmuUpdate>("MMU_UPDATE's updates", updates, count, true);
        // SAFETY: readable and aligned, as `check_table` found; initialised and still there, as this function's caller says;
        // not changed, for the guest waits.
        let batch: Vec<MmuUpdate> = unsafe { core::slice::from_raw_parts(at, count as usize) }.to_vec();
        for (i, update) in batch.into_iter().enumerate() {
            self.check(&update);
            let entry = core::ptr::with_exposed_provenance_mut::<u64>(update.entry.0 as usize);
            // SAFETY: `check` found the entry aligned and in memory that the map calls usable, which has been leaked with its
            // provenance exposed; the update lies in the table that was checked above to be lent for writing.
            unsafe {
                (*at.add(i)).old = entry.replace(update.new);
                (*at.add(i)).status = Status::SUCCESS;
            }
        }
        Ok(count)
    }

    fn check(&self, update: &MmuUpdate) {
        let (at, new) = (update.entry.0, Entry::from_bits_retain(update.new));
        if update.reserved != 0 {
            misuse!("an MmuUpdate whose `reserved` is not zero");
        }
        let slot = at % PAGE_SIZE / 8;
        if is_kernel_root(at - at % PAGE_SIZE) {
            if !KERNEL_SLOTS.contains(&slot) {
                misuse!("an MmuUpdate of entry {slot} of the kernel's root: it has 33 to 254");
            }
        } else if !at.is_multiple_of(8) || !is_memory(at, 8) {
            misuse!("an MmuUpdate of {at:#x}, which is no entry in usable memory");
        }
        if slot >= FIRST_RESERVED_SLOT && self.roots.contains_key(&(at - at % PAGE_SIZE)) {
            misuse!("an MmuUpdate of entry {slot} of a root: 255 and above are the host's");
        }
        if !new.contains(Entry::PRESENT) {
            return;
        }
        let size = if new.contains(Entry::LARGE) { 2 << 20 } else { PAGE_SIZE };
        if new.bits() & Entry::MUST_BE_ZERO != 0 || !new.phys().0.is_multiple_of(size) {
            misuse!("an MmuUpdate to {new:?}: bits are set that must be zero");
        }
        if !is_memory(new.phys().0, size) {
            misuse!("an MmuUpdate to {new:?}, which is not in usable memory");
        }
    }

    pub(super) fn flush(&self, root: u64, start: u64, length: u64) -> CallResult {
        let aligned = start.is_multiple_of(PAGE_SIZE) && length.is_multiple_of(PAGE_SIZE);
        let inside = start.checked_add(length).is_some_and(|end| end <= SLOT_255);
        if !aligned || !inside || (root == 0 && length != 0) {
            misuse!("MMU_FLUSH of {length:#x} bytes at {start:#x}: not whole pages of the lower half");
        }
        if root != 0 && !is_kernel_root(root) {
            self.expect_root("MMU_FLUSH", root);
        }
        Ok(0)
    }

    /// Readies a context for running: gives what is in it.
    ///
    /// # Safety
    ///
    /// What was lent is initialised and still there, as are contexts whose state is held.
    pub(super) unsafe fn enter(
        &mut self,
        lent: &Lent,
        root: u64,
        context: GuestPhys,
    ) -> Result<UserContext, Status> {
        self.expect_root("ENTER_USER", root);
        let at = lent.check_table::<UserContext>("ENTER_USER's context", context, 1, true);
        // SAFETY: readable and aligned, as `check_table` found; initialised and still there, as this function's caller says.
        let user = unsafe { at.read() };
        let canonical = (user.fs_base as i64) << 16 >> 16 == user.fs_base as i64;
        let flags = user.rflags & !(RFLAGS | RFLAGS_FIXED);
        if !(LOWEST_USER..SLOT_255).contains(&user.rip) || flags != 0 || !canonical || user.xstate_valid > 1 {
            misuse!("ENTER_USER with registers that no program can have: {user:x?}");
        }
        if user.reserved != [0; 9] || !user.xstate.0.is_multiple_of(64) || user.xstate.0 == 0 {
            misuse!("ENTER_USER with a context whose `reserved` is not zero, or without an area: {user:x?}");
        }
        let holder = self.roots.iter().find(|(_, held)| **held == Some(context)).map(|(root, _)| *root);
        if user.xstate_valid == 0 && holder.is_none() {
            misuse!("ENTER_USER of {context:?} with `xstate_valid` 0, and the host does not hold its state");
        }
        if let Some(holder) = holder {
            self.roots.insert(holder, None);
        }
        if let Some(before) = self.roots.insert(root, Some(context)).flatten() {
            // SAFETY: as this function's caller says, it is still there, for the host holds its state.
            unsafe { set_valid(before) };
        }
        Ok(user)
    }

    /// Writes the extended state of a context to its area: it has none here.
    ///
    /// # Safety
    ///
    /// What was lent is initialised and still there.
    pub(super) unsafe fn user_xstate(&self, lent: &Lent, context: GuestPhys) -> CallResult {
        lent.check_table::<UserContext>("USER_XSTATE's context", context, 1, true);
        if !self.roots.values().any(|held| *held == Some(context)) {
            misuse!("USER_XSTATE of {context:?}, whose state the host does not hold");
        }
        // SAFETY: it is lent for writing, and still there.
        unsafe { set_valid(context) };
        Ok(0)
    }
}

/// Says in a context that its area is up to date.
///
/// # Safety
///
/// It is memory that the host may write.
unsafe fn set_valid(context: GuestPhys) {
    let at = core::ptr::with_exposed_provenance_mut::<UserContext>(context.0 as usize);
    // SAFETY: as this function's caller says.
    unsafe { (&raw mut (*at).xstate_valid).write(1) };
}

/// Whether a table is the guest kernel's own root.
fn is_kernel_root(table: u64) -> bool {
    table != 0 && crate::boot::info().kernel_root.0 == table
}

/// Whether a range is in memory that the map calls usable.
fn is_memory(start: u64, length: u64) -> bool {
    let inside = |run: &&hv_abi::boot::MemoryRegion| {
        let end = run.start.0 + run.length;
        run.start.0 <= start && start < end && length <= end - start
    };
    crate::memory::map().iter().any(|run| run.kind == region::USABLE && inside(&run))
}

/// Reads a word of usable memory.
fn read(at: u64) -> u64 {
    // SAFETY: all callers have found it there, aligned; it is initialised and was leaked with its provenance exposed.
    unsafe { core::ptr::with_exposed_provenance::<u64>(at as usize).read() }
}

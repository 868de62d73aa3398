//! Whether a program may be entered, and with what.
//!
//! What would be refused, and what is not ready, is left to the monitor, which knows why.

use super::layout::{EnginePage, LOWEST_USER, SLOT_255};
use super::tables::Tables;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Entry {
    /// All is ready: the program is entered.
    Go = 0,
    /// The monitor is asked.
    Ask = 1,
    /// An event is pending: the program is interrupted before its first instruction.
    Interrupted = 2,
}

const PENDING: u32 = 1;
const USER_FLAGS: u64 = 0x24_0dd5;
const FIXED_FLAGS: u64 = 0x202;

/// Words of a `UserContext`.
mod word {
    pub(crate) const RIP: u64 = 16;
    pub(crate) const RFLAGS: u64 = 17;
    pub(crate) const FS_BASE: u64 = 18;
    pub(crate) const XSTATE: u64 = 19;
    pub(crate) const XSTATE_VALID: u64 = 20;
    pub(crate) const RESERVED: core::ops::Range<u64> = 23..32;
    pub(crate) const ALL: u64 = 32;
}
/// The same of an `XSAVE` area: MXCSR is in the lower half of one; the header has eight.
const MXCSR: u64 = 3;
const HEADER: u64 = 64;
const HEAD: u64 = 72;

/// Readies the program whose context is at P `context` to be entered under `root`. If the monitor was `asked`, it agrees.
pub(crate) fn prepare(
    tables: &Tables<'_>,
    page: &EnginePage,
    upcall: &AtomicU32,
    root: u64,
    context: u64,
    asked: bool,
) -> Entry {
    if !asked && tables.shared.ask.load(Relaxed) != 0 {
        return Entry::Ask;
    }
    let Some(place) = tables.find(root).filter(|_| root != 0) else { return Entry::Ask };
    let Some(xstate) = check(tables, page, context) else { return Entry::Ask };
    // Whoever wants this vCPU says so first, and then looks here; and so does who wants the place.
    page.user_root.swap(root, SeqCst);
    if upcall.load(SeqCst) & PENDING != 0 {
        page.user_root.store(0, SeqCst);
        page.context.store(tables.direct_map + context, Relaxed);
        return Entry::Interrupted;
    }
    if tables.shared.spaces[place].root.load(SeqCst) != root {
        page.user_root.store(0, SeqCst);
        return Entry::Ask;
    }
    tables.refresh(place);
    let direct_map = tables.direct_map;
    page.context.store(direct_map + context, Relaxed);
    page.xstate.store(direct_map + xstate, Relaxed);
    page.user_cr3.store(tables.shared.spaces[place].cr3.load(Relaxed), Relaxed);
    Entry::Go
}

/// Looks at a context, and at the head of its extended state; gives where that is. `None`: something is wrong with it.
fn check(tables: &Tables<'_>, page: &EnginePage, context: u64) -> Option<u64> {
    let mask = page.xstate_mask.load(Relaxed);
    if !context.is_multiple_of(64) || !tables.contains(context, word::ALL * 8) {
        return None;
    }
    let read = |word: u64| tables.word(context + word * 8).load(Relaxed);
    let (rip, fs_base, xstate) = (read(word::RIP), read(word::FS_BASE), read(word::XSTATE));
    let good = (LOWEST_USER..SLOT_255).contains(&rip)
        && read(word::RFLAGS) & !(USER_FLAGS | FIXED_FLAGS) == 0
        && (fs_base as i64) << 16 >> 16 == fs_base as i64
        && read(word::XSTATE_VALID) as u32 == 1
        && word::RESERVED.into_iter().all(|word| read(word) == 0)
        && xstate.is_multiple_of(64)
        && tables.contains(xstate, page.xstate_size.load(Relaxed));
    if !good {
        return None;
    }
    let head = |word: u64| tables.word(xstate + word * 8).load(Relaxed);
    let loads = head(HEADER) & !mask == 0
        && (HEADER + 1..HEAD).all(|word| head(word) == 0)
        && head(MXCSR) as u32 & !0xffff == 0;
    loads.then_some(xstate)
}

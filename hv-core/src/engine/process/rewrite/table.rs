//! The low jump table: where rewritten system calls go.
//!
//! It is at the same V in every user address space of a VM, readable and executable. Each site has an entry of its own: the
//! slot that its jump goes through, and the trampoline that the slot leads to, which loads the number and the return
//! address and goes on in the stub, as a call of the gate does. No stack is used, and no register but RAX, RCX and R11.
//!
//! An entry depends on nothing but the V of the system call and its number, so address spaces share it. Entries are never
//! taken back: what is full refuses further sites, and those go on to trap.

use super::site::Site;
use crate::engine::process::layout::{GATE_REWRITTEN, TABLE, TABLE_SIZE};
use crate::shared::SharedFile;
use hv_abi::PAGE_SIZE;
use std::collections::HashMap;

/// Bytes of an entry, slot and trampoline.
const ENTRY: u64 = 32;
/// Bytes of a slot.
const SLOT: u64 = 8;
/// Entries that there is room for.
const MOST: u64 = TABLE_SIZE / ENTRY;

/// A system call that has been made a jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call {
    /// V of the `syscall` instruction.
    pub at: u64,
    pub number: u32,
}

/// The entries, which are at the beginning of the file.
#[derive(Default)]
pub(super) struct Table {
    calls: Vec<Call>,
    indexes: HashMap<Call, u64>,
}

impl Table {
    /// V of the slot for a site in the page at `page`. `None` if there is no room.
    pub(super) fn slot(&mut self, file: &SharedFile, page: u64, site: Site) -> Option<u32> {
        let call = Call { at: page + site.syscall as u64, number: site.number };
        let next = self.calls.len() as u64;
        let index = match self.indexes.get(&call) {
            Some(index) => *index,
            None if next == MOST => return None,
            None => {
                write(file, next, call);
                self.calls.push(call);
                self.indexes.insert(call, next);
                next
            }
        };
        Some((TABLE + index * ENTRY) as u32)
    }

    /// The call whose trampoline begins at this V.
    pub(super) fn call_at(&self, trampoline: u64) -> Option<Call> {
        let offset = trampoline.checked_sub(TABLE + SLOT)?;
        self.calls.get((offset / ENTRY) as usize).filter(|_| offset.is_multiple_of(ENTRY)).copied()
    }
}

/// Writes an entry.
fn write(file: &SharedFile, index: u64, call: Call) {
    let offset = index * ENTRY;
    let mut entry = [0xcc; ENTRY as usize];
    entry[..8].copy_from_slice(&(TABLE + offset + SLOT).to_le_bytes());
    entry[8] = 0xb8; // mov eax, number
    entry[9..13].copy_from_slice(&call.number.to_le_bytes());
    entry[13..15].copy_from_slice(&[0x48, 0xb9]); // movabs rcx, behind the call
    entry[15..23].copy_from_slice(&(call.at + 2).to_le_bytes());
    entry[23..26].copy_from_slice(&[0xff, 0x24, 0x25]); // jmp [GATE_REWRITTEN]
    entry[26..30].copy_from_slice(&(GATE_REWRITTEN as u32).to_le_bytes());
    debug_assert!(offset + ENTRY <= TABLE_SIZE && TABLE_SIZE.is_multiple_of(PAGE_SIZE));
    file.store_bytes(offset, &entry);
}

//! A guest's memory by guest-virtual address, as its kernel or one of its programs would see it, looked at from outside.
//!
//! Backtraces, cores, the profiler and the debugger read through this. Page tables are the guest's, and hostile: each
//! look is a walk of four entries at the most that trusts none of them, each read is bounded by its caller's buffer, and
//! what cannot be translated is absent. Nothing is remembered from one look to the next.
//!
//! Start at [`View::read`].

use crate::engine::Mapping;
use crate::memory::GuestMemory;
use crate::mmu::{self, KERNEL, Rights, Translation};
use hv_abi::address::SLOT_255;
use hv_abi::user::LOWEST_USER;
use hv_abi::{GuestPhys, PAGE_SIZE};
use std::ops::{ControlFlow, Range};

/// What a user program's page tables can translate.
const USER: Range<u64> = LOWEST_USER..SLOT_255;

/// Tables that are read for [`View::regions`], at the most: those of 8 GiB in small pages.
const MOST_TABLES: usize = 4096;

/// Whose addresses they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressSpace {
    /// The guest kernel's.
    Kernel,
    /// A user program's.
    User {
        /// P of its root page table.
        root: u64,
    },
}

/// An address space of a guest, to look at from outside.
#[derive(Clone, Copy)]
pub struct View<'a> {
    memory: &'a GuestMemory,
    /// What is mapped without page tables: the guest kernel's image and direct map.
    fixed: &'a [Mapping],
    /// The page tables that translate the rest, and what of it.
    tables: Option<(u64, &'static Range<u64>)>,
}

impl<'a> View<'a> {
    /// The guest kernel's: `fixed` are its image and direct map, `root` its own root page table, if it has one.
    pub(crate) fn kernel(memory: &'a GuestMemory, fixed: &'a [Mapping], root: Option<u64>) -> Self {
        Self { memory, fixed, tables: root.map(|root| (root, &KERNEL)) }
    }

    /// A user program's, by the root at P `root`. One that cannot be a root translates nothing.
    pub(crate) fn user(memory: &'a GuestMemory, root: u64) -> Self {
        let is_page = root.is_multiple_of(PAGE_SIZE) && memory.contains(GuestPhys(root), PAGE_SIZE);
        Self { memory, fixed: &[], tables: is_page.then_some((root, &USER)) }
    }

    /// The page or segment that an address is in.
    pub(crate) fn find(&self, address: u64) -> Option<Mapping> {
        if let Some((root, _)) = self.tables.filter(|(_, range)| range.contains(&address)) {
            let Translation { phys, size: length, rights } = mmu::walk(self.memory, root, address, |_| {})?;
            let virt = address - address % length;
            return Some(Mapping { virt, phys, length, write: rights.write, execute: rights.execute });
        }
        self.fixed.iter().find(|m| (m.virt..m.virt + m.length).contains(&address)).copied()
    }

    /// All that is mapped, sorted, in at most so many runs of both V and P; what the tables map beyond that is left out.
    pub(crate) fn regions(&self, most: usize) -> Vec<Mapping> {
        let mut regions = self.fixed.to_vec();
        regions.sort_by_key(|region| region.virt);
        let Some((root, range)) = self.tables else { return regions };
        let _ = mmu::each_page(self.memory, root, range, MOST_TABLES, &mut |virt, page| {
            let Rights { write, execute, .. } = page.rights;
            let goes_on = |last: &&mut Mapping| {
                (last.virt + last.length, last.phys + last.length) == (virt, page.phys)
                    && (last.write, last.execute) == (write, execute)
            };
            if let Some(last) = regions.last_mut().filter(goes_on) {
                last.length += page.size;
            } else if regions.len() < most {
                regions.push(Mapping { virt, phys: page.phys, length: page.size, write, execute });
            } else {
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        regions
    }

    /// The P of an address, and how many bytes from there are in one run of guest memory.
    pub fn translate(&self, address: u64) -> Option<(GuestPhys, u64)> {
        let mapping = self.find(address)?;
        let offset = address - mapping.virt;
        Some((GuestPhys(mapping.phys + offset), mapping.length - offset))
    }

    /// Whether code there can be executed.
    pub fn is_executable(&self, address: u64) -> bool {
        self.find(address).is_some_and(|mapping| mapping.execute)
    }

    /// Fills `bytes` from `address` on, up to the first that is not there. Gives how many it filled.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.pieces(address, bytes.len(), |phys, piece| {
            self.memory.read_bytes(phys, &mut bytes[piece]).is_ok()
        })
    }

    /// Reads 8 bytes.
    pub fn read_word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        (self.read(address, &mut word) == word.len()).then(|| u64::from_le_bytes(word))
    }

    /// Writes `bytes` from `address` on, up to the first place that is not there, whether the guest itself may write there
    /// or not. Gives how many it wrote. What the engine keeps of these frames it forgets when a vCPU next goes on.
    pub fn write(&self, address: u64, bytes: &[u8]) -> usize {
        self.pieces(address, bytes.len(), |phys, piece| self.memory.write_bytes(phys, &bytes[piece]).is_ok())
    }

    /// Does something to each piece of `length` bytes that is in one run of guest memory, as long as there is one and it
    /// can be done. Gives how many bytes it was done to.
    fn pieces(
        &self,
        address: u64,
        length: usize,
        mut act: impl FnMut(GuestPhys, Range<usize>) -> bool,
    ) -> usize {
        let mut done = 0;
        while done < length {
            let Some(at) = address.checked_add(done as u64) else { break };
            let Some((phys, run)) = self.translate(at) else { break };
            let piece = done..length.min(done.saturating_add(usize::try_from(run).unwrap_or(usize::MAX)));
            let end = piece.end;
            if !act(phys, piece) {
                break;
            }
            done = end;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hv_abi::address::{DIRECT_MAP, KERNEL_SPACE};
    use hv_abi::mmu::Entry;

    const MEMORY: u64 = 8 << 20;
    const ROOT: u64 = 0x1000;
    const USABLE: Entry = Entry::PRESENT.union(Entry::WRITE).union(Entry::USER);

    fn link(memory: &GuestMemory, table: u64, index: u64, to: u64, flags: Entry) {
        memory.write(GuestPhys(table + index * 8), &Entry::new(GuestPhys(to), flags)).unwrap();
    }

    /// Tables that lead from a root to V 0x40_0000 and the page behind it, at P 0x9000 and 0x7000.
    fn tables() -> GuestMemory {
        let memory = GuestMemory::new(MEMORY).unwrap();
        link(&memory, ROOT, 0, 0x2000, USABLE);
        link(&memory, 0x2000, 0, 0x3000, USABLE);
        link(&memory, 0x3000, 2, 0x4000, USABLE);
        link(&memory, 0x4000, 0, 0x9000, USABLE);
        link(&memory, 0x4000, 1, 0x7000, USABLE | Entry::NO_EXECUTE);
        memory
    }

    #[test]
    fn reads_and_writes_cross_pages_and_end_where_nothing_is_mapped() {
        let memory = tables();
        let view = View::user(&memory, ROOT);
        assert_eq!(view.write(0x40_0ffc, b"12345678"), 8);
        let mut bytes = [0; 4];
        memory.read_bytes(GuestPhys(0x7000), &mut bytes).unwrap();
        assert_eq!(&bytes, b"5678");
        assert_eq!(view.read_word(0x40_0ffc), Some(u64::from_le_bytes(*b"12345678")));
        assert_eq!(view.write(0x40_1ffd, b"12345678"), 3);
        assert_eq!(view.read(0x40_1ffd, &mut [0; 8]), 3);
        assert_eq!(view.read_word(0x40_1ffd), None);
        assert!(view.is_executable(0x40_0fff) && !view.is_executable(0x40_1000));
    }

    #[test]
    fn addresses_that_no_table_can_translate_are_absent() {
        let memory = tables();
        // Each of these would be V 0x40_0000, if only some of its bits were looked at.
        let view = View::user(&memory, ROOT);
        for address in [1 << 48 | 0x40_0000, u64::MAX << 48 | 0x40_0000, 1 << 63 | 0x40_0000] {
            assert_eq!(view.read(address, &mut [0; 8]), 0, "{address:#x}");
        }
        link(&memory, 0x4000, 511, 0x9000, USABLE);
        link(&memory, ROOT, 511, 0x2000, USABLE);
        for address in [0, LOWEST_USER - 8, SLOT_255, SLOT_255 | 0x40_0000, u64::MAX, u64::MAX - 7] {
            assert_eq!(view.read(address, &mut [0; 16]), 0, "{address:#x}");
        }
    }

    #[test]
    fn tables_that_lead_in_circles_or_out_of_memory_are_walked_once() {
        let memory = tables();
        // Each level is the root again: the page that is found is the root itself.
        link(&memory, ROOT, 0, ROOT, USABLE);
        assert_eq!(View::user(&memory, ROOT).translate(0x2_0000 & !0xfff | 8), None);
        link(&memory, ROOT, 0x20, ROOT, USABLE);
        assert_eq!(View::user(&memory, ROOT).translate(0x2_0008), Some((GuestPhys(ROOT + 8), PAGE_SIZE - 8)));
        for outside in [MEMORY, 1 << 51, (1 << 52) - PAGE_SIZE] {
            link(&memory, ROOT, 0, outside, USABLE);
            assert_eq!(View::user(&memory, ROOT).read(0x40_0000, &mut [0; 8]), 0, "{outside:#x}");
        }
        for root in [MEMORY, MEMORY - 8, ROOT + 8, u64::MAX, u64::MAX - 4095] {
            assert_eq!(View::user(&memory, root).read(0x40_0000, &mut [0; 8]), 0, "{root:#x}");
        }
    }

    #[test]
    fn large_pages_are_one_run() {
        let memory = tables();
        link(&memory, 0x3000, 2, 6 << 20, USABLE | Entry::LARGE);
        let view = View::user(&memory, ROOT);
        assert_eq!(view.translate(0x40_1234), Some((GuestPhys((6 << 20) + 0x1234), (2 << 20) - 0x1234)));
        link(&memory, 0x3000, 2, (6 << 20) + PAGE_SIZE, USABLE | Entry::LARGE);
        assert_eq!(view.translate(0x40_1234), None, "misaligned");
    }

    #[test]
    fn regions_are_runs_of_pages_and_their_number_has_a_bound() {
        let memory = tables();
        let region = |virt, phys, length, execute| Mapping { virt, phys, length, write: true, execute };
        let view = View::user(&memory, ROOT);
        let two = [region(0x40_0000, 0x9000, 0x1000, true), region(0x40_1000, 0x7000, 0x1000, false)];
        assert_eq!(view.regions(9), two);
        assert_eq!(view.regions(1), two[..1]);
        link(&memory, 0x4000, 1, 0xa000, USABLE);
        assert_eq!(view.regions(9), [region(0x40_0000, 0x9000, 0x2000, true)]);
        // Each entry of each table leads back to the root.
        (0..512).for_each(|index| link(&memory, ROOT, index, ROOT, USABLE));
        assert_eq!(View::user(&memory, ROOT).regions(100).len(), 100);
        let unreachable = Entry::PRESENT | Entry::LARGE; // at level 4 and 3 none, at 2 a page
        (0..512).for_each(|index| link(&memory, ROOT, index, 0, unreachable));
        assert_eq!(View::user(&memory, ROOT).regions(100), []);
    }

    #[test]
    fn a_kernel_has_its_fixed_mappings_and_above_them_its_tables() {
        let memory = tables();
        let fixed = [Mapping { virt: DIRECT_MAP, phys: 0, length: MEMORY, write: true, execute: false }];
        link(&memory, ROOT, KERNEL_SPACE >> 39, 0x2000, USABLE);
        let view = View::kernel(&memory, &fixed, Some(ROOT));
        assert_eq!(view.translate(DIRECT_MAP + 0x1234), Some((GuestPhys(0x1234), MEMORY - 0x1234)));
        assert_eq!(view.read(DIRECT_MAP + MEMORY - 3, &mut [0; 8]), 3);
        assert_eq!(view.translate(KERNEL_SPACE + 0x40_0000), Some((GuestPhys(0x9000), PAGE_SIZE)));
        assert_eq!(view.translate(0x40_0000), None, "a program's");
        assert_eq!(View::kernel(&memory, &fixed, None).translate(KERNEL_SPACE + 0x40_0000), None);
    }
}

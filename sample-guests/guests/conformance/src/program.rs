//! Guest user programs of a few instructions, and page tables for them, made by hand.

#![expect(unsafe_code, reason = "tables are memory that the host reads, and programs run on it")]

use crate::{direct, phys};
use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use guest_sdk::hv_abi::mmu::{EAGER, Entry, MmuUpdate};
use guest_sdk::hv_abi::user::{RFLAGS_FIXED, UserContext};
use guest_sdk::hv_abi::{GuestPhys, Status};
use guest_sdk::hypercall;

/// A page of the heap, which is in the direct map: it never moves and is never freed.
#[repr(align(4096))]
pub struct Page(pub [u64; 512]);

/// A new page, all zero.
pub fn page() -> &'static mut Page {
    Box::leak(Box::new(Page([0; 512])))
}

/// Rights of pages.
pub const CODE: Entry = Entry::PRESENT.union(Entry::USER);
pub const DATA: Entry = CODE.union(Entry::WRITE).union(Entry::NO_EXECUTE);
pub const CONSTANT: Entry = CODE.union(Entry::NO_EXECUTE);
const TABLE: Entry = CODE.union(Entry::WRITE);

/// Where programs are, and their data and stack.
pub const TEXT: u64 = 0x40_0000;
pub const HEAP: u64 = 0x80_0000;

/// An address space.
pub struct Space {
    pub root: GuestPhys,
    /// Table pages, by V of their first byte and level.
    tables: Vec<(u64, u32, &'static mut Page)>,
}

impl Space {
    pub fn new() -> Self {
        let root = GuestPhys(phys(page()));
        hypercall::root_create(root).expect("a fresh page is a good root");
        Self { root, tables: Vec::new() }
    }

    /// P of the lowest table's entry for `virt`; makes tables above it.
    pub fn entry(&mut self, virt: u64) -> GuestPhys {
        let mut table = self.root;
        for level in [4, 3, 2] {
            let span = 1 << (12 + 9 * (level - 1));
            let base = virt - virt % span;
            let at = GuestPhys(table.0 + virt / span % 512 * 8);
            let known = self.tables.iter().find(|(at, of, _)| (*at, *of) == (base, level - 1));
            table = match known {
                Some((_, _, page)) => GuestPhys(phys(*page)),
                None => {
                    let new = page();
                    let below = GuestPhys(phys(new));
                    self.tables.push((base, level - 1, new));
                    set(at, Entry::new(below, TABLE), 0).expect("a good entry");
                    below
                }
            };
        }
        GuestPhys(table.0 + virt / 4096 % 512 * 8)
    }

    /// Maps the page at `phys`.
    pub fn map(&mut self, virt: u64, phys: GuestPhys, rights: Entry) {
        let at = self.entry(virt);
        set(at, Entry::new(phys, rights), 0).expect("a good entry");
    }

    /// Takes a page away, at once.
    pub fn unmap(&mut self, virt: u64) {
        let at = self.entry(virt);
        set(at, Entry::empty(), EAGER).expect("a good entry");
    }
}

/// Changes one entry; gives the old value.
pub fn set(at: GuestPhys, new: Entry, flags: u64) -> Result<u64, Status> {
    let mut update = [MmuUpdate { entry: at, new: new.bits(), ..MmuUpdate::default() }];
    hypercall::mmu_update(&mut update, flags)?;
    update[0].status.ok().map(|()| update[0].old)
}

/// A program in an address space of its own.
pub struct Program {
    pub space: Space,
    pub context: Box<UserContext>,
    /// One page of its own at [`HEAP`], and its stack below the page's end.
    pub data: &'static mut Page,
}

impl Program {
    /// One that begins with this code.
    pub fn new(code: &[u8]) -> Self {
        let (mut space, text, data) = (Space::new(), page(), page());
        for (word, bytes) in text.0.iter_mut().zip(code.chunks(8)) {
            let mut whole = [0xcc; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_le_bytes(whole);
        }
        space.map(TEXT, GuestPhys(phys(text)), CODE);
        space.map(HEAP, GuestPhys(phys(data)), DATA);
        Self { context: Box::new(context(TEXT)), space, data }
    }

    /// Runs it to its next trap.
    pub fn run(&mut self) -> u32 {
        self.enter().expect("a good context")
    }

    /// Enters it.
    pub fn enter(&mut self) -> Result<u32, Status> {
        // SAFETY: the space maps pages that are nobody else's, leaked, and the context and its area live in boxes that the
        // tests keep until the VM ends.
        unsafe { hypercall::enter_user(self.space.root, &mut self.context) }
    }
}

/// A context that begins at `rip`, with initial extended state.
pub fn context(rip: u64) -> UserContext {
    #[derive(Clone)]
    #[repr(align(64))]
    struct Line([u64; 8]);
    let mut area = vec![Line([0; 8]); guest_sdk::boot::info().xstate_size.div_ceil(64) as usize];
    area[0].0[3] = 0x1f80; // MXCSR
    let xstate = GuestPhys(phys(&area[0]));
    area.leak();
    UserContext {
        rip,
        rsp: HEAP + 4096,
        rflags: RFLAGS_FIXED,
        xstate,
        xstate_valid: 1,
        ..UserContext::default()
    }
}

/// A page's first word.
pub fn first_word(of: GuestPhys) -> u64 {
    u64::from_le_bytes(direct(of, 8).try_into().expect("eight bytes"))
}

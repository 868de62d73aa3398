//! Guest user programs of a few instructions, and page tables for them, made by hand.

#![expect(unsafe_code, reason = "tables are memory that the host reads, and programs run on it")]

use crate::{direct, phys};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use guest_sdk::hv_abi::mmu::{Entry, MmuUpdate};
use guest_sdk::hv_abi::user::{RFLAGS_FIXED, UserContext, trap};
use guest_sdk::hv_abi::{GuestPhys, Status};
use guest_sdk::hypercall;

/// The machine code of some instructions, for a program. Labels 90 and 91 are taken.
macro_rules! code {
    ($($line:literal),+ $(,)?) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: the instructions are jumped over; two registers are written, which are declared. What lies between the two
        // addresses is code of this image, which is readable and never changes.
        #[expect(unsafe_code, reason = "instructions")]
        unsafe {
            core::arch::asm!(
                "lea {start}, [rip + 90f]", "lea {end}, [rip + 91f]", "jmp 91f", "90:", $($line,)+ "91:",
                start = out(reg) start, end = out(reg) end, options(nomem, nostack, preserves_flags),
            );
            core::slice::from_raw_parts(start, end.addr() - start.addr())
        }
    }};
}
pub(crate) use code;

/// A page of the heap, which is in the direct map: it never moves and is never freed.
#[repr(align(4096))]
pub struct Page(pub [u64; 512]);

/// A new page, all zero.
pub fn page() -> &'static mut Page {
    Box::leak(Box::new(Page([0; 512])))
}

/// Two pages whose first words are 0 and 1.
pub fn numbered() -> [GuestPhys; 2] {
    [0, 1].map(|number| {
        let page = page();
        page.0[0] = number;
        GuestPhys(phys(page))
    })
}

/// Rights of pages.
pub const CODE: Entry = Entry::PRESENT.union(Entry::USER);
pub const DATA: Entry = CODE.union(Entry::WRITE).union(Entry::NO_EXECUTE);
pub const CONSTANT: Entry = CODE.union(Entry::NO_EXECUTE);
pub const TABLE: Entry = CODE.union(Entry::WRITE);

/// Where programs are, and their data and stack.
pub const TEXT: u64 = 0x40_0000;
pub const HEAP: u64 = 0x80_0000;

/// An address space.
pub struct Space {
    pub root: GuestPhys,
    /// Table pages, by V of their first byte and level.
    tables: BTreeMap<(u64, u32), GuestPhys>,
}

/// Bytes of V that an entry of a table covers; 1 is the lowest level.
pub const fn span(level: u32) -> u64 {
    1 << (12 + 9 * (level - 1))
}

impl Space {
    pub fn new() -> Self {
        let root = GuestPhys(phys(page()));
        hypercall::root_create(root).expect("a fresh page is a good root");
        Self { root, tables: BTreeMap::new() }
    }

    /// The guest kernel's own, in which nothing is mapped yet.
    pub fn of_the_kernel() -> Self {
        Self { root: guest_sdk::boot::info().kernel_root, tables: BTreeMap::new() }
    }

    /// P of the lowest table's entry for `virt`; makes tables above it.
    pub fn entry(&mut self, virt: u64) -> GuestPhys {
        self.entry_at(virt, 1)
    }

    /// P of the entry for `virt` at a level; makes tables above it.
    pub fn entry_at(&mut self, virt: u64, wanted: u32) -> GuestPhys {
        let mut table = self.root;
        for level in (wanted + 1..=4).rev() {
            let at = GuestPhys(table.0 + virt / span(level) % 512 * 8);
            let base = virt - virt % span(level);
            table = *self.tables.entry((base, level - 1)).or_insert_with(|| {
                let below = GuestPhys(phys(page()));
                set(at, Entry::new(below, TABLE), 0).expect("a good entry");
                below
            });
        }
        GuestPhys(table.0 + virt / span(wanted) % 512 * 8)
    }

    /// Maps the page at `phys`.
    pub fn map(&mut self, virt: u64, phys: GuestPhys, rights: Entry) {
        let at = self.entry(virt);
        set(at, Entry::new(phys, rights), 0).expect("a good entry");
    }
}

/// Changes one entry; gives the old value.
pub fn set(at: GuestPhys, new: Entry, flags: u64) -> Result<u64, Status> {
    let mut update = [MmuUpdate { entry: at, new: new.bits(), ..MmuUpdate::default() }];
    crate::mmu_update(&mut update, flags)?;
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

    /// Runs it to its next trap. It may be interrupted at any time, which is no trap of its own.
    pub fn run(&mut self) -> u32 {
        loop {
            match self.enter().expect("a good context") {
                trap::INTERRUPTED => {}
                trap => return trap,
            }
        }
    }

    /// Runs it from some address to a page fault, which must be that.
    #[track_caller]
    pub fn faults(&mut self, rip: u64, address: u64, access: u32) {
        self.context.rip = rip;
        assert_eq!(self.run(), trap::PAGE_FAULT, "{:#x?}", self.context);
        assert_eq!((self.context.address, self.context.access), (address, access), "{:#x?}", self.context);
    }

    /// Runs it from some address to an exception, which must be that.
    #[track_caller]
    pub fn excepts(&mut self, rip: u64, vector: u32, at: u64) {
        self.context.rip = rip;
        assert_eq!(self.run(), trap::EXCEPTION, "{:#x?}", self.context);
        assert_eq!((self.context.vector, self.context.rip), (vector, at), "{:#x?}", self.context);
    }

    /// Runs it from some address to a system call.
    #[track_caller]
    pub fn calls(&mut self, rip: u64) {
        self.context.rip = rip;
        assert_eq!(self.run(), trap::SYSCALL, "{:#x?}", self.context);
    }

    /// Enters it.
    pub fn enter(&mut self) -> Result<u32, Status> {
        enter(self.space.root, &mut self.context)
    }
}

/// Enters a context under a root.
pub fn enter(root: GuestPhys, context: &mut UserContext) -> Result<u32, Status> {
    // SAFETY: spaces map pages that are nobody else's, leaked, and contexts and their areas live in boxes that the tests
    // keep until the VM ends.
    unsafe { hypercall::enter_user(root, context) }
}

/// Runs a context under a root to its next trap.
pub fn run(root: GuestPhys, context: &mut UserContext) -> u32 {
    loop {
        match enter(root, context).expect("a good context") {
            trap::INTERRUPTED => {}
            trap => return trap,
        }
    }
}

/// Makes the engine let go of a context.
pub fn release(context: &mut UserContext) -> Result<(), Status> {
    // SAFETY: the area is leaked, and the test's alone.
    unsafe { hypercall::user_xstate(context) }
}

/// A context's `XSAVE` area, in words.
pub fn area(context: &UserContext) -> &'static mut [u64] {
    let info = guest_sdk::boot::info();
    let at = core::ptr::with_exposed_provenance_mut((info.direct_map + context.xstate.0) as usize);
    // SAFETY: the area is leaked, 64-byte aligned, `xstate_size` bytes; a test looks at one by one such slice at a time.
    unsafe { core::slice::from_raw_parts_mut(at, info.xstate_size as usize / 8) }
}

/// A context that begins at `rip`, with initial extended state.
pub fn context(rip: u64) -> UserContext {
    #[derive(Clone)]
    #[repr(align(64))]
    struct Line([u64; 8]);
    let mut area = vec![Line([0; 8]); guest_sdk::boot::info().xstate_size.div_ceil(64) as usize];
    area[0].0[3] = 0x1f80; // MXCSR
    let xstate = GuestPhys(phys(&area[0]));
    area.leak(); // and exposed by `phys`
    UserContext {
        rip,
        rsp: HEAP + 4096,
        rflags: RFLAGS_FIXED,
        xstate,
        xstate_valid: 1,
        ..UserContext::default()
    }
}

/// A word of guest memory.
pub fn word(at: GuestPhys) -> u64 {
    u64::from_le_bytes(direct(at, 8).try_into().expect("eight bytes"))
}

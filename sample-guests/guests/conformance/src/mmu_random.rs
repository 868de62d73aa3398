//! Random changes of page tables, and random accesses under them: each does what a walk of the tables says.
//!
//! The walk here is written from the document, and looks at the tables themselves, which are authoritative. Two roots
//! share tables of all levels; every data page says in its words which one it is, and can be executed.
//!
//! Start at [`Arena::step`].

use crate::after;
use crate::memory_size;
use crate::mmu_update;
use crate::phys;
use crate::program::{CODE, Space, TEXT, code, page, word};
use alloc::boxed::Box;
use alloc::vec::Vec;
use guest_sdk::hv_abi::mmu::{EAGER, MmuUpdate};
use guest_sdk::hv_abi::user::{UserContext, access, trap};
use guest_sdk::hv_abi::{GuestPhys, Status};
use guest_sdk::hypercall::mmu_flush;
use guest_sdk::time::Instant;

/// Indices that are used at each level, the lowest first; that of the probes' own code is none of them.
const INDICES: [&[u64]; 4] = [&[0, 1, 31, 32, 63, 64, 511], &[0, 1, 2, 511], &[0, 1, 511], &[1, 2, 254]];

const STEPS: u32 = 30_000;

/// Some pages for each level of table, the roots last.
struct Arena {
    random: u64,
    tables: [Vec<GuestPhys>; 4],
    data: Vec<GuestPhys>,
    large: Vec<GuestPhys>,
    contexts: [Box<UserContext>; 3],
    probes: [u64; 3],
    /// Counts stores, so that each has a value of its own.
    stores: u64,
    /// How many accesses were allowed, and how many were not.
    seen: [u32; 2],
}

/// What a walk finds: the page, and whether it may be written and executed.
type Found = Option<(u64, bool, bool)>;

/// As section 14 has it.
fn walk(root: GuestPhys, virt: u64) -> Found {
    let (mut table, mut write, mut execute) = (root.0, true, true);
    for level in (1..=4).rev() {
        let entry = word(GuestPhys(table + (virt >> (9 * level) & 0xff8)));
        let (address, large) = (entry & 0x000f_ffff_ffff_f000, entry & 0x80 != 0);
        if entry & 1 == 0 || entry & 4 == 0 || entry & 0x7800_0000_0000_0118 != 0 || address >= memory_size()
        {
            return None;
        }
        write &= entry & 2 != 0;
        execute &= entry >> 63 == 0;
        match (level, large) {
            (1, false) => return Some((address, write, execute)),
            (2, true) if address % (2 << 20) == 0 && address + (2 << 20) <= memory_size() => {
                return Some((address + (virt & 0x1f_f000), write, execute));
            }
            (_, true) => return None,
            (_, false) => table = address,
        }
    }
    None
}

impl Arena {
    fn new(seed: u64) -> Self {
        // A load, a store and a jump, in a place of their own under each root.
        let load: &[u8] = code!("mov rax, [rdi]", "syscall");
        let store: &[u8] = code!("mov [rdi], rsi", "syscall");
        let jump: &[u8] = code!("jmp rdi");
        let text = page();
        for (i, byte) in [load, store, jump].concat().into_iter().enumerate() {
            text.0[i / 8] |= u64::from(byte) << (i % 8 * 8);
        }
        let text = GuestPhys(phys(text));
        let roots = (0..2).map(|_| {
            let mut space = Space::new();
            space.map(TEXT, text, CODE);
            space.root
        });
        let data: Vec<_> = (0..12).map(|_| GuestPhys(phys(page()))).collect();
        let large: Vec<_> = (0..2).map(|_| crate::mmu::large_page()).collect();
        let all = large.iter().flat_map(|large| (0..512).map(move |i| GuestPhys(large.0 + i * 4096)));
        for page in data.iter().copied().chain(all) {
            // mov eax, page number; syscall
            poke(GuestPhys(page.0 + 16), 0xb8 | (page.0 >> 12) << 8 | 0x050f << 40);
        }
        let tables = |count| (0..count).map(|_| GuestPhys(phys(page()))).collect::<Vec<_>>();
        let tables = [tables(4), tables(3), tables(3), roots.collect()];
        let probes = [TEXT, TEXT + load.len() as u64, TEXT + (load.len() + store.len()) as u64];
        let contexts = [(); 3].map(|()| Box::new(crate::program::context(TEXT)));
        Self { random: seed, tables, data, large, contexts, probes, stores: 0, seen: [0; 2] }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % below
    }

    fn pick<T: Copy>(&mut self, of: impl Fn(&Self) -> &[T]) -> T {
        let index = self.random(of(self).len() as u64) as usize;
        of(self)[index]
    }

    /// A new value for an entry of a table of some level, most likely a good one.
    fn value(&mut self, level: usize) -> u64 {
        let kind = self.random(16);
        let (to, large) = match (level, kind) {
            (_, 0..4) => return if kind == 0 { self.random << 1 } else { 0 },
            (1, _) => (self.pick(|arena| &arena.data), 0),
            (2, 4..8) => (self.pick(|arena| &arena.large), 0x80),
            // A bit 7 that means nothing, of a page so that it would be seen if it did.
            (3 | 4, 4) => (self.pick(|arena| &arena.large), 0x80),
            (2, 8) => (GuestPhys(self.pick(|arena| &arena.large).0 + 4096), 0x80),
            _ => (self.pick(|arena| &arena.tables[level - 2]), 0),
        };
        let mut value = to.0 | large | 1;
        for (bit, one_in) in [(1, 3), (2, 8)] {
            value |= u64::from(self.random(one_in) != 0) << bit;
        }
        value |= u64::from(self.random(3) == 0) << 63;
        if self.random(4) == 0 {
            value |= self.random & (0x07f0_0000_0000_0e60);
        }
        if self.random(32) == 0 {
            value |= 1 << [3, 4, 8, 59, 60, 61, 62, 51][self.random(8) as usize];
        }
        value
    }

    /// Changes a few entries at once.
    fn change(&mut self) {
        let count = 1 + self.random(3);
        let mut updates: Vec<MmuUpdate> = Vec::new();
        for _ in 0..count {
            let level = 1 + [0, 0, 0, 1, 1, 2, 3][self.random(7) as usize];
            let table = self.pick(|arena| &arena.tables[level - 1]);
            let index = self.pick(|_| INDICES[level - 1]);
            let new = self.value(level);
            updates.push(MmuUpdate { entry: GuestPhys(table.0 + index * 8), new, ..MmuUpdate::default() });
        }
        let before: Vec<u64> = updates.iter().map(|update| word(update.entry)).collect();
        mmu_update(&mut updates, if self.random(4) == 0 { EAGER } else { 0 }).expect("a good call");
        for (i, update) in updates.iter().enumerate() {
            let expected = refusal(update.new);
            assert_eq!(update.status, expected, "{update:x?}");
            // What was there before the call, unless an update before it was of the same entry.
            let earlier =
                updates[..i].iter().rfind(|other| other.entry == update.entry && other.status.is_success());
            let old = earlier.map_or(before[i], |other| other.new);
            assert_eq!(update.old, if expected.is_success() { old } else { 0 }, "{update:x?}");
        }
        if self.random(8) == 0 {
            let root = self.pick(|arena| &arena.tables[3]);
            mmu_flush(root, 0, 0).expect("a good call");
        }
    }

    /// An access somewhere, by one of the contexts, under one of the roots.
    fn probe(&mut self) {
        let mut virt = 0;
        for (level, indices) in INDICES.iter().enumerate() {
            virt |= self.pick(|_| indices) << (12 + 9 * level);
        }
        if self.random(4) == 0 {
            virt = virt & !0x1f_f000 | self.random(512) << 12; // any page of a large one
        }
        let root = self.pick(|arena| &arena.tables[3]);
        let access = self.random(3) as u32;
        virt += [0, 8, 16][access as usize];
        let found = walk(root, virt);
        self.stores += 1;
        let (which, stored) = (self.random(3) as usize, self.stores);
        let context = &mut self.contexts[which];
        (context.rip, context.rdi, context.rsi) = (self.probes[access as usize], virt, stored);
        let trap = crate::program::run(root, context);
        let allowed = match access {
            access::READ => found.is_some(),
            access::WRITE => found.is_some_and(|(_, write, _)| write),
            _ => found.is_some_and(|(_, _, execute)| execute),
        };
        self.seen[usize::from(!allowed)] += 1;
        if !allowed {
            assert_eq!(trap, trap::PAGE_FAULT, "{virt:#x}, access {access}: {found:x?}, {context:x?}");
            assert_eq!((context.address, context.access), (virt, access), "{found:x?}");
            return;
        }
        assert_eq!(trap, trap::SYSCALL, "{virt:#x}, access {access}: {found:x?}, {context:x?}");
        let (page, ..) = found.expect("it is allowed");
        match access {
            access::READ => assert_eq!(context.rax, word(GuestPhys(page)), "{virt:#x} is not {page:#x}"),
            access::WRITE => assert_eq!(word(GuestPhys(page + 8)), stored, "{virt:#x} is not {page:#x}"),
            _ => assert_eq!(context.rax, page >> 12, "{virt:#x} is not {page:#x}"),
        }
    }

    fn step(&mut self) {
        if self.random(3) == 0 { self.change() } else { self.probe() }
    }
}

/// What `MMU_UPDATE` says to a value.
fn refusal(new: u64) -> Status {
    let (address, large) = (new & 0x000f_ffff_ffff_f000, new & 0x80 != 0);
    let size = if large { 2 << 20 } else { 4096 };
    match () {
        () if new & 1 == 0 => Status::SUCCESS,
        () if new & 0x7800_0000_0000_0118 != 0 || address % size != 0 => Status::BAD_ARGUMENT,
        () if address + size > memory_size() => Status::BAD_ADDRESS,
        () => Status::SUCCESS,
    }
}

#[expect(unsafe_code, reason = "a store to a page of the test's")]
fn poke(at: GuestPhys, value: u64) {
    let virt = guest_sdk::boot::info().direct_map + at.0;
    // SAFETY: data pages are leaked, exposed when their P was asked for, and no reference to them is in use.
    unsafe { core::ptr::with_exposed_provenance_mut::<u64>(virt as usize).write_volatile(value) };
}

fn run(seed: u64) {
    let end = after(3000);
    let mut arena = Arena::new(seed);
    for page in arena.data.clone() {
        poke(page, page.0);
    }
    for step in 0..STEPS {
        arena.step();
        if step % 64 == 0 && Instant::now() > end {
            break; // a slow machine
        }
    }
    assert!(arena.seen.iter().all(|seen| *seen > 10), "{:?}", arena.seen);
}

guest_sdk::tests! {
    "USER-010 MMU-001 MMU-002 MMU-003 MMU-010" fn random_accesses_do_what_the_tables_say() {
        run(0x9e37_79b9_7f4a_7c15);
    }

    "USER-010 MMU-009 MMU-013 USER-030" fn other_random_accesses_do_what_the_tables_say() {
        run(0xd1b5_4a32_d192_ed03);
    }
}

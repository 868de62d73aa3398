//! Pages that are reported as free and are anything but: live page tables, code and data of a program that runs, its context,
//! boot information, and now and then any at all.

#![expect(unsafe_code, reason = "pages that are in use")]

use crate::Numbers;
use crate::tables::table;
use alloc::boxed::Box;
use fastrand::Rng;
use guest_sdk::boot::info;
use guest_sdk::hv_abi::address::DIRECT_MAP;
use guest_sdk::hv_abi::mmu::{Entry, MmuUpdate};
use guest_sdk::hv_abi::pages::PageRun;
use guest_sdk::hv_abi::user::{RFLAGS_FIXED, UserContext};
use guest_sdk::hv_abi::{GuestPhys, PAGE_SIZE};
use guest_sdk::hypercall::{
    balloon, enter_user, mmu_flush, mmu_update, pages_claim, pages_report, root_create, root_destroy,
};

const CODE: u64 = 0x40_0000;
/// Where the program begins, far enough from the page's beginning for its call to be rewritten.
const ENTRY: u64 = CODE + 64;
const USER: Entry = Entry::PRESENT.union(Entry::USER);

/// `mov eax, 39; syscall; nop; int3`: a call that is soon rewritten.
const PROGRAM: u64 = u64::from_le_bytes([0xb8, 39, 0, 0, 0, 0x0f, 0x05, 0x90]);

/// Reports and claims at random, and goes on to use what it has reported.
pub fn report([seed, count, _]: Numbers) {
    let mut random = Rng::with_seed(seed);
    let tables = [(); 4].map(|()| table().1);
    let ((code, code_page), (_, data_page), (_, context_page), (_, xstate)) =
        (table(), table(), table(), table());
    let pages: [GuestPhys; 9] = [
        tables[0],
        tables[1],
        tables[2],
        tables[3],
        code_page,
        data_page,
        context_page,
        xstate,
        info().kernel_root,
    ];
    // One root, whose every entry leads down to the code, then the data.
    let link = |at: u64, to: GuestPhys, rights: Entry| {
        let mut update =
            [MmuUpdate { entry: GuestPhys(at), new: Entry::new(to, rights).bits(), ..MmuUpdate::default() }];
        // SAFETY: an entry of a table of this function's.
        let _ = unsafe { mmu_update(&mut update, 0) };
    };
    let link_all = |random: &mut Rng| {
        (0..3).for_each(|i| {
            (0..3).for_each(|slot| link(tables[i].0 + slot * 8, tables[i + 1], USER | Entry::WRITE))
        });
        link(tables[3].0, code_page, if random.bool() { USER } else { USER | Entry::WRITE });
        link(tables[3].0 + 8, data_page, USER | Entry::WRITE);
    };
    for _ in 0..count {
        match random.u8(..16) {
            0..3 => drop(report_some(&mut random, &pages)),
            3..6 => drop(pages_claim(&[run(&mut random, &pages)])),
            6 => drop(balloon(crate::hurtful(&mut random))),
            7 | 8 => link_all(&mut random),
            9 | 10 => drop(root_create(tables[0])),
            11 if random.u8(..8) == 0 => drop(root_destroy(tables[0])),
            11 => drop(mmu_flush(tables[0], 0, 0)),
            12 | 13 => code.0[8..10].copy_from_slice(&[PROGRAM, 0xcc]),
            _ => run_program(&mut random, tables[0], context_page, xstate),
        }
    }
}

/// One page that is in use or some around it, or any run.
fn run(random: &mut Rng, pages: &[GuestPhys]) -> PageRun {
    match random.u8(..32) {
        0 if random.u8(..50) == 0 => {
            PageRun { start: GuestPhys(crate::hurtful(random)), count: crate::hurtful(random) }
        }
        0 if random.u8(..200) == 0 => PageRun { start: GuestPhys(0), count: info().memory_size / PAGE_SIZE },
        1 => PageRun { start: GuestPhys(0x2000), count: 14 },
        _ => PageRun { start: pages[random.usize(..pages.len())], count: random.u64(..3).min(1) },
    }
}

fn report_some(random: &mut Rng, pages: &[GuestPhys]) -> Result<(), guest_sdk::hv_abi::Status> {
    let runs: [PageRun; 3] = core::array::from_fn(|_| run(random, pages));
    // SAFETY: not met: the pages are in use. What comes of it is this guest's own affair, which is what is tested.
    unsafe { pages_report(&runs) }
}

/// Enters a program that makes a system call, from a context on a page that may have been reported.
fn run_program(random: &mut Rng, root: GuestPhys, context: GuestPhys, xstate: GuestPhys) {
    let at = core::ptr::with_exposed_provenance_mut::<UserContext>((DIRECT_MAP + context.0) as usize);
    let fresh = UserContext {
        rip: ENTRY,
        rdi: CODE + PAGE_SIZE,
        xstate,
        xstate_valid: random.u32(..2),
        rflags: RFLAGS_FIXED,
        ..*Box::new(UserContext::default())
    };
    // SAFETY: the context is in a leaked page of this guest's, aligned, to which there is no reference. What the program may
    // write is of such pages, too.
    unsafe {
        if random.u8(..4) != 0 {
            at.write_volatile(fresh);
        }
        for _ in 0..8 {
            let _ = enter_user(root, &mut *at);
            at.cast::<u64>().add(16).write_volatile(ENTRY); // RIP, so that the same call is made often
        }
    }
}

//! What a guest may touch (`docs/abi.md`, chapters ADDRESS, IMAGE and CLOCK), and what its accesses end as.

use super::{Run, Stand, holds, same, scenarios};
use crate::patch::{Patch, Segment};
use crate::{Judgement, Machine};
use hv_abi::PAGE_SIZE;
use hv_abi::address::{CLOCK_PAGE, DIRECT_MAP, KERNEL_SPACE, LOWEST_MAPPABLE, VCPU_PAGES};
use hv_abi::mmu::ROOTS_MAX;
use object::LittleEndian;

const READ: u32 = 4;
const WRITE: u32 = 2;
const EXECUTE: u32 = 1;
const RET: u8 = 0xc3;

/// Where the act `own-entry` maps a page.
const OWN_SPOT: u64 = KERNEL_SPACE + (3 << 39 | 5 << 30 | 7 << 21 | 9 << 12);

/// Passes if the machine, which touches `address`, ends as crashed for that.
#[track_caller]
fn crashes_at(run: Run, what: &str, address: u64) -> Judgement {
    let crash = run.crash()?;
    same(what, crash.address, Some(address))
}

/// The suite's image, with a constant segment that ends with a `ret` and has these flags: touching the `ret`.
fn touching_constants(stand: &Stand<'_>, how: &str, flags: u32) -> (Machine, u64) {
    let mut good = Patch::new(stand.image);
    let file = good.load(1).file_range();
    let address = good.load(1).virt() + file.len() as u64 - 1;
    let machine = stand.patched(&[how, &address.to_string()], |image| {
        image.load(1).set_flags(flags);
        image.bytes[file.end - 1] = RET; // in the list of tests, which no act needs
    });
    (machine, address)
}

scenarios! {
    "BALLOON-001 BALLOON-002 BALLOON-004" fn the_balloon_is_told_each_target_and_tells_what_it_holds(stand) {
        let mut machine = stand.machine(&["balloon"]);
        machine.balloon = [3, 7, 7, 1, 16, 0].map(|pages| pages * PAGE_SIZE + 5).to_vec();
        same("the targets", stand.boot(machine).done()?.text(), "3\n7\n1\n16\n0\n".into())
    }

    "IMAGE-012" fn a_segment_may_be_used_as_its_flags_say_and_not_otherwise(stand) {
        for flags in [0, READ, WRITE, READ | WRITE, EXECUTE, READ | EXECUTE, READ | WRITE | EXECUTE] {
            for (how, allowed) in [("read", true), ("write", flags & WRITE != 0), ("execute", flags & EXECUTE != 0)] {
                let (machine, address) = touching_constants(stand, how, flags);
                let run = stand.boot(machine);
                match allowed {
                    true => drop(run.done()?),
                    false => crashes_at(run, &format!("{how} with flags {flags}"), address)?,
                }
            }
        }
        Ok(())
    }

    "ADDRESS-004" fn nothing_is_executed_in_the_direct_map(stand) {
        let (mut machine, address) = touching_constants(stand, "execute", READ | EXECUTE);
        stand.boot(machine.clone()).done()?; // where the image has it
        let mut image = Patch::new(stand.image);
        let direct = DIRECT_MAP + image.load(1).phys() + (address - image.load(1).virt());
        machine.arguments[1] = direct.to_string();
        crashes_at(stand.boot(machine), "the same code in the direct map", direct)
    }

    "ADDRESS-005" fn nothing_is_mapped_below_the_lowest_address(stand) {
        for address in [0, 8, 0xfff, 0x1000, LOWEST_MAPPABLE - 1] {
            for how in ["read", "write", "execute"] {
                crashes_at(stand.run(&[how, &address.to_string()]), how, address)?;
            }
        }
        Ok(())
    }

    "ADDRESS-006" fn nothing_is_mapped_behind_the_direct_map(stand) {
        for memory in [16 << 20, (16 << 20) + 0x1000, 64 << 20] {
            for how in ["read", "write"] {
                let end = DIRECT_MAP + memory;
                let mut machine = stand.machine(&[how, &(end - 1).to_string()]);
                machine.memory = memory;
                stand.boot(machine.clone()).done()?;
                machine.arguments[1] = end.to_string();
                crashes_at(stand.boot(machine), how, end)?;
            }
        }
        Ok(())
    }

    "MMU-015 MMU-019 MMU-021" fn the_kernel_is_held_to_its_own_tables_at_every_level(stand) {
        for level in ["1", "2", "3", "4"] {
            for right in ["present", "write", "execute"] {
                for how in ["read", "write", "execute"] {
                    let what = format!("{how} without {right} at level {level}");
                    let run = stand.run(&["own-entry", level, right, how]);
                    match matches!(right, "write" | "execute") && right != how {
                        true => drop(run.done()?),
                        false => crashes_at(run, &what, OWN_SPOT)?,
                    }
                }
            }
        }
        Ok(())
    }

    "MMU-016 ADDRESS-005 ADDRESS-006" fn the_hosts_slots_are_not_in_the_kernels_tables(stand) {
        let machine = stand.machine(&[]);
        for (slot, address) in [(0, 0x7000), (1, (1 << 39) + 0x7000), (31, (31 << 39) + 0x7000), (32, DIRECT_MAP + machine.memory)] {
            crashes_at(stand.run(&["own-slot", &slot.to_string()]), "a read", address)?;
        }
        Ok(())
    }

    "ROOT_CREATE-006" fn there_are_so_many_roots_and_no_more(stand) {
        let mut machine = stand.machine(&["roots"]);
        machine.memory = (ROOTS_MAX * PAGE_SIZE) + (64 << 20);
        stand.boot(machine).done().map(drop)
    }

    "CLOCK-005" fn the_clock_page_is_not_written(stand) {
        let clock = VCPU_PAGES + CLOCK_PAGE;
        for address in [clock, clock + 24, clock + 0xfff] {
            stand.run(&["read", &address.to_string()]).done()?;
            crashes_at(stand.run(&["write", &address.to_string()]), "a store", address)?;
        }
        Ok(())
    }

    "KERNEL-001" fn another_entry_point_is_where_the_guest_begins(stand) {
        // The entry point is moved to an instruction that is illegal, so the guest gets no further.
        let mut entry = 0;
        let machine = stand.patched(&[], |image| {
            entry = image.header().e_entry.get(LittleEndian) + 7;
            let code = image.load(0);
            let at = code.file_range().start + (entry - code.virt()) as usize;
            image.bytes[at..at + 2].copy_from_slice(&[0x0f, 0x0b]);
            image.header().e_entry.set(LittleEndian, entry);
        });
        let crash = stand.boot(machine).crash()?;
        holds(crash.rip == entry, || format!("RIP is {:#x}, the entry point {entry:#x}", crash.rip))
    }
}

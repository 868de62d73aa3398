//! What the guest is told about the machine (`docs/abi.md`, chapter BOOT), beside what the machine is.

use super::{Stand, holds, same, scenarios};
use crate::patch::{Patch, Segment};
use crate::{Judgement, Machine};
use hv_abi::PAGE_SIZE;
use hv_abi::boot::{BootInfo, MemoryRegion, region};
use object::LittleEndian;
use object::elf::PT_LOAD;
use zerocopy::FromBytes;

/// Boot information and memory map of a machine, whose guest writes them.
fn boot_information(stand: &Stand<'_>, machine: Machine) -> Judgement<(BootInfo, Vec<MemoryRegion>)> {
    let bytes = stand.boot(machine).done()?.bytes();
    let parsed = BootInfo::read_from_prefix(&bytes).ok().and_then(|(info, map)| {
        let map: Option<Vec<_>> = map
            .chunks(size_of::<MemoryRegion>())
            .map(|run| MemoryRegion::read_from_bytes(run).ok())
            .collect();
        Some((info, map?))
    });
    match parsed {
        Some(parsed) => Ok(parsed),
        None => super::wrong(format!("{} bytes of boot information", bytes.len())),
    }
}

scenarios! {
    "BOOT-005" fn the_memory_size_is_that_of_the_machine(stand) {
        for memory in [4 << 20, (4 << 20) + 0x1000, 1 << 30] {
            let mut machine = stand.machine(&["boot"]);
            machine.memory = memory;
            same("memory_size", boot_information(stand, machine)?.0.memory_size, memory)?;
        }
        Ok(())
    }

    "BOOT-007" fn the_memory_map_covers_memory_with_and_without_a_ramdisk(stand) {
        for length in [0, 1, 4096, 5000] {
            let mut machine = stand.machine(&["boot"]);
            machine.ramdisk = vec![7; length];
            let memory = machine.memory;
            let (_, map) = boot_information(stand, machine)?;
            let mut end = 0;
            for run in &map {
                same("where the next region begins", run.start.0, end)?;
                holds(run.length > 0 && run.length.is_multiple_of(PAGE_SIZE), || format!("{run:?}"))?;
                end += run.length;
            }
            same("where the last one ends", end, memory)?;
        }
        Ok(())
    }

    "BOOT-008" fn the_images_pages_are_said_to_be_its(stand) {
        let (_, map) = boot_information(stand, stand.machine(&["boot"]))?;
        let mut image = Patch::new(stand.image);
        for segment in image.programs().iter().filter(|p| p.p_type.get(LittleEndian) == PT_LOAD) {
            let pages = (segment.phys()..segment.phys() + segment.memory_size()).step_by(PAGE_SIZE as usize);
            for page in pages.chain([segment.phys() + segment.memory_size() - 1]) {
                let run = map.iter().find(|run| (run.start.0..run.start.0 + run.length).contains(&page));
                same(&format!("kind of {page:#x}"), run.map(|run| run.kind), Some(region::IMAGE))?;
            }
        }
        Ok(())
    }

    "BOOT-009" fn memory_that_is_said_to_be_zero_is(stand) {
        for ramdisk in [0, 5000] {
            let mut machine = stand.machine(&["zeros"]);
            machine.memory = 16 << 20;
            machine.ramdisk = vec![7; ramdisk];
            stand.boot(machine).done()?;
        }
        Ok(())
    }

    "BOOT-010" fn the_command_line_is_what_was_given(stand) {
        let long = "long ".repeat(1000);
        let lines: [&[&str]; 6] =
            [&[], &[""], &["", ""], &["one"], &["two words", "--x=1", "\u{e9}\u{20ac}", ""], &[&long, "end"]];
        for line in lines {
            let arguments = [&["arguments"], line].concat();
            let run = stand.run(&arguments).done()?;
            same("the command line", run.text(), arguments.join("\0"))?;
        }
        Ok(())
    }

    "BOOT-011" fn the_ramdisk_is_what_was_given(stand) {
        for length in [1, 4095, 4096, 4097, 3 << 20] {
            let ramdisk: Vec<u8> = (0..length).map(|i: u64| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
            let mut machine = stand.machine(&["ramdisk"]);
            machine.ramdisk.clone_from(&ramdisk);
            let shown = stand.boot(machine).done()?.bytes();
            holds(shown == ramdisk, || format!("a ramdisk of {length} bytes came as other {} bytes", shown.len()))?;
        }
        Ok(())
    }

    "BOOT-013" fn no_two_starts_have_the_same_seed(stand) {
        let seed = || Ok(boot_information(stand, stand.machine(&["boot"]))?.0.seed);
        let seeds: Vec<[u8; 32]> = (0..3).map(|_| seed()).collect::<Judgement<_>>()?;
        holds(seeds[0] != seeds[1] && seeds[1] != seeds[2] && seeds[0] != seeds[2], || format!("{seeds:x?}"))
    }
}

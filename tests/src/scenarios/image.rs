//! Images that are refused (`docs/abi.md`, chapter IMAGE): each is a good one with one thing wrong.

use super::{Run, holds, refusal, same, scenarios};
use crate::patch::{Program, Segment};
use hv_abi::address::{DIRECT_MAP, LOWEST_MAPPABLE, SLOT_255};
use object::LittleEndian;
use object::elf::{FileType, Machine, PT_DYNAMIC, PT_INTERP, PT_LOAD, PT_NULL, ProgramType};

/// A segment of no bytes, which is ignored wherever it claims to be.
fn nothing() -> Program {
    let mut program: Program =
        *object::pod::from_bytes(&[0; size_of::<Program>()]).expect("any bytes are one").0;
    program.p_type.set(LittleEndian, PT_LOAD);
    program
}

/// As [`nothing`], of another type.
fn of_type(kind: ProgramType) -> Program {
    let mut program = nothing();
    program.p_type.set(LittleEndian, kind);
    program
}

scenarios! {
    "IMAGE-001" fn what_is_not_elf64_for_x86_64_is_refused(stand) {
        for (what, at, value) in [("no magic", 0, b'X'), ("32 bits", 4, 1), ("big-endian", 5, 2)] {
            stand.refused(what, |image| image.bytes[at] = value)?;
        }
        for machine in [0, 3, 40, 183, 243, 62 << 8] {
            stand.refused("another machine", |image| image.header().e_machine.set(LittleEndian, Machine(machine)))?;
        }
        for length in [0, 1, 4, 63, 64] {
            stand.refused("only a header", |image| image.bytes.truncate(length))?;
        }
        Ok(())
    }

    "IMAGE-002" fn what_is_not_a_static_executable_is_refused(stand) {
        for kind in [0, 1, 3, 4, 0xfe00] {
            stand.refused("another type", |image| image.header().e_type.set(LittleEndian, FileType(kind)))?;
        }
        Ok(())
    }

    "IMAGE-003" fn an_image_for_a_dynamic_linker_is_refused(stand) {
        for kind in [PT_INTERP, PT_DYNAMIC] {
            stand.refused("a dynamic image", |image| image.add_programs(&[of_type(kind)]))?;
        }
        // Other headers are ignored, whatever they say.
        let machine = stand.patched(&["arguments"], |image| {
            image.add_programs(&[of_type(PT_NULL), of_type(ProgramType(7)), of_type(ProgramType(0x6474_e551))]);
        });
        stand.boot(machine).done().map(drop)
    }

    "IMAGE-004" fn an_image_without_a_segment_is_refused(stand) {
        stand.refused("no segment", |image| {
            for program in image.programs() {
                if program.p_type.get(LittleEndian) == PT_LOAD {
                    program.p_type.set(LittleEndian, PT_NULL);
                }
            }
        })?;
        stand.refused("empty segments only", |image| {
            for program in image.programs() {
                program.p_memsz.set(LittleEndian, 0);
            }
        }).map(drop)
    }

    "IMAGE-005" fn a_segment_outside_the_images_part_of_the_address_space_is_refused(stand) {
        let past_the_top = u64::MAX - 0xfff;
        for virt in [0, 0x1000, LOWEST_MAPPABLE - 0x1000, DIRECT_MAP - 0x1000, DIRECT_MAP, SLOT_255, 1 << 47, past_the_top] {
            stand.refused("outside", |image| {
                let segment = image.load(3);
                segment.set_place(virt, segment.phys());
            })?;
        }
        stand.refused("an end that wraps around", |image| image.load(3).set_sizes(0, past_the_top))?;
        // At the edges it is good, and an empty one anywhere.
        for virt in [LOWEST_MAPPABLE, DIRECT_MAP - 0x1000] {
            let machine = stand.patched(&["arguments"], |image| {
                let mut segment = nothing();
                segment.set_place(virt, 0x80_0000);
                segment.set_sizes(0, 0x1000);
                image.add_programs(&[segment, nothing()]);
            });
            stand.boot(machine).done()?;
        }
        Ok(())
    }

    "IMAGE-006" fn segments_that_share_a_page_are_refused(stand) {
        for last_page in [false, true] {
            stand.refused("the same V", |image| {
                let first = (image.load(0).virt(), image.load(0).memory_size());
                let segment = image.load(3);
                segment.set_place(if last_page { (first.0 + first.1 - 1) & !0xfff } else { first.0 }, segment.phys());
            })?;
            stand.refused("the same P", |image| {
                let first = (image.load(0).phys(), image.load(0).memory_size());
                let segment = image.load(3);
                segment.set_place(segment.virt(), if last_page { (first.0 + first.1 - 1) & !0xfff } else { first.0 });
            })?;
        }
        Ok(())
    }

    "IMAGE-007" fn a_segment_outside_memory_is_refused(stand) {
        let memory = stand.machine(&[]).memory;
        for phys in [0, 0x1000, 0xf000, memory - 0x1000, memory, 1 << 40, u64::MAX - 0xfff] {
            stand.refused("P outside memory", |image| {
                let segment = image.load(3);
                segment.set_place(segment.virt(), phys);
            })?;
        }
        // At both edges it is good.
        for phys in [0x1_0000, memory - 0x1000] {
            let machine = stand.patched(&["arguments"], |image| {
                let mut segment = nothing();
                segment.set_place(0x80_0000, phys);
                segment.set_sizes(0, 0x1000);
                image.add_programs(&[segment]);
            });
            stand.boot(machine).done()?;
        }
        Ok(())
    }

    "IMAGE-008" fn a_segment_whose_addresses_differ_inside_a_page_is_refused(stand) {
        for (virt, phys) in [(0x10, 0), (0, 0x10), (0x10, 0x20), (0xfff, 0)] {
            stand.refused("other low bits", |image| {
                let segment = image.load(3);
                segment.set_place(segment.virt() + virt, segment.phys() + phys);
                segment.set_sizes(0, 0x1000);
            })?;
        }
        Ok(())
    }

    "IMAGE-008 IMAGE-011" fn a_segment_may_begin_inside_a_page(stand) {
        let content = b"inside a page";
        let machine = stand.patched(&["show", &(0x80_0123 - 16).to_string(), "45"], |image| {
            let mut segment = nothing();
            segment.set_place(0x80_0123, 0x90_0123);
            segment.set_sizes(content.len() as u64, content.len() as u64);
            segment.set_flags(4);
            let start = image.append(content);
            segment.p_offset.set(LittleEndian, start);
            image.add_programs(&[segment]);
        });
        let shown = stand.boot(machine).done()?.bytes();
        same("the segment and 16 bytes on either side", shown, [&[0; 16], &content[..], &[0; 16]].concat())
    }

    "IMAGE-009" fn a_segment_with_more_in_the_file_than_there_is_is_refused(stand) {
        stand.refused("more in the file than in memory", |image| {
            let segment = image.load(2);
            segment.set_sizes(segment.memory_size() + 1, segment.memory_size());
        })?;
        for offset in [u64::MAX, 1 << 40] {
            stand.refused("behind the file's end", |image| image.load(2).p_offset.set(LittleEndian, offset))?;
        }
        stand.refused("across the file's end", |image| {
            let end = image.bytes.len() as u64;
            image.load(2).p_offset.set(LittleEndian, end - 1);
        }).map(drop)
    }

    "IMAGE-010" fn an_entry_point_outside_the_code_is_refused(stand) {
        let mut image = crate::patch::Patch::new(stand.image);
        let (code, data) = (image.load(0).virt() + image.load(0).memory_size(), image.load(1).virt());
        for entry in [0, code, data, DIRECT_MAP + 0x20_0000, SLOT_255, u64::MAX] {
            stand.refused("no code", |image| image.header().e_entry.set(LittleEndian, entry))?;
        }
        Ok(())
    }

    "IMAGE-011" fn a_segments_bytes_are_in_memory_and_zeros_behind_them(stand) {
        let mut image = crate::patch::Patch::new(stand.image);
        for index in [0, 1] {
            let (virt, file) = (image.load(index).virt(), image.load(index).file_range());
            let shown = stand.run(&["show", &virt.to_string(), &file.len().to_string()]).done()?.bytes();
            holds(shown == stand.image[file], || format!("segment {index} is not in memory as in the file"))?;
        }
        // The list of tests is at the end of the constants, and no act needs it: it is left out of the file's bytes.
        let cut = 100;
        let (virt, file) = (image.load(1).virt(), image.load(1).file_range());
        holds(stand.image[file.end - cut..file.end].iter().any(|byte| *byte != 0), || "zeros anyway".into())?;
        let end = virt + file.len() as u64;
        let machine = stand.patched(&["show", &(end - 200).to_string(), "300"], |image| {
            image.load(1).set_sizes((file.len() - cut) as u64, (file.len() + 100) as u64);
        });
        let shown = stand.boot(machine).done()?.bytes();
        same("what is in the file", &shown[..100], &stand.image[file.end - 200..file.end - cut])?;
        same("what is behind it", &shown[100..], &[0; 200])
    }

    "IMAGE-019" fn an_image_for_more_memory_is_refused_with_both_sizes(stand) {
        let mut machine = stand.patched(&["arguments"], |image| image.note(|note| note.least_memory = 32 << 20));
        machine.memory = (32 << 20) - 0x1000;
        let text = refusal("too little memory", stand.boot(machine.clone()))?;
        holds(text.contains("33554432") && text.contains("33550336"), || text.clone())?;
        machine.memory = 32 << 20;
        let run: Run = stand.boot(machine);
        run.done().map(drop)
    }
}

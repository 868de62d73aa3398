//! Images and configurations that cannot run are refused with what is wrong, in hv-core's own words and errors. That
//! they are refused at all is the ABI's: `src/scenarios/image.rs` has that.

mod common;

use common::*;
use conformance::patch::{Patch, Segment};
use hv_core::{Image, ImageError, StartError, Vm};
use object::LittleEndian;
use object::elf::Machine;

/// The error for `hello` with something changed.
fn changed(change: impl FnOnce(&mut Patch)) -> ImageError {
    let mut patch = Patch::new(sample_guests::find("hello").unwrap().image);
    change(&mut patch);
    Image::parse(patch.bytes).expect_err("the image is bad")
}

#[test]
fn an_image_cut_short_anywhere_is_refused() {
    let whole = sample_guests::find("hello").unwrap().image;
    // Loaded parts and headers come first in the file, debug information after them.
    let segments = Image::parse(whole).expect("it is whole").segments;
    let loaded = segments
        .iter()
        .map(|segment| &segment.data)
        .filter(|data| !data.is_empty())
        .map(|data| data.end)
        .max()
        .expect("it has segments");
    for length in (0..loaded).step_by(61) {
        let Err(error) = Image::parse(whole[..length].to_vec()) else { panic!("{length} bytes are taken") };
        let expected = match length {
            0..64 => matches!(error, ImageError::TooShort { .. }),
            _ => matches!(error, ImageError::Truncated { .. }),
        };
        assert!(expected, "{length}: {error}");
    }
}

#[test]
fn what_is_no_guest_is_told_so() {
    let error = Image::parse(&b"#!/bin/sh\n"[..]).unwrap_err();
    assert_eq!(error, ImageError::NotElf { found: *b"#!/b" });
    let error = Image::parse(std::fs::read("/proc/self/exe").unwrap()).unwrap_err();
    assert!(matches!(error, ImageError::NotExecutable { .. } | ImageError::Dynamic), "{error}");
}

#[test]
fn another_machine_is_told_with_what_was_found() {
    let error = changed(|image| image.header().e_machine.set(LittleEndian, Machine(183))); // AArch64
    assert_eq!(error, ImageError::WrongMachine { class: 2, encoding: 1, machine: 183 });
}

#[test]
fn overlapping_segments_are_told_with_the_space_that_they_share() {
    let first = 0x20_0000;
    let error = changed(|image| {
        let segment = image.load(1);
        segment.set_place(first, segment.phys());
    });
    assert_eq!(error, ImageError::Overlap { first: 0, second: 1, space: "virtual" });
    let error = changed(|image| {
        let segment = image.load(1);
        segment.set_place(segment.virt(), first);
    });
    assert_eq!(error, ImageError::Overlap { first: 0, second: 1, space: "physical" });
}

#[test]
fn a_segment_over_boot_information_is_told_so() {
    let error = changed(|image| {
        let segment = image.load(0);
        segment.set_place(segment.virt(), 0x1000);
    });
    assert_eq!(error, ImageError::OverBootInformation { index: 0, start: 0x1000 });
}

/// The error of starting `hello` with so much memory.
fn with_memory(memory: u64) -> StartError {
    let (mut config, console) = config("hello", &[]);
    config.memory = memory;
    let Err(error) = Vm::start(config) else { panic!("{memory} bytes should not do") };
    assert_eq!(console.text(), "", "the guest ran");
    error
}

#[test]
fn memory_of_no_size_too_little_and_too_much_is_refused() {
    assert!(matches!(with_memory(0), StartError::NoMemory));
    assert!(matches!(with_memory(5000), StartError::MemoryNotPages { memory: 5000 }));
    assert!(matches!(with_memory(1 << 20), StartError::MemoryTooSmall { needed: 0x40_0000, .. }));
    assert!(matches!(with_memory(1 << 40), StartError::MemoryTooLarge { .. }));
}

#[test]
fn a_command_line_that_does_not_fit_is_refused() {
    let (mut config, _) = config("hello", &[]);
    config.command_line = vec!["x".repeat(70_000)];
    assert!(matches!(Vm::start(config), Err(StartError::CommandLineTooLong { length: 70_000, .. })));
}

#[test]
fn the_least_memory_that_an_image_asks_for_is_enough() {
    let (mut config, console) = config("hello", &[]);
    config.memory = 4 << 20;
    wait(Vm::start(config).unwrap());
    assert_eq!(console.text(), "Hello from a guest kernel.\n");
}

#[test]
fn an_image_with_too_many_segments_is_refused() {
    let error = changed(|image| {
        let first = *image.load(0);
        let each_a_page_of_its_own = |index: u64| {
            let mut segment = first;
            segment.set_place(0x100_0000 + index * 0x1_0000, 0x100_0000 + index * 0x1_0000);
            segment
        };
        image.add_programs(&(0..60).map(each_a_page_of_its_own).collect::<Vec<_>>());
    });
    assert_eq!(error, ImageError::TooManySegments { found: 64 });
}

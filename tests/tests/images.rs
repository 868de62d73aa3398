//! Images and configurations that cannot run are refused before the first guest instruction, with what is wrong.

mod common;

use common::*;
use hv_core::{Image, ImageError, StartError, Vm};

/// Offsets in an ELF64 file header.
const MACHINE: usize = 18;
const KIND: usize = 16;
const ENTRY: usize = 24;
const PROGRAM_HEADERS: usize = 64;
/// Offsets in a program header, and its size.
const VIRT: usize = 16;
const PHYS: usize = 24;
const FILE_SIZE: usize = 32;
const MEMORY_SIZE: usize = 40;
const HEADER: usize = 56;

fn hello() -> Vec<u8> {
    sample_guests::find("hello").unwrap().image.to_vec()
}

/// The error for `hello` with something changed.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> ImageError {
    let mut image = hello();
    change(&mut image);
    Image::parse(image).expect_err("the image is bad")
}

fn put(image: &mut [u8], at: usize, value: u64) {
    image[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn segment(index: usize, field: usize) -> usize {
    PROGRAM_HEADERS + index * HEADER + field
}

/// Where the note's descriptor is in the file.
fn note(image: &[u8]) -> usize {
    let note = b"\x03\0\0\0\x20\0\0\0\x01\0\0\0hv\0\0";
    image.windows(note.len()).position(|window| window == note).unwrap() + note.len()
}

#[test]
fn an_image_cut_short_anywhere_is_refused() {
    let whole = hello();
    // Loaded parts and headers come first in the file, debug information after them.
    for length in (0..0x7000).step_by(61) {
        let error = Image::parse(whole[..length].to_vec()).expect_err("cut short");
        let expected = match length {
            0..64 => matches!(error, ImageError::TooShort { .. }),
            _ => matches!(error, ImageError::Truncated { .. }),
        };
        assert!(expected, "{length}: {error}");
    }
}

#[test]
fn what_is_no_elf_file_is_told_so() {
    let error = Image::parse(&b"#!/bin/sh\n"[..]).unwrap_err();
    assert_eq!(error, ImageError::NotElf { found: *b"#!/b" });
}

#[test]
fn another_machine_is_refused() {
    let error = changed(|image| image[MACHINE] = 183); // AArch64
    assert_eq!(error, ImageError::WrongMachine { class: 2, encoding: 1, machine: 183 });
    let error = changed(|image| image[4] = 1); // 32 bits
    assert_eq!(error, ImageError::WrongMachine { class: 1, encoding: 1, machine: 62 });
}

#[test]
fn a_shared_object_is_refused() {
    assert_eq!(changed(|image| image[KIND] = 3), ImageError::NotExecutable { found: 3 });
}

#[test]
fn this_very_program_is_refused_as_no_guest() {
    let error = Image::parse(std::fs::read("/proc/self/exe").unwrap()).unwrap_err();
    assert!(matches!(error, ImageError::NotExecutable { .. } | ImageError::Dynamic), "{error}");
}

#[test]
fn another_abi_version_is_refused_with_both_versions() {
    let error = changed(|image| {
        let at = note(image);
        image[at] = 9;
    });
    assert_eq!(error, ImageError::AbiVersion { found: 9 });
    assert!(error.to_string().contains("ABI version 9") && error.to_string().contains("serves version 1"));
}

#[test]
fn an_image_without_note_is_refused() {
    let error = changed(|image| {
        let at = note(image) - 4;
        image[at] = b'x';
    });
    assert_eq!(error, ImageError::NoNote);
}

#[test]
fn a_feature_that_is_not_served_is_named() {
    let error = changed(|image| {
        let at = note(image) + 8;
        image[at] = 1 << 2; // MMU
    });
    assert!(error.to_string().contains("MMU"), "{error}");
}

#[test]
fn a_reserved_word_in_the_note_is_refused() {
    let error = changed(|image| {
        let at = note(image) + 4;
        image[at] = 1;
    });
    assert_eq!(error, ImageError::BadNote { found: 32, reserved: 1 });
}

#[test]
fn overlapping_segments_are_refused() {
    let first = 0x20_0000;
    let error = changed(|image| put(image, segment(1, VIRT), first));
    assert_eq!(error, ImageError::Overlap { first: 0, second: 1, space: "virtual" });
    let error = changed(|image| put(image, segment(1, PHYS), first));
    assert_eq!(error, ImageError::Overlap { first: 0, second: 1, space: "physical" });
}

#[test]
fn segments_outside_the_address_space_are_refused() {
    let slot_255 = hv_abi::address::SLOT_255;
    for virt in [0, 0x1000, slot_255, hv_abi::address::DIRECT_MAP, u64::MAX - 0xfff] {
        let error = changed(|image| put(image, segment(0, VIRT), virt));
        assert!(matches!(error, ImageError::OutsideAddressSpace { index: 0, .. }), "{virt:#x}: {error}");
    }
    let error = changed(|image| put(image, segment(2, MEMORY_SIZE), u64::MAX - 0x1000));
    assert!(matches!(error, ImageError::OutsideAddressSpace { .. }), "{error}");
    let error = changed(|image| put(image, segment(0, PHYS), 0x1000));
    assert_eq!(error, ImageError::OverBootInformation { index: 0, start: 0x1000 });
    let error = changed(|image| put(image, segment(0, PHYS), u64::MAX - 0xfff));
    assert!(matches!(error, ImageError::OutsideAddressSpace { index: 0, .. }), "{error}");
}

#[test]
fn a_segment_larger_in_the_file_than_in_memory_is_refused() {
    let error = changed(|image| put(image, segment(2, FILE_SIZE), 0x10_0000));
    assert!(matches!(error, ImageError::LargerInFile { index: 2, .. }), "{error}");
}

#[test]
fn a_misaligned_segment_is_refused() {
    let error = changed(|image| put(image, segment(0, VIRT), 0x20_0010));
    assert!(matches!(error, ImageError::Misaligned { index: 0, .. }), "{error}");
}

#[test]
fn an_entry_point_outside_the_code_is_refused() {
    for entry in [0, 0x20_4000, u64::MAX] {
        assert_eq!(changed(|image| put(image, ENTRY, entry)), ImageError::Entry { entry });
    }
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
        // A table of 60 segments behind everything else, each a page of its own.
        let table = image.len() as u64;
        let first: [u8; HEADER] = image[PROGRAM_HEADERS..PROGRAM_HEADERS + HEADER].try_into().unwrap();
        for index in 0..60 {
            let mut header = first;
            put(&mut header, VIRT, 0x100_0000 + index * 0x1_0000);
            put(&mut header, PHYS, 0x100_0000 + index * 0x1_0000);
            image.extend_from_slice(&header);
        }
        put(image, 32, table);
        image[56..58].copy_from_slice(&60_u16.to_le_bytes());
    });
    assert_eq!(error, ImageError::TooManySegments { found: 60 });
}

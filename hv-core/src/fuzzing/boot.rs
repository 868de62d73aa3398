//! Putting a guest into its memory: what is there afterwards is what docs/abi.md, sections 4 and 5, promise.

use crate::boot::Boot;
use crate::config::StartError;
use crate::devices::Plan;
use crate::image::{Image, Segment};
use crate::memory::GuestMemory;
use arbitrary::Unstructured;
use hv_abi::boot::{Blob, BootInfo, MAGIC, MemoryRegion, region};
use hv_abi::note::ImageNote;
use hv_abi::{ABI_VERSION, Features, GuestPhys, PAGE_SIZE};
use std::ops::Range;
use zerocopy::FromBytes;

const PAGE: usize = PAGE_SIZE as usize;
/// Where images may begin; boot information is between the first page and here.
const IMAGES: usize = 0x1_0000;
const VCPUS: u32 = 3;

/// Boots a made-up image with made-up arguments in a made-up amount of memory.
pub fn boot(input: &[u8]) {
    let input = &mut Unstructured::new(input);
    let _ = made_up(input).map(|case| case.check()); // too short an input is no case
}

/// Everything that decides what is in a guest's memory at its start.
pub(super) struct Case {
    pub image: Image,
    pub ramdisk: Vec<u8>,
    pub command_line: Vec<String>,
    pub features: Features,
    pub memory: usize,
}

fn made_up(u: &mut Unstructured<'_>) -> arbitrary::Result<Case> {
    let mut segments = Vec::new();
    let mut phys = IMAGES as u64;
    let offset = if u.ratio(1, 4)? { u.int_in_range(0..=PAGE_SIZE - 1)? } else { 0 };
    for _ in 0..u.int_in_range(1..=24)? {
        phys += u.int_in_range(0..=2)? * PAGE_SIZE;
        let length = u.int_in_range(1..=3 * PAGE_SIZE)?;
        let file = u.int_in_range(0..=length)? as usize;
        let start = phys + offset;
        let data = usize::from(u.arbitrary::<u8>()?)..;
        let data = data.start..data.start + file;
        segments.push(Segment { virt: start, phys: start, length, data, write: false, execute: true });
        phys = (start + length).next_multiple_of(PAGE_SIZE);
    }
    if u.arbitrary()? {
        segments.reverse(); // the file's order need not be memory's
    }
    let bytes: Vec<u8> = (0..0x100 + 3 * PAGE).map(|i| (i % 251) as u8 + 1).collect();
    let least_memory = if u.ratio(1, 4)? { u.arbitrary()? } else { 0 };
    let (needed, liked) = (Features::empty(), Features::empty());
    let note = ImageNote { abi_version: ABI_VERSION, reserved: 0, needed, liked, least_memory };
    let image = Image { bytes: bytes.into(), entry: segments[0].virt, note, segments };
    let ramdisk = vec![0xd1; if u.arbitrary()? { u.int_in_range(0..=2 * PAGE)? } else { 0 }];
    let mut command_line = Vec::new();
    for _ in 0..u.int_in_range(0..=4)? {
        let word = u.arbitrary::<&str>()?;
        command_line.push(word.repeat(if u.ratio(1, 8)? { u.int_in_range(0..=0x8000)? } else { 1 }));
    }
    command_line.iter_mut().for_each(|word| word.truncate(word.floor_char_boundary(0x1_0000)));
    // About as much as is needed, and sometimes a little less.
    let fitting = (phys as usize + ramdisk.len()).next_multiple_of(PAGE);
    let memory = (fitting + 3 * PAGE).saturating_sub(u.int_in_range(0..=5)? * PAGE);
    Ok(Case { image, ramdisk, command_line, features: Features::from_bits_retain(u.arbitrary()?), memory })
}

impl Case {
    /// Loads it, and compares everything that can be told.
    pub(super) fn check(&self) {
        let memory = GuestMemory::new(self.memory as u64).expect("a small memory can be had");
        let boot = Boot {
            xstate: crate::cpu::xstate(),
            image: &self.image,
            ramdisk: &self.ramdisk,
            command_line: &self.command_line,
            features: self.features,
            vcpus: VCPUS,
            devices: &Plan::new(Vec::new()),
        };
        let result = boot.load(&memory);
        let mut bytes = vec![0; self.memory];
        memory.read_bytes(GuestPhys(0), &mut bytes).expect("all of it is memory");
        match result {
            Ok(loaded) => {
                let at = loaded.info.checked_sub(hv_abi::address::DIRECT_MAP).expect("[KERNEL-002]") as usize;
                let info = BootInfo::read_from_bytes(&bytes[at..][..size_of::<BootInfo>()]).unwrap();
                self.check_needs();
                self.check_info(&info, at, &bytes);
                self.check_map(&info, &bytes);
                self.check_contents(&info, &bytes);
            }
            Err(error) => {
                self.check_error(&error);
                assert!(bytes.iter().all(|byte| *byte == 0), "a start that is refused writes nothing");
            }
        }
    }

    /// Bytes of memory that it takes.
    fn needed(&self) -> u64 {
        let pages = self.image.segments.iter().map(|segment| pages(segment).end).max().unwrap_or(0);
        let loaded = (pages + self.ramdisk.len()).next_multiple_of(PAGE) as u64;
        loaded.max(self.image.note.least_memory)
    }

    /// The command line as the guest is to find it.
    fn text(&self) -> String {
        self.command_line.join("\0")
    }

    fn check_error(&self, error: &StartError) {
        match error {
            StartError::MemoryTooSmall { memory, needed } => {
                assert_eq!((*memory, *needed), (self.memory as u64, self.needed()));
                assert!(needed > memory, "{error}");
            }
            StartError::CommandLineTooLong { length, most } => {
                assert_eq!(*length, self.text().len());
                assert!(length > most && *most > 0xd000, "{error}");
            }
            StartError::ZeroInArgument { index } => assert!(self.command_line[*index].contains('\0')),
            other => panic!("nothing here should give {other}"),
        }
    }

    /// Nothing is started that should have been refused ([IMAGE-007], [IMAGE-019], [BOOT-010]).
    fn check_needs(&self) {
        assert!(self.needed() <= self.memory as u64);
        assert!(self.command_line.iter().all(|word| !word.contains('\0')));
    }

    fn check_info(&self, info: &BootInfo, at: usize, bytes: &[u8]) {
        assert_eq!((info.magic, info.abi_version, info.size), (MAGIC, ABI_VERSION, 184), "[BOOT-001, 002]");
        assert_eq!(info.features, self.features, "[BOOT-003]");
        assert_eq!(info.memory_size, self.memory as u64, "[BOOT-005]");
        assert_eq!((info.direct_map, info.vcpus, info.reserved), (0x1000_0000_0000, VCPUS, 0));
        assert_eq!(info.devices, Blob::default());
        let root = info.kernel_root.0 as usize;
        assert_eq!(root != 0, self.features.contains(Features::MMU), "[BOOT-016]");
        assert!(
            bytes[root..][..if root == 0 { 0 } else { PAGE }].iter().all(|byte| *byte == 0),
            "[BOOT-016]"
        );
        assert!(info.xstate_mask & 3 == 3 && info.xstate_size >= 576, "[BOOT-015]");
        let map = extent(info.memory_map, size_of::<MemoryRegion>());
        let command_line = extent(info.command_line, 1);
        let mut parts = [at..at + size_of::<BootInfo>(), map, command_line.clone()];
        parts.sort_by_key(|part| part.start);
        assert!(parts[0].start >= PAGE && parts[2].end <= IMAGES, "[BOOT-006] {parts:x?}");
        assert!(parts.windows(2).all(|pair| pair[0].end <= pair[1].start), "they overlap: {parts:x?}");
        assert_eq!(&bytes[command_line], self.text().as_bytes(), "[BOOT-010]");
    }

    fn check_map(&self, info: &BootInfo, bytes: &[u8]) {
        let regions = regions(info, bytes);
        let mut at = 0;
        for MemoryRegion { start, length, kind, flags } in &regions {
            assert_eq!(start.0, at, "[BOOT-007] {regions:x?}");
            assert!(*length > 0 && length.is_multiple_of(PAGE_SIZE), "{regions:x?}");
            assert!(
                (region::USABLE..=region::RAMDISK).contains(kind) || *kind == region::ROOT,
                "{regions:x?}"
            );
            at += length;
            assert!(at <= self.memory as u64, "{regions:x?}");
            let all_zero = || bytes[start.0 as usize..at as usize].iter().all(|byte| *byte == 0);
            assert!(*flags == 0 || *flags == region::ZERO && all_zero(), "[BOOT-009] {regions:x?}");
        }
        assert_eq!(at, self.memory as u64, "[BOOT-007] {regions:x?}");
        // Each page is of the kind that it should be: nothing in use is free, and nothing free is lost.
        let ramdisk = extent(info.ramdisk, 1);
        for page in (0..self.memory).step_by(PAGE) {
            let expected = if self.image.segments.iter().any(|segment| pages(segment).contains(&page)) {
                region::IMAGE
            } else if page != 0 && page as u64 == info.kernel_root.0 {
                region::ROOT
            } else if (PAGE..IMAGES).contains(&page) {
                region::BOOT
            } else if ramdisk.contains(&page) {
                region::RAMDISK
            } else {
                region::USABLE
            };
            let holds = |r: &&MemoryRegion| (r.start.0..r.start.0 + r.length).contains(&(page as u64));
            let found = regions.iter().find(holds).map(|region| region.kind);
            assert_eq!(found, Some(expected), "[BOOT-008, 011] P {page:#x} in {regions:x?}");
        }
    }

    /// What is loaded is there, and behind it, up to the end of the page, is nothing.
    fn check_contents(&self, info: &BootInfo, bytes: &[u8]) {
        for segment in &self.image.segments {
            let (start, data) = (segment.phys as usize, &self.image.bytes[segment.data.clone()]);
            assert_eq!(&bytes[start..][..data.len()], data, "[IMAGE-011]");
            let rest = bytes[pages(segment).start..start]
                .iter()
                .chain(&bytes[start + data.len()..pages(segment).end]);
            assert!(rest.into_iter().all(|byte| *byte == 0), "[IMAGE-011]");
        }
        let ramdisk = extent(info.ramdisk, 1);
        assert_eq!(ramdisk.len(), self.ramdisk.len(), "[BOOT-012]");
        assert!(ramdisk.start.is_multiple_of(PAGE), "[BOOT-011]");
        assert_eq!(&bytes[ramdisk.clone()], self.ramdisk, "[BOOT-011]");
        let behind = &bytes[ramdisk.end..ramdisk.end.next_multiple_of(PAGE)];
        assert!(behind.iter().all(|byte| *byte == 0), "the ramdisk's last page");
    }
}

/// The pages that a segment is in.
fn pages(segment: &Segment) -> Range<usize> {
    let (start, end) = (segment.phys as usize, (segment.phys + segment.length) as usize);
    start - start % PAGE..end.next_multiple_of(PAGE)
}

/// The bytes of a blob of things of that size.
fn extent(blob: Blob, size: usize) -> Range<usize> {
    let start = blob.start.0 as usize;
    start..start + blob.length as usize * size
}

fn regions(info: &BootInfo, bytes: &[u8]) -> Vec<MemoryRegion> {
    let table = &bytes[extent(info.memory_map, size_of::<MemoryRegion>())];
    table.chunks(size_of::<MemoryRegion>()).map(|row| MemoryRegion::read_from_bytes(row).unwrap()).collect()
}

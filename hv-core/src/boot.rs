//! Putting a guest into its memory: the image, the ramdisk, and what the guest is told at its first instruction.

use crate::config::StartError;
use crate::devices::Plan;
use crate::engine::Mapping;
use crate::image::Image;
use crate::memory::GuestMemory;
use hv_abi::address::{DIRECT_MAP, LOWEST_MAPPABLE};
use hv_abi::boot::{Blob, BootInfo, MAGIC, MemoryRegion, region};
use hv_abi::device::DeviceEntry;
use hv_abi::{ABI_VERSION, Features, GuestPhys, PAGE_SIZE};
use zerocopy::IntoBytes;

/// Where boot information is: from the second page of guest memory up to where images may begin.
const BOOT_INFO: u64 = PAGE_SIZE;
const MEMORY_MAP: u64 = BOOT_INFO + 512;
const COMMAND_LINE: u64 = BOOT_INFO + 2048;
const COMMAND_LINE_MAX: usize = (KERNEL_ROOT - COMMAND_LINE) as usize;
/// The guest kernel's root page table, for a guest that has page tables.
const KERNEL_ROOT: u64 = LOWEST_MAPPABLE - PAGE_SIZE;

// Used and free runs alternate at the worst: segments, boot information, root, ramdisk and devices, and what is between.
const _: () = assert!(
    (2 * (crate::image::MOST_SEGMENTS + 4) + 1) * size_of::<MemoryRegion>()
        <= (COMMAND_LINE - MEMORY_MAP) as usize
);

/// What goes into guest memory.
pub(crate) struct Boot<'a> {
    pub image: &'a Image,
    pub ramdisk: &'a [u8],
    pub command_line: &'a [String],
    pub features: Features,
    pub vcpus: u32,
    pub devices: &'a Plan,
    /// Of its engine's guests.
    pub xstate: (u64, u64),
}

/// Where the guest finds what.
pub(crate) struct Loaded {
    /// V of the boot information.
    pub info: u64,
    /// Its devices.
    pub devices: Vec<DeviceEntry>,
}

impl Boot<'_> {
    /// Writes everything.
    pub(crate) fn load(&self, memory: &GuestMemory) -> Result<Loaded, StartError> {
        let ramdisk_start = self.image.phys_end();
        let devices_start = ramdisk_start + (self.ramdisk.len() as u64).next_multiple_of(PAGE_SIZE);
        let devices = self.devices.table(devices_start);
        let end = devices_start + self.devices.size();
        let needed = end.max(self.image.note.least_memory);
        if needed > memory.size() {
            return Err(StartError::MemoryTooSmall { memory: memory.size(), needed });
        }
        if let Some(index) = self.command_line.iter().position(|argument| argument.contains('\0')) {
            return Err(StartError::ZeroInArgument { index });
        }
        let command_line = self.command_line.join("\0");
        if command_line.len() > COMMAND_LINE_MAX {
            return Err(StartError::CommandLineTooLong {
                length: command_line.len(),
                most: COMMAND_LINE_MAX,
            });
        }
        let regions = self.memory_map(memory.size(), devices_start, end);
        let blob = |start, length: usize| Blob { start: GuestPhys(start), length: length as u64 };
        let (xstate_size, xstate_mask) = self.xstate;
        let info = BootInfo {
            magic: MAGIC,
            abi_version: ABI_VERSION,
            size: size_of::<BootInfo>() as u32,
            features: self.features,
            memory_size: memory.size(),
            direct_map: DIRECT_MAP,
            vcpus: self.vcpus,
            reserved: 0,
            command_line: blob(COMMAND_LINE, command_line.len()),
            ramdisk: blob(ramdisk_start, self.ramdisk.len()),
            memory_map: blob(MEMORY_MAP, regions.len()),
            devices: if devices.is_empty() { Blob::default() } else { blob(devices_start, devices.len()) },
            kernel_root: GuestPhys(kernel_root(self.features).unwrap_or(0)),
            cpu_features: crate::cpu::features(),
            xstate_size,
            xstate_mask,
            tsc_hz: crate::clock::tsc_hz(),
            seed: seed(),
        };
        let write = |start, bytes: &[u8]| {
            memory.write_bytes(GuestPhys(start), bytes).expect("checked above: all of it is below `end`")
        };
        write(BOOT_INFO, info.as_bytes());
        write(MEMORY_MAP, regions.as_bytes());
        write(COMMAND_LINE, command_line.as_bytes());
        write(ramdisk_start, self.ramdisk);
        write(devices_start, devices.as_bytes());
        for segment in &self.image.segments {
            write(segment.phys, &self.image.bytes[segment.data.clone()]);
        }
        Ok(Loaded { info: DIRECT_MAP + BOOT_INFO, devices })
    }

    /// What all of guest memory is used for, sorted. Gaps between segments are the guest's.
    fn memory_map(&self, size: u64, devices_start: u64, end: u64) -> Vec<MemoryRegion> {
        let used = |start: u64, end: u64, kind| MemoryRegion {
            start: GuestPhys(start),
            length: end - start,
            kind,
            flags: 0,
        };
        let root = kernel_root(self.features);
        let mut taken = vec![used(BOOT_INFO, root.unwrap_or(LOWEST_MAPPABLE), region::BOOT)];
        taken.extend(root.map(|root| used(root, root + PAGE_SIZE, region::ROOT)));
        taken.extend(self.image.segments.iter().map(|s| used(s.phys_pages(), s.phys_end(), region::IMAGE)));
        if !self.ramdisk.is_empty() {
            taken.push(used(self.image.phys_end(), devices_start, region::RAMDISK));
        }
        if end > devices_start {
            taken.push(used(devices_start, end, region::DEVICE));
        }
        taken.sort_by_key(|region| region.start);
        let mut map: Vec<MemoryRegion> = Vec::new();
        let mut at = 0;
        let free =
            |start: u64, end: u64| MemoryRegion { flags: region::ZERO, ..used(start, end, region::USABLE) };
        for next in taken {
            if next.start.0 > at {
                map.push(free(at, next.start.0));
            }
            at = next.start.0 + next.length;
            map.push(next);
        }
        if at < size {
            map.push(free(at, size));
        }
        map
    }
}

/// P of the guest kernel's own root page table, if it has one: a page of zeros at its start.
pub(crate) fn kernel_root(features: Features) -> Option<u64> {
    features.contains(Features::MMU).then_some(KERNEL_ROOT)
}

/// The guest kernel's address space at start: all memory in the direct map, and the image where it is linked.
pub(crate) fn mappings(image: &Image, memory: u64) -> Vec<Mapping> {
    let direct = Mapping { virt: DIRECT_MAP, phys: 0, length: memory, write: true, execute: false };
    let segments = image.segments.iter().map(|segment| Mapping {
        virt: segment.virt_pages(),
        phys: segment.phys_pages(),
        length: segment.pages_length(),
        write: segment.write,
        execute: segment.execute,
    });
    core::iter::once(direct).chain(segments).collect()
}

/// 32 bytes from the host's generator.
fn seed() -> [u8; 32] {
    let mut seed = [0; 32];
    let mut filled = 0;
    while filled < seed.len() {
        let got = rustix::rand::getrandom(&mut seed[filled..], rustix::rand::GetRandomFlags::empty());
        filled += got.unwrap_or(0); // only a signal can interrupt it, and then it is asked again
    }
    seed
}

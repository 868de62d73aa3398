//! What the host told the guest at its first instruction.

#![expect(unsafe_code, reason = "boot information is memory that the host filled")]

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering;
use hv_abi::GuestPhys;
use hv_abi::boot::{Blob, BootInfo};
use hv_abi::device::{DeviceEntry, DevicePage};

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
static INFO: AtomicPtr<BootInfo> = AtomicPtr::new(core::ptr::null_mut());
#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
static INFO: crate::fake::Info = crate::fake::Info;

/// Remembers where the boot information is.
///
/// # Safety
///
/// `info` must be what the host gave the entry point, or as good, and stay unchanged.
pub(crate) unsafe fn set(info: *const BootInfo) {
    INFO.store(info.cast_mut(), Ordering::Release);
}

/// The boot information.
///
/// # Panics
///
/// Panics before `entry!` has run: there is no guest then.
pub fn info() -> &'static BootInfo {
    #[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
    crate::fake::ensure();
    let info = INFO.load(Ordering::Acquire);
    assert!(!info.is_null(), "no boot information: was this started by entry! ?");
    // SAFETY: not null, so `set` was called, whose caller vouches for it.
    unsafe { &*info }
}

/// Guest-physical memory in the direct map.
pub(crate) fn at<T>(start: GuestPhys) -> *const T {
    #[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
    return core::ptr::with_exposed_provenance(start.0 as usize);
    #[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
    core::ptr::with_exposed_provenance((info().direct_map + start.0) as usize)
}

/// The bytes of a blob that the host filled.
fn bytes(blob: Blob) -> &'static [u8] {
    if blob.length == 0 {
        return &[];
    }
    // SAFETY: the host has put `length` bytes there before the first instruction; the memory map keeps them out of
    // `USABLE`, and frames are made of only that.
    unsafe { core::slice::from_raw_parts(at(blob.start), blob.length as usize) }
}

/// The guest's arguments: the words behind the image, or behind `--`.
pub fn arguments() -> impl Iterator<Item = &'static str> {
    let line = core::str::from_utf8(bytes(info().command_line)).unwrap_or("");
    line.split('\0').filter(|_| info().command_line.length > 0)
}

/// The ramdisk; empty if there is none.
pub fn ramdisk() -> &'static [u8] {
    bytes(info().ramdisk)
}

/// The devices; none without the feature `DEVICES`.
pub fn devices() -> &'static [DeviceEntry] {
    let table = info().devices;
    if table.length == 0 {
        return &[];
    }
    // SAFETY: the host has put `length` entries there before the first instruction, and changes none; the memory map keeps them
    // out of `USABLE`, and frames are made of only that.
    unsafe { core::slice::from_raw_parts(at(table.start), table.length as usize) }
}

/// What the host shows of a device.
pub fn device_page(entry: &DeviceEntry) -> &'static DevicePage {
    // SAFETY: the host has put the page there, outside of `USABLE`. All that it changes in it is atomic, or not looked at.
    unsafe { &*at(entry.page) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use hv_abi::Features;
    use std::vec::Vec;

    #[test]
    fn arguments_are_what_was_given() {
        for given in [&[][..], &["one"], &["one", "two words", "--three=3"], &["", "é", ""]] {
            fake::set_arguments(given);
            assert_eq!(arguments().collect::<Vec<_>>(), given);
        }
    }

    #[test]
    fn one_empty_argument_looks_like_none() {
        fake::set_arguments(&[""]);
        assert_eq!(arguments().count(), 0);
    }

    #[test]
    fn the_ramdisk_is_what_was_given() {
        assert_eq!(ramdisk(), b"");
        let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
        fake::set_ramdisk(&bytes);
        assert_eq!(ramdisk(), bytes);
        assert_eq!(info().ramdisk.start.0 % hv_abi::PAGE_SIZE, 0);
    }

    #[test]
    fn boot_information_says_what_the_calls_say() {
        assert_eq!(info().magic, hv_abi::boot::MAGIC);
        assert_eq!(info().abi_version, crate::hypercall::version());
        assert_eq!(info().features, crate::hypercall::features());
        fake::set_features(Features::MULTICALL);
        assert_eq!(info().features, Features::MULTICALL);
        assert_eq!(crate::hypercall::features(), Features::MULTICALL);
    }
}

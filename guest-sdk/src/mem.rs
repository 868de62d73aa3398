//! Memory functions of a guest: `memcpy`, `memmove`, `memset`, `memcmp`, `bcmp` and `strlen`, written in assembly.
//!
//! The compiler calls these by name wherever a value moves, so they set the speed of a guest that copies. Their
//! names here begin with `hv_`, because a test binary on the host has a libc; the linker script of a guest image
//! gives them their usual names.
//!
//! # One guest image, three processors
//!
//! A guest is compiled for baseline x86-64, which has vectors of 16 bytes. [`init`] raises `LEVEL` to what the
//! processor has; sizes that 16-byte vectors serve well never look at it. Every combination of the three variables
//! below is right at any time, on any processor that has the instructions of the level: they choose how, not what.
//! So nothing breaks before [`init`], or when it runs while another vCPU copies.
//!
//! Start at the header of `mem.s`: which size takes which way.
#![expect(unsafe_code, reason = "declares and calls functions written in assembly")]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use hv_abi::CpuFeatures;

/// Size of vectors: 0 for 16 bytes (SSE2), 1 for 32 bytes (AVX2), 2 for 64 bytes (AVX-512).
static LEVEL: AtomicU8 = AtomicU8::new(0);
/// Smallest size to copy by `rep movsb`.
static MOVS_FROM: AtomicUsize = AtomicUsize::new(usize::MAX);
/// Smallest size to set by `rep stosb`.
static STOS_FROM: AtomicUsize = AtomicUsize::new(usize::MAX);

global_asm!(
    include_str!("mem.s"),
    include_str!("mem_compare.s"),
    level = sym LEVEL,
    movs_from = sym MOVS_FROM,
    stos_from = sym STOS_FROM,
);

unsafe extern "C" {
    /// Copies `size` bytes; returns `to`. Operands that overlap are allowed: this is [`hv_memmove`].
    ///
    /// # Safety
    ///
    /// `from` is valid for reads and `to` for writes of `size` bytes.
    pub fn hv_memcpy(to: *mut u8, from: *const u8, size: usize) -> *mut u8;

    /// Copies `size` bytes as if through a buffer; returns `to`.
    ///
    /// # Safety
    ///
    /// `from` is valid for reads and `to` for writes of `size` bytes.
    pub fn hv_memmove(to: *mut u8, from: *const u8, size: usize) -> *mut u8;

    /// Sets `size` bytes to the low byte of `byte`; returns `to`.
    ///
    /// # Safety
    ///
    /// `to` is valid for writes of `size` bytes.
    pub fn hv_memset(to: *mut u8, byte: i32, size: usize) -> *mut u8;

    /// Orders two strings of `size` bytes: the sign of the first difference, or 0.
    ///
    /// # Safety
    ///
    /// Both are valid for reads of `size` bytes.
    pub fn hv_memcmp(left: *const u8, right: *const u8, size: usize) -> i32;

    /// Whether two strings of `size` bytes differ; 0 if they do not. This is [`hv_memcmp`].
    ///
    /// # Safety
    ///
    /// Both are valid for reads of `size` bytes.
    pub fn hv_bcmp(left: *const u8, right: *const u8, size: usize) -> i32;

    /// Counts the bytes before the first zero.
    ///
    /// # Safety
    ///
    /// `string` is valid for reads up to a zero byte and including it.
    pub fn hv_strlen(string: *const u8) -> usize;
}

/// Chooses the variants for a processor that has `features`. Until then, those that every processor has are used.
///
/// `features` must be true: a feature that is missing shows as an invalid-opcode fault at the next long copy.
pub fn init(features: CpuFeatures) {
    let level = if features.contains(CpuFeatures::AVX2 | CpuFeatures::AVX512) {
        2
    } else if features.contains(CpuFeatures::AVX2) {
        1
    } else {
        0
    };
    // Measured on Zen 5: `rep` beats short vectors soon, long vectors only where the data leaves the first-level
    // cache (copy) or the second (set).
    let (movs_from, stos_from) = match (features.contains(CpuFeatures::ERMS), level) {
        (false, _) => (usize::MAX, usize::MAX),
        (true, 0) => (4 << 10, 2 << 10),
        (true, _) => (24 << 10, 512 << 10),
    };
    MOVS_FROM.store(movs_from, Relaxed);
    STOS_FROM.store(stos_from, Relaxed);
    LEVEL.store(level, Relaxed);
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cmp::Ordering;
    use std::sync::{Mutex, PoisonError};
    use std::vec::Vec;
    use std::{ptr, slice, vec};

    use super::*;

    /// Sizes around which something changes, beyond those that are all tested.
    const LARGE: [usize; 10] =
        [1 << 10, 2 << 10, 3000, 4 << 10, 8 << 10, 24 << 10, 32 << 10, 48 << 10, 65537, 512 << 10];
    /// Distances from an aligned address.
    const OFFSETS: [usize; 14] = [0, 1, 7, 8, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65];

    /// Runs `test` with each variant that this processor has. One test at a time, as the choice is global.
    fn for_each_variant(test: impl Fn()) {
        static TURN: Mutex<()> = Mutex::new(());
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let avx2 = CpuFeatures::AVX | CpuFeatures::AVX2;
        let avx512 = avx2 | CpuFeatures::AVX512;
        let rep = CpuFeatures::ERMS | CpuFeatures::FSRM;
        for vectors in [CpuFeatures::empty(), avx2, avx512] {
            let present = match vectors {
                v if v == avx2 => std::is_x86_feature_detected!("avx2"),
                v if v == avx512 => std::is_x86_feature_detected!("avx512bw"),
                _ => true,
            };
            if present {
                // `rep` is always there; it is only slow without the feature.
                for features in [vectors, vectors | rep] {
                    init(features);
                    test();
                }
            }
        }
    }

    /// Bytes without a short period and without zeros.
    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8 ^ (i / 251 % 4) as u8 | 4).collect()
    }

    fn sizes() -> impl Iterator<Item = usize> {
        (0..=600).chain(LARGE.into_iter().flat_map(|n| n - 1..=n + 1))
    }

    /// Moves inside `memory` by `hv_memmove` or `hv_memcpy`.
    fn move_within(memory: &mut [u8], to: usize, from: usize, size: usize) {
        assert!(to.max(from) + size <= memory.len());
        let base = memory.as_mut_ptr();
        // SAFETY: both functions need `size` bytes valid for reads at `from` and for writes at `to`, overlapping or
        // not: the assertion puts them into `memory`, which is borrowed for writing.
        unsafe {
            let f = if size.is_multiple_of(2) { hv_memmove } else { hv_memcpy };
            assert_eq!(f(base.add(to), base.add(from), size), base.add(to));
        }
    }

    fn set(memory: &mut [u8], byte: i32) {
        let to = memory.as_mut_ptr();
        // SAFETY: needs `memory.len()` bytes valid for writes, which a borrowed slice is.
        let returned = unsafe { hv_memset(to, byte, memory.len()) };
        assert_eq!(returned, to);
    }

    fn compare(left: &[u8], right: &[u8]) -> Ordering {
        assert_eq!(left.len(), right.len());
        // SAFETY: both functions need `left.len()` readable bytes at both addresses: slices of that length.
        let (order, differ) = unsafe {
            let (left, right, size) = (left.as_ptr(), right.as_ptr(), left.len());
            (hv_memcmp(left, right, size), hv_bcmp(left, right, size))
        };
        assert_eq!(order == 0, differ == 0);
        order.cmp(&0)
    }

    fn length(string: &[u8]) -> usize {
        assert!(string.contains(&0));
        // SAFETY: needs readable bytes up to a zero: the slice contains one.
        unsafe { hv_strlen(string.as_ptr()) }
    }

    #[test]
    fn copy_copies_and_touches_nothing_else() {
        for_each_variant(|| {
            for size in sizes() {
                let before = pattern(2 * size + 512);
                for (i, offset) in OFFSETS.into_iter().enumerate() {
                    let to = size + 300 + offset;
                    for from in [64, 64 + (5 * i + size) % 66] {
                        let mut memory = before.clone();
                        let mut expected = before.clone();
                        expected[to..to + size].copy_from_slice(&before[from..from + size]);

                        move_within(&mut memory, to, from, size);

                        assert!(memory == expected, "size {size}, from {from}, to {to}");
                    }
                }
            }
        });
    }

    #[test]
    fn move_allows_every_overlap() {
        let check = |size: usize, distance: isize, at: usize| {
            let (from, room) = (at + distance.unsigned_abs(), size + 2 * distance.unsigned_abs() + 200);
            let to = from.checked_add_signed(distance).unwrap();
            let before = pattern(room);
            let mut memory = before.clone();
            let mut expected = before.clone();
            expected[to..to + size].copy_from_slice(&before[from..from + size]);

            move_within(&mut memory, to, from, size);

            assert!(memory == expected, "size {size}, distance {distance}, at {at}");
        };
        for_each_variant(|| {
            for size in (0..=140).chain([191, 255, 256, 257, 319, 320, 321, 511, 512, 513, 600, 1000]) {
                (-140..=140).chain([-500, 500]).for_each(|distance| check(size, distance, size % 67));
            }
            for size in LARGE {
                let near = [1, 13, 31, 64, 65, 4096, (24 << 10) - 1, 24 << 10, size as isize - 1];
                near.into_iter().flat_map(|d| [d, -d]).for_each(|distance| check(size, distance, 5));
            }
        });
    }

    #[test]
    fn set_sets_and_touches_nothing_else() {
        for_each_variant(|| {
            for size in sizes() {
                let before = pattern(size + 256);
                for offset in OFFSETS {
                    let byte = (size + offset) as u8;
                    let mut memory = before.clone();
                    let mut expected = before.clone();
                    expected[offset..offset + size].iter_mut().for_each(|b| *b = byte);

                    set(&mut memory[offset..offset + size], i32::from(byte) | 0x5a00);

                    assert!(memory == expected, "size {size}, offset {offset}");
                }
            }
        });
    }

    #[test]
    fn compare_finds_the_first_difference_and_nothing_outside() {
        for_each_variant(|| {
            for size in sizes() {
                for (i, offset) in OFFSETS.into_iter().enumerate() {
                    let at = (11 * i + size) % 66;
                    let mut left = vec![1; size + 200];
                    let mut right = vec![2; size + 200]; // differs wherever the operands are not
                    let (left, right) = (&mut left[offset..offset + size], &mut right[at..at + size]);
                    left.copy_from_slice(&pattern(size));
                    right.copy_from_slice(left);
                    assert_eq!(compare(left, right), Ordering::Equal, "size {size}");

                    let step = if size > 600 { size / 3 } else { 1 + size / 17 };
                    for first in (i % step..size).step_by(step).chain(size.checked_sub(1)) {
                        let (l, r) = [(0, 1), (0x7f, 0x80), (0xff, 0)][first % 3];
                        let later = first + (size - first) / 2;
                        let kept = (left[first], right[first], right[later]);
                        (right[later], left[first], right[first]) = (if l < r { 0 } else { 0xff }, l, r);

                        assert_eq!(compare(left, right), l.cmp(&r), "size {size}, first {first}");
                        assert_eq!(compare(right, left), r.cmp(&l), "size {size}, first {first}");

                        right[later] = kept.2;
                        (left[first], right[first]) = (kept.0, kept.1);
                    }
                }
            }
        });
    }

    #[test]
    fn length_ignores_zeros_before_and_behind() {
        for_each_variant(|| {
            for size in sizes() {
                let mut memory = vec![0; size + 300];
                for offset in OFFSETS {
                    memory.fill(0);
                    memory[offset..offset + size].copy_from_slice(&pattern(size));
                    assert_eq!(length(&memory[offset..]), size, "offset {offset}");
                    memory[offset + size + 1..].fill(0x80);
                    assert_eq!(length(&memory[offset..]), size, "offset {offset}");
                }
            }
        });
    }

    /// Operands that begin or end at a page without access. What these functions may not touch, they cannot.
    #[test]
    fn nothing_outside_the_operands_is_touched() {
        const PAGE: usize = 4096;
        unsafe extern "C" {
            fn mmap(at: *mut u8, size: usize, access: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
            fn mprotect(at: *mut u8, size: usize, access: i32) -> i32;
        }
        // One accessible page between two that are not; stays until the process ends.
        let page = || {
            // SAFETY: a new private anonymous mapping (0x22) at an address that the kernel chooses replaces nothing;
            // `mprotect` (1 | 2: read and write) gets its second page.
            unsafe {
                let at = mmap(ptr::null_mut(), 3 * PAGE, 0, 0x22, -1, 0);
                assert_eq!(mprotect(at.add(PAGE), PAGE, 1 | 2), 0);
                slice::from_raw_parts_mut(at.add(PAGE), PAGE)
            }
        };
        let (left, right) = (Mutex::new(page()), Mutex::new(page()));
        for_each_variant(|| {
            let (mut left, mut right) = (left.lock().unwrap(), right.lock().unwrap());
            for size in (0..=600).chain([1000, 2047, 2048, 4000, PAGE - 1, PAGE]) {
                for (l, r) in [(0, 0), (PAGE - size, PAGE - size), (0, PAGE - size), (PAGE - size, 0)] {
                    let (left, right) = (&mut left[l..l + size], &mut right[r..r + size]);
                    set(left, 7);
                    // SAFETY: as in `move_within`; two slices of `size` bytes, and they are not the same page.
                    unsafe { hv_memcpy(right.as_mut_ptr(), left.as_ptr(), size) };
                    assert_eq!(compare(left, right), Ordering::Equal);
                    if let Some(last) = left.last_mut() {
                        *last = 0;
                        assert_eq!(length(left), size - 1);
                    }
                }
            }
        });
    }
}

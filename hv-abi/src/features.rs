//! What a host offers and what a processor may be used for, bit by bit.

use bitflags::{bitflags, parser};
use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Parts of the ABI that a host serves or an image asks for. Bits that this crate does not name are kept.
#[derive(Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Features(u64);
const _: () = assert!(size_of::<Features>() == 8);

bitflags! {
    impl Features: u64 {
        /// Event channels, upcalls and the per-vCPU timer.
        const EVENTS = 1 << 0;
        /// Several hypercalls in one crossing.
        const MULTICALL = 1 << 1;
        /// Page tables by hypercall and guest user mode.
        const MMU = 1 << 2;
        /// Accessed and dirty bits in page-table entries mean something. Not yet served.
        const MMU_AD = 1 << 3;
        /// More than one vCPU.
        const SMP = 1 << 4;
        /// Free-page reporting and the balloon.
        const PAGE_REPORTING = 1 << 5;
        /// virtio devices over the hypercall transport.
        const DEVICES = 1 << 6;
        /// Packed rings. Reserved: no host offers it.
        const PACKED_RINGS = 1 << 7;
        /// Reading from the console.
        const CONSOLE_INPUT = 1 << 8;
        /// Records of the guest's own in a trace of its VM.
        const TRACE = 1 << 9;
        const _ = !0;
    }
}

/// Instructions a guest may use beyond baseline x86-64, as the host found them. A guest must not run `CPUID` to
/// find out: what it would see is the machine, not what the VM may rely on after a migration.
#[derive(Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct CpuFeatures(u64);
const _: () = assert!(size_of::<CpuFeatures>() == 8);

bitflags! {
    impl CpuFeatures: u64 {
        /// SSE3.
        const SSE3 = 1 << 0;
        /// SSSE3.
        const SSSE3 = 1 << 1;
        /// SSE4.1.
        const SSE4_1 = 1 << 2;
        /// SSE4.2.
        const SSE4_2 = 1 << 3;
        /// `POPCNT`.
        const POPCNT = 1 << 4;
        /// `AES*` instructions.
        const AES = 1 << 5;
        /// `PCLMULQDQ`.
        const PCLMULQDQ = 1 << 6;
        /// AVX, with its state enabled.
        const AVX = 1 << 7;
        /// AVX2.
        const AVX2 = 1 << 8;
        /// AVX-512 F, BW, DQ, VL, CD, with their state enabled.
        const AVX512 = 1 << 9;
        /// BMI1 and BMI2.
        const BMI = 1 << 10;
        /// `REP MOVSB` is fast for long copies (ERMS).
        const ERMS = 1 << 11;
        /// `REP MOVSB` is fast for short copies, too (FSRM).
        const FSRM = 1 << 12;
        /// `XSAVE` and `XRSTOR`.
        const XSAVE = 1 << 13;
        /// `XSAVEC`.
        const XSAVEC = 1 << 14;
        /// `RDRAND`.
        const RDRAND = 1 << 15;
        /// `RDSEED`.
        const RDSEED = 1 << 16;
        /// `RDFSBASE` and its kin.
        const FSGSBASE = 1 << 17;
        /// FMA3.
        const FMA = 1 << 18;
        /// `MOVBE`.
        const MOVBE = 1 << 19;
        const _ = !0;
    }
}

/// By names; bits without one as a number.
impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        parser::to_writer(self, f)
    }
}

/// By names; bits without one as a number.
impl fmt::Debug for CpuFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        parser::to_writer(self, f)
    }
}

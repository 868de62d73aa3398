//! What the processor offers a guest, found once, so that guests need not (and must not) run `CPUID`.

use hv_abi::CpuFeatures;
use std::arch::is_x86_feature_detected as has;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::sync::LazyLock;

/// What [`features`] and [`xstate`] found. `CPUID` traps in a virtual machine, so it is asked once.
static FOUND: LazyLock<(CpuFeatures, (u64, u64))> = LazyLock::new(|| (find_features(), find_xstate()));

/// Instructions that a guest may use.
pub(crate) fn features() -> CpuFeatures {
    FOUND.0
}

/// Bytes of an XSAVE area with all components that are enabled, and which they are.
pub(crate) fn xstate() -> (u64, u64) {
    FOUND.1
}

fn find_features() -> CpuFeatures {
    let leaf_7 = __cpuid_count(7, 0);
    let avx512 =
        has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("avx512cd");
    [
        (CpuFeatures::SSE3, has!("sse3")),
        (CpuFeatures::SSSE3, has!("ssse3")),
        (CpuFeatures::SSE4_1, has!("sse4.1")),
        (CpuFeatures::SSE4_2, has!("sse4.2")),
        (CpuFeatures::POPCNT, has!("popcnt")),
        (CpuFeatures::AES, has!("aes")),
        (CpuFeatures::PCLMULQDQ, has!("pclmulqdq")),
        (CpuFeatures::AVX, has!("avx")),
        (CpuFeatures::AVX2, has!("avx2")),
        (CpuFeatures::AVX512, avx512),
        (CpuFeatures::BMI, has!("bmi1") && has!("bmi2")),
        (CpuFeatures::ERMS, leaf_7.ebx & 1 << 9 != 0),
        (CpuFeatures::FSRM, leaf_7.edx & 1 << 4 != 0),
        (CpuFeatures::XSAVE, has!("xsave")),
        (CpuFeatures::XSAVEC, has!("xsavec")),
        (CpuFeatures::RDRAND, has!("rdrand")),
        (CpuFeatures::RDSEED, has!("rdseed")),
        (CpuFeatures::FSGSBASE, fsgsbase()),
        (CpuFeatures::FMA, has!("fma")),
        (CpuFeatures::MOVBE, has!("movbe")),
    ]
    .into_iter()
    .filter_map(|(feature, there)| there.then_some(feature))
    .collect()
}

/// Whether the kernel lets user programs read and write FS and GS base: AT_HWCAP2, bit 1.
pub(crate) fn fsgsbase() -> bool {
    rustix::param::linux_hwcap().1 & 2 != 0
}

#[expect(unsafe_code, reason = "the XGETBV intrinsic")]
fn find_xstate() -> (u64, u64) {
    if !has!("xsave") {
        return (512, 3); // the legacy area: x87 and SSE
    }
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: `_xgetbv(0)` needs OSXSAVE, which "xsave" being detected includes.
        unsafe { _xgetbv(0) }
    }
    let size = __cpuid_count(0xd, 0).ebx;
    // SAFETY: the function needs the feature "xsave", which has just been detected.
    (size.into(), unsafe { xcr0() })
}

//! Instructions that boot information says the guest may use.

#![expect(unsafe_code, reason = "executing them")]

use core::arch::asm;
use guest_sdk::boot::info;
use guest_sdk::hv_abi::CpuFeatures;

/// Runs instructions that change nothing but the registers that are declared lost.
macro_rules! try_out {
    ($($instruction:literal),+) => {
        // SAFETY: the instructions are computations on registers that are declared lost, or loads and stores of memory
        // that is handed to them, and the host has said that they may be used.
        unsafe {
            let mut memory = Area([0; 8192]);
            asm!($($instruction),+,
                in("rdi") &raw mut memory, inout("rax") 0_u64 => _, inout("rcx") 0_u64 => _, inout("rdx") 0_u64 => _,
                inout("rsi") &raw mut memory => _,
                out("xmm0") _, out("xmm1") _, out("k1") _,
            );
        }
    };
}

/// Room for an `XSAVE` area.
#[repr(align(64))]
struct Area(#[expect(dead_code, reason = "instructions write it")] [u8; 8192]);

guest_sdk::tests! {
    "BOOT-014" fn every_instruction_that_is_offered_runs() {
        assert!(info().xstate_size <= 8192, "{} bytes of extended state; make Area larger", info().xstate_size);
        for feature in info().cpu_features.iter() {
            match feature {
                CpuFeatures::SSE3 => try_out!("addsubps xmm0, xmm1", "lddqu xmm0, [rdi]"),
                CpuFeatures::SSSE3 => try_out!("pabsb xmm0, xmm1", "pshufb xmm0, xmm1"),
                CpuFeatures::SSE4_1 => try_out!("pmulld xmm0, xmm1", "ptest xmm0, xmm1"),
                CpuFeatures::SSE4_2 => try_out!("pcmpgtq xmm0, xmm1", "crc32 eax, ecx"),
                CpuFeatures::POPCNT => try_out!("popcnt rax, rcx"),
                CpuFeatures::AES => try_out!("aesenc xmm0, xmm1", "aeskeygenassist xmm0, xmm1, 1"),
                CpuFeatures::PCLMULQDQ => try_out!("pclmulqdq xmm0, xmm1, 0"),
                CpuFeatures::AVX => try_out!("vaddps ymm0, ymm0, ymm1", "vzeroupper"),
                CpuFeatures::AVX2 => try_out!("vpaddb ymm0, ymm0, ymm1", "vzeroupper"),
                CpuFeatures::AVX512 => try_out!(
                    "vpaddd zmm0, zmm0, zmm1",      // F
                    "vpaddb zmm0, zmm0, zmm1",      // BW
                    "vpmullq zmm0, zmm0, zmm1",     // DQ
                    "vpconflictd zmm0, zmm1",       // CD
                    "vpternlogd xmm0, xmm0, xmm1, 1", // VL
                    "kxnorw k1, k1, k1",
                    "vzeroupper"
                ),
                CpuFeatures::BMI => try_out!("andn rax, rcx, rdx", "bzhi rax, rcx, rdx", "tzcnt rax, rcx"),
                CpuFeatures::ERMS | CpuFeatures::FSRM => try_out!("mov ecx, 64", "rep movsb"),
                CpuFeatures::XSAVE => try_out!("mov eax, 3", "xor edx, edx", "xsave64 [rdi]", "xrstor64 [rdi]"),
                CpuFeatures::XSAVEC => try_out!("mov eax, 3", "xor edx, edx", "xsavec64 [rdi]", "xrstor64 [rdi]"),
                CpuFeatures::RDRAND => try_out!("rdrand rax"),
                CpuFeatures::RDSEED => try_out!("rdseed rax"),
                CpuFeatures::FSGSBASE => try_out!("rdfsbase rax", "wrfsbase rax", "rdgsbase rcx"),
                CpuFeatures::FMA => try_out!("vfmadd231ps ymm0, ymm0, ymm1", "vzeroupper"),
                CpuFeatures::MOVBE => try_out!("movbe rax, [rdi]"),
                other => panic!("{other:?} is no feature that this version names"),
            }
        }
    }
}

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| hv_core::fuzzing::ring(input));

//! `XSAVE` areas in standard format, as the processor will take them (Intel SDM, volume 1, 13.4).

/// Word of MXCSR and its mask, in the legacy region.
const MXCSR: usize = 3;
/// First word of the header: `XSTATE_BV`, then `XCOMP_BV`, then six that are zero.
const HEADER: usize = 64;
/// Words of the legacy region and the header, which is all that [`is_valid`] looks at.
pub(crate) const HEAD: usize = HEADER + 8;
/// Bits of MXCSR that are not reserved on any processor of today.
pub(crate) const MXCSR_MASK: u32 = 0xffff;

/// Whether the processor takes it: no component outside `mask`, standard format, no reserved bit.
pub(crate) fn is_valid(words: &[u64], mask: u64) -> bool {
    words[HEADER] & !mask == 0
        && words[HEADER + 1..HEADER + 8].iter().all(|word| *word == 0)
        && words[MXCSR] as u32 & !MXCSR_MASK == 0
}

/// Takes out whatever would make `XRSTOR` fault.
pub(super) fn make_valid(words: &mut [u64], mask: u64) {
    words[HEADER] &= mask;
    words[HEADER + 1..HEADER + 8].fill(0);
    words[MXCSR] &= !0xffff_ffff | u64::from(MXCSR_MASK);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_was_wrong_is_valid_afterwards() {
        let good = vec![0_u64; 104];
        assert!(is_valid(&good, 7));
        for (word, value) in [(HEADER, 8), (HEADER + 1, 1 << 63), (HEADER + 5, 1), (MXCSR, 1 << 16)] {
            let mut bad = good.clone();
            bad[word] = value;
            assert!(!is_valid(&bad, 7), "word {word}");
            make_valid(&mut bad, 7);
            assert!(is_valid(&bad, 7), "word {word}");
        }
        let mut mask = good;
        mask[MXCSR] = 0xffff_0000_0000_1f80;
        assert!(is_valid(&mask, 7), "the upper half is the mask, which is not loaded");
    }
}

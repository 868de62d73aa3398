//! What the fuzz targets do: plain functions of bytes that panic when a promise is broken. Not a part of the API.
//!
//! Each function covers one piece of the monitor that reads what a guest, or a stranger, wrote. `fuzz/` hands them to
//! a fuzzer for as long as one likes; the tests below run them briefly on every `cargo test`, with the inputs under
//! `fuzz/corpus/` and with variations of those.
//!
//! Start at [`calls`]; `model` says what it expects.

mod boot;
mod calls;
mod image;
mod machine;
mod model;
mod multicall;

pub use boot::boot;
pub use calls::calls;
pub use image::image;
pub use multicall::multicall;

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Cases of each target beside its corpus.
    const VARIATIONS: u64 = 1000;
    /// The largest input: one that is read to its end takes a few milliseconds.
    const LONGEST: usize = 1024;

    /// A generator of numbers that only need to look random (SplitMix64).
    struct Numbers(u64);

    impl Numbers {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        }

        fn below(&mut self, bound: usize) -> usize {
            (self.next() % bound.max(1) as u64) as usize
        }

        /// A variation of an input: a few bytes changed, put in, left out, or repeated.
        fn vary(&mut self, input: &[u8]) -> Vec<u8> {
            let mut bytes = input.to_vec();
            for _ in 0..=self.below(6) {
                let at = self.below(bytes.len() + 1);
                let length = self.below(16).min(bytes.len() - at);
                match self.below(5) {
                    0 => bytes.insert(at, self.next() as u8),
                    1 => drop(bytes.drain(at..at + length)),
                    2 => bytes.extend_from_within(at..at + length),
                    3 if at < bytes.len() => {
                        bytes[at] = *[0, 1, 0x7f, 0x80, 0xff].get(self.below(5)).unwrap()
                    }
                    _ if at < bytes.len() => bytes[at] = self.next() as u8,
                    _ => {}
                }
            }
            bytes.truncate(LONGEST);
            bytes
        }
    }

    /// Writes an input down if it makes a target panic.
    struct Tell<'a>(&'a str, &'a [u8]);

    impl Drop for Tell<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let Self(target, input) = self;
                let file = std::env::temp_dir().join(format!("hv-fuzz-{target}-{}", std::process::id()));
                let written = std::fs::write(&file, input);
                eprintln!(
                    "the input is in {} ({written:?}); put it into fuzz/corpus/{target}/",
                    file.display()
                );
            }
        }
    }

    fn replay(target: &str, function: fn(&[u8])) {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
        let entries = std::fs::read_dir(directory).expect("each target has a corpus");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        let corpus: Vec<_> = paths.iter().map(|path| std::fs::read(path).expect("a file")).collect();
        assert!(!corpus.is_empty(), "the corpus of {target} is empty");
        let run = |input: &[u8]| {
            let _tell = Tell(target, input);
            function(input);
        };
        corpus.iter().for_each(|input| run(input));
        let mut numbers = Numbers(1);
        for _ in 0..VARIATIONS {
            let base = numbers.below(corpus.len());
            run(&numbers.vary(&corpus[base]));
        }
    }

    #[test]
    fn image() {
        replay("image", super::image);
    }

    #[test]
    fn boot() {
        replay("boot", super::boot);
    }

    #[test]
    fn calls() {
        replay("calls", super::calls);
    }

    #[test]
    fn multicall() {
        replay("multicall", super::multicall);
    }
}

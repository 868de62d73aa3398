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
mod model_mmu;
mod model_pages;
mod multicall;
mod ring;
mod symbols;

pub use boot::boot;
pub use calls::calls;
pub use image::image;
pub use multicall::multicall;
pub use ring::ring;
pub use symbols::symbols;

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use std::path::Path;

    /// Cases of each target beside its corpus.
    const VARIATIONS: u64 = 1000;
    /// The largest input: one that is read to its end takes a few milliseconds.
    const LONGEST: usize = 4096;

    /// A variation of an input: a few bytes changed, put in, left out, or repeated.
    fn vary(random: &mut Rng, input: &[u8]) -> Vec<u8> {
        let mut bytes = input.to_vec();
        for _ in 0..=random.usize(..6) {
            let at = random.usize(..=bytes.len());
            let length = random.usize(..16).min(bytes.len() - at);
            match random.usize(..5) {
                0 => bytes.insert(at, random.u8(..)),
                1 => drop(bytes.drain(at..at + length)),
                2 => bytes.extend_from_within(at..at + length),
                3 if at < bytes.len() => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.usize(..5)],
                _ if at < bytes.len() => bytes[at] = random.u8(..),
                _ => {}
            }
        }
        bytes.truncate(LONGEST);
        bytes
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
        let mut random = Rng::with_seed(1);
        for _ in 0..VARIATIONS {
            let base = random.usize(..corpus.len());
            run(&vary(&mut random, &corpus[base]));
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

    #[test]
    fn ring() {
        replay("ring", super::ring);
    }

    #[test]
    fn symbols() {
        replay("symbols", super::symbols);
    }
}

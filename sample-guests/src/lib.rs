//! The sample guests, as images.
//!
//! Each directory under `guests/` is a guest: a crate that shows one thing. Building this crate builds them all,
//! with the stable toolchain that builds everything else.

#![forbid(unsafe_code)]

/// A guest image that is built in.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Its name: that of its directory.
    pub name: &'static str,
    /// What it shows: the first line of its source.
    pub about: &'static str,
    /// The ELF file.
    pub image: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// The sample guest of that name.
pub fn find(name: &str) -> Option<Sample> {
    IMAGES.iter().find(|sample| sample.name == name).copied()
}

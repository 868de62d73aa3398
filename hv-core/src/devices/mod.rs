//! The devices of a VM.

pub mod fs;

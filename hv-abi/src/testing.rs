//! The list of tests that a test image carries, so that a runner finds them in the image itself.
//!
//! A test image has a section [`SECTION`] that is an array of [`TestEntry`]. The runner boots a fresh VM for each,
//! with the entry's index, in decimal, as the only argument. Shutdown with code 0 is a pass, a panic a failure
//! with message and place, anything else a fault.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Name of the section.
pub const SECTION: &str = ".hv_tests";

/// One test. Addresses are guest-virtual, in the image's own segments; texts are UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TestEntry {
    /// Address of the test's name.
    pub name: u64,
    /// Its bytes.
    pub name_length: u64,
    /// Address of the ids of the clauses that it tests, separated by spaces.
    pub clauses: u64,
    /// Their bytes.
    pub clauses_length: u64,
    /// Address of the test's function; for the image alone.
    pub function: u64,
}
const _: () = assert!(size_of::<TestEntry>() == 40 && core::mem::offset_of!(TestEntry, function) == 32);

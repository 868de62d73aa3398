//! Tests that run inside a guest, on a real hypervisor.
//!
//! A test image lists its tests in itself, and a runner (`hv test IMAGE`) boots a fresh VM for each. A test fails by
//! panicking, so `assert_eq!` and its kin tell the runner message and place. `hv new --with-tests` writes a crate whose
//! `cargo test` does all that.
//!
//! ```ignore
//! #![no_std]
//! #![no_main]
//!
//! guest_sdk::entry!(guest_sdk::testing::main);
//!
//! guest_sdk::tests! {
//!     fn memory_is_had() {
//!         assert!(guest_sdk::boot::info().memory_size > 1 << 20);
//!     }
//!
//!     "VERSION-001" fn version_is_one() {
//!         assert_eq!(guest_sdk::hypercall::version(), 1);
//!     }
//! }
//! ```

#![expect(unsafe_code, reason = "the list of tests is between two symbols of the linker script")]

use hv_abi::testing::TestEntry;

/// A [`TestEntry`] as the image holds it: with pointers, which the linker fills in.
#[repr(C)]
pub struct Entry {
    name: *const u8,
    name_length: usize,
    clauses: *const u8,
    clauses_length: usize,
    function: fn(),
}
const _: () = assert!(size_of::<Entry>() == size_of::<TestEntry>());
const _: () = assert!(core::mem::offset_of!(Entry, function) == core::mem::offset_of!(TestEntry, function));

// SAFETY: the pointers are to constants, which any thread may read.
unsafe impl Sync for Entry {}

impl Entry {
    /// What `tests!` puts into the image.
    #[doc(hidden)]
    pub const fn new(name: &'static str, clauses: &'static str, function: fn()) -> Self {
        Self {
            name: name.as_ptr(),
            name_length: name.len(),
            clauses: clauses.as_ptr(),
            clauses_length: clauses.len(),
            function,
        }
    }
}

/// Declares tests: functions, each with the ids of the clauses that it is about before it, if it is about any.
#[macro_export]
macro_rules! tests {
    ($($(#[$attribute:meta])* $($clauses:literal)? fn $name:ident() $body:block)+) => {
        $(
            $(#[$attribute])*
            fn $name() $body

            const _: () = {
                #[used]
                #[unsafe(link_section = ".hv_tests")]
                static ENTRY: $crate::testing::Entry =
                    $crate::testing::Entry::new(stringify!($name), concat!($($clauses)?), $name);
            };
        )+
    };
}

#[cfg(not(any(test, all(feature = "fake-host", panic = "unwind"))))]
fn entries() -> &'static [Entry] {
    unsafe extern "C" {
        static __hv_tests_start: u8;
        static __hv_tests_end: u8;
    }
    let (start, end) = (&raw const __hv_tests_start, &raw const __hv_tests_end);
    let count = (end.addr() - start.addr()) / size_of::<Entry>();
    // SAFETY: the linker script puts these symbols around the section that `tests!` puts its entries into, and nothing
    // else goes there.
    unsafe { core::slice::from_raw_parts(start.cast::<Entry>(), count) }
}

#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
fn entries() -> &'static [Entry] {
    &[]
}

/// Runs the test whose index is the first argument; the entry of a test image.
///
/// # Panics
///
/// As the test does, or if there is no such test.
pub fn main() {
    let index = crate::boot::arguments().next().and_then(|index| index.parse::<usize>().ok());
    match index.and_then(|index| entries().get(index)) {
        Some(test) => (test.function)(),
        None => panic!(
            "this image holds {} tests: `hv test` runs them, and `hv run` the one whose index is its argument",
            entries().len()
        ),
    }
}

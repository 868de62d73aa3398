#![doc = include_str!("../README.md")]
#![no_std]

#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
extern crate std;

extern crate alloc;

pub mod area;
pub mod balloon;
pub mod boot;
pub mod console;
pub mod elf;
mod entry;
pub mod events;
#[cfg(any(test, all(feature = "fake-host", panic = "unwind")))]
pub mod fake;
pub mod frames;
pub mod heap;
pub mod hypercall;
#[cfg(test)]
mod lock_model;
pub mod mem;
pub mod memory;
pub mod panic;
pub mod preempt;
pub mod process;
mod raw;
pub mod smp;
pub mod space;
pub mod sync;
pub mod task;
pub mod testing;
pub mod time;
pub mod trace;
mod upcall;
pub mod user;

pub use hv_abi;

/// What `entry!` expands to refers to these; nothing else should.
#[doc(hidden)]
pub mod __private {
    pub use crate::entry::{NOTE_LIKED, start};
    pub use hv_abi::Features;
    pub use hv_abi::note::ElfNote;
}

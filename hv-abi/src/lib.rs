//! The contract between the hypervisor and its guests.
//!
//! This is the only crate that both sides see. It holds numbers, structures and statuses, and no code that
//! acts: no unsafe code, no allocation. `docs/abi.md` is its other half and says what each call does; a test
//! fails when the two disagree.
//!
//! # Rules
//!
//! * A value that crosses the boundary is an open number with names, never a Rust `enum`, `bool` or pointer:
//!   whatever bits the other side writes are data.
//! * Widths are fixed, padding is explicit, and an assertion under each structure pins its layout.
//! * Numbers are never reused. To change the contract, add.
//!
//! Start at [`call`], the table of hypercalls, then [`boot`], [`vcpu`], [`mmu`], [`user`], [`pages`], [`device`] and [`trace`].

#![no_std]
#![forbid(unsafe_code)]

pub mod address;
pub mod boot;
pub mod call;
pub mod clock;
pub mod device;
pub mod features;
pub mod fuse;
pub mod mmu;
pub mod note;
pub mod pages;
pub mod status;
pub mod testing;
pub mod trace;
pub mod user;
pub mod vcpu;

pub use address::GuestPhys;
pub use call::Call;
pub use features::{CpuFeatures, Features};
pub use status::Status;

/// The version of the contract that this crate describes. It is raised only when an existing guest would no
/// longer run; additions are announced by [`Features`] instead.
pub const ABI_VERSION: u32 = 1;

/// Bytes in a page, the unit of mapping: 4096.
pub const PAGE_SIZE: u64 = 4096;

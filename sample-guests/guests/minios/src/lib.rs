//! minios: a small operating system on the guest SDK. Its programs are in `programs/`, what both sides agree on in `abi/`.
//!
//! | module | what it is |
//! |---|---|
//! | [`kernel`] | the processes, whose turn it is, what becomes of one that comes back |
//! | [`calls`] | system calls |
//! | [`process`] | a process |
//! | [`memory`] | its memory: filled in on demand, shared until it is written |
//! | [`program`] | its program: what an ELF file becomes |
//! | [`descriptors`], [`pipe`], [`console`] | what it reads and writes |
//! | [`files`] | the files, in an archive |
//!
//! What is not here because the SDK has it: page tables and frames (`guest_sdk::space`, `frames`), registers and running
//! a program (`user`), time slices (`preempt`). The kernel has no `unsafe` of its own.
//!
//! Start at [`kernel`].

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod calls;
pub mod console;
pub mod descriptors;
pub mod files;
pub mod kernel;
pub mod memory;
pub mod pipe;
pub mod process;
pub mod program;
#[cfg(test)]
mod tests;

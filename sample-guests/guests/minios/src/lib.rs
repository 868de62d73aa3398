//! minios: a small operating system on the guest SDK. Its programs are in `programs/`, what both sides agree on in `abi/`.
//!
//! | module | what it is |
//! |---|---|
//! | [`vcpu`] | what each vCPU does: runs threads, or waits |
//! | [`kernel`] | the processes, and what becomes of a thread that comes back |
//! | [`schedule`] | whose turn it is, and where |
//! | [`calls`], [`file_calls`] | system calls |
//! | [`process`], [`thread`] | a process, and what runs in it |
//! | [`memory`] | its memory: filled in on demand, shared until it is written |
//! | [`program`] | its program: what an ELF file becomes |
//! | [`descriptors`], [`pipe`], [`console`] | what it reads and writes |
//! | [`mounts`], [`file_system`] | which files are where, and what a file system is to the kernel |
//! | [`files`] | the files at the root, in an archive |
//! | [`share`] | a folder of the host's |
//! | [`disk`], [`fat`], [`page_cache`] | disks, and the FAT file systems on them |
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
pub mod disk;
pub mod fat;
pub mod file_calls;
pub mod file_system;
pub mod files;
pub mod kernel;
pub mod memory;
pub mod mounts;
pub mod page_cache;
pub mod pipe;
pub mod process;
pub mod program;
pub mod schedule;
pub mod share;
#[cfg(test)]
mod tests;
pub mod thread;
pub mod vcpu;

//! kv: a store that speaks the Redis protocol, on a block device, without an operating system.
//!
//! | module | what it is |
//! |---|---|
//! | [`resp`], [`reply`] | the protocol: commands in, replies out |
//! | [`store`], [`value`] | the keys and their values, in memory |
//! | [`commands`], [`glob`] | what each command does |
//! | [`journal`], [`disk`] | the log on the block device, which survives being cut off anywhere |
//! | [`database`] | all these together: commands are carried out, written to the log, and only then answered |
//! | [`server`], [`connection`] | clients, over TCP |
//!
//! Nothing here knows of a hypervisor, so all of it is tested on the host.
//!
//! Start at [`server`], or at [`database`].

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod commands;
pub mod connection;
pub mod database;
pub mod disk;
mod glob;
pub mod journal;
pub mod reply;
pub mod resp;
pub mod server;
mod snapshot;
mod store;
#[cfg(test)]
mod testing;
mod value;

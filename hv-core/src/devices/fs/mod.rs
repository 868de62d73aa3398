//! The shared folder: files of the host's that the guest reads and writes, by virtio-fs.
//!
//! | module | what it is |
//! |---|---|
//! | [`folder`] | the folder on the host, and why nothing leads out of it |
//! | [`inodes`], [`handles`] | what the guest knows of, and has open |
//! | [`message`] | requests and replies as bytes |
//! | [`server`] | requests: which there are, and what becomes of each |
//! | [`names`], [`attributes`], [`data`], [`listing`] | what they do |
//!
//! Start at [`server`]. Why this is no library: `docs/decisions/0009-a-file-server-of-its-own.md`.

mod attributes;
mod data;
mod folder;
mod handles;
mod inodes;
mod listing;
mod message;
mod names;
mod server;
#[cfg(test)]
mod tests;

pub use folder::{Access, SharedFolder};

//! Running VMs, and what can be done to them from outside: `hv ps`, `hv pause`, `hv resume`, `hv stop`, `hv balloon`;
//! and what asks them how they are, for `hv stats`, `hv top` and `hv trace`.
//!
//! Each `hv run` listens on a socket of its own in a private directory of its user's: the directory is the list of running
//! VMs, and there is no daemon. `docs/control.md` describes both, for programs of other people's.
//!
//! `directory` is the directory and the names in it, `protocol` what is said over a socket, `server` the end of `hv run`,
//! `stream` its answers without an end, `client` the other end, `roster` asks all VMs, and `commands` is what people type.

mod client;
pub(crate) mod commands;
mod directory;
mod protocol;
mod roster;
mod server;
mod stream;

#[cfg(test)]
pub(crate) use client::NoAnswer;
pub(crate) use client::{Lines, connect};
pub(crate) use directory::{Directory, Entry, Listening, Name, listen, shared_file};
pub(crate) use protocol::{State, Status, Wanted};
pub(crate) use roster::{Roster, Seen};
pub(crate) use server::{Served, Subject, serve};
pub(crate) use stream::{HEARTBEAT, Job, Next, Streams};

//! httpd: a web server, HTTP/1.1, without an operating system.
//!
//! | module | what it is |
//! |---|---|
//! | [`request`] | what a client asks for, out of bytes that may be anything |
//! | [`path`] | which file a target names; never one outside of the folder |
//! | [`range`] | parts of a file |
//! | [`folder`] | what is served: a trait, and an archive in memory |
//! | [`response`] | what a client is answered |
//! | [`server`] | one connection, from its first request to its last |
//!
//! Nothing here knows of a hypervisor, so all of it is tested on the host.
//!
//! Start at [`server::serve`].

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod folder;
pub mod path;
pub mod range;
pub mod request;
pub mod response;
pub mod server;

//! chat: what is typed in one VM appears in the others of its network.
//!
//! Nobody serves: each message is a datagram to all ([`message`]), and each VM keeps a list of who is there ([`room`]). Whoever is
//! killed is missed by nobody.
//!
//! Nothing here knows of a hypervisor, so all of it is tested on the host. Start at [`room::Room`].

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod message;
pub mod room;

//! Networks for VMs, without root: what is at the other end of a network device.
//!
//! A device talks to a stream socket that carries Ethernet [`frames`]. At the other end is a process that has nothing
//! else to do with the VM: the user-mode network ([`user`]), which makes sockets of the host's out of a guest's
//! connections, or a [`switch`] between the VMs of one user. So what a guest sends is taken apart outside of its monitor,
//! by a process that can do less.
//!
//! Nothing here knows of a VM. `docs/networking.md` is about the use of it.

pub mod frames;
pub mod switch;
pub mod user;

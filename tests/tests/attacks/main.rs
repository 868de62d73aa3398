//! Guests that attack: each test sends many hostile VMs (`sample-guests/guests/attack`) and then looks at everybody else.
//!
//! After every attack the VM got a status or was ended with a reason; the monitor, which is this process, did not panic,
//! hang or grow; no process, file or descriptor is left; and a VM beside them computed what it should
//! ([`arena::Arena`], where to start). Seeds are fixed, so a failure can be had again: `hv run attack -- WAY NUMBERS`
//! with what the message says.
//!
//! `HV_ATTACKS=20` in the environment sends twenty times as many.

#[path = "../common/mod.rs"]
mod common;

mod arena;
mod calls;
mod host;
mod host_devices;
mod pages;
mod rings;
mod share;
mod state;
mod stub;
mod tables;
mod user;

//! Paravirtual device drivers for guests.
//!
//! ABI version 1 specifies devices (docs/abi.md, "Devices") and this version of the host does not serve them yet,
//! so there is no driver here yet. A guest finds out by [`devices_served`].

#![no_std]
#![forbid(unsafe_code)]

use hv_abi::Features;

/// Whether a host with these features serves devices.
pub fn devices_served(features: Features) -> bool {
    features.contains(Features::DEVICES)
}

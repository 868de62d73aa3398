//! Devices, of a VM to which something happens meanwhile (`docs/abi.md`, chapter DEVICE).

use super::scenarios;
use crate::Device;

scenarios! {
    "DEVICE-016 RULE-007" fn requests_are_served_once_across_pauses(stand) {
        for pauses in [false, true] {
            let mut machine = stand.machine(&["many-requests"]);
            machine.devices = Device::for_tests();
            machine.pauses = pauses;
            stand.boot(machine).done()?;
        }
        Ok(())
    }
}

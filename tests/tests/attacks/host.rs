//! What the host spends on a guest.

use crate::arena::{Arena, Attack, status};
use crate::common::PATIENCE;
use hv_core::End;
use std::os::unix::fs::MetadataExt;

/// What a VM may cost beyond its memory, in KiB.
const OVERHEAD: u64 = 32 << 10;

#[test]
fn host_memory_for_a_guest_stays_within_its_memory_and_a_fixed_overhead() {
    let arena = Arena::enter();
    let monitor = || status("self", "RssAnon:") + status("self", "VmPTE:");
    let before = monitor();
    let attack = Attack { limit: PATIENCE, ..Attack::new("touch", &[]) };
    let (vm, console) = attack.start();
    console.wait_for("touched");
    let pid = vm.processes()[0];
    let files =
        (3..=6).map(|fd| std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).expect("its files").blocks() / 2);
    let files: u64 = files.sum();
    let memory = vm.memory().size() >> 10;
    let sandbox = status(&pid.to_string(), "RssAnon:") + status(&pid.to_string(), "VmPTE:");
    let spent = files + sandbox + monitor().saturating_sub(before);
    assert!(files > memory * 9 / 10, "the guest touched {files} of {memory} KiB only");
    assert!(spent < memory + OVERHEAD, "{spent} KiB for a VM of {memory} KiB");
    assert_eq!(vm.stop().end, End::Stopped);
    arena.leave();
}

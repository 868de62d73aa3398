//! What the host spends on a guest.

use crate::arena::{Arena, Attack, status};
use crate::common::PATIENCE;
use hv_core::{End, Vm};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

/// What a VM may cost beyond its memory, in KiB.
const OVERHEAD: u64 = 32 << 10;

/// What the monitor has for itself, in KiB.
fn monitor() -> u64 {
    status("self", "RssAnon:") + status("self", "VmPTE:")
}

/// What a VM's sandboxes have beside guest memory, and what there is of guest memory, in KiB. Files are shared: each counts
/// once.
fn sandboxes(vm: &Vm) -> (u64, u64) {
    let (mut files, mut guest, mut own) = (BTreeMap::new(), 0, 0);
    for pid in vm.processes() {
        own += status(&pid.to_string(), "RssAnon:") + status(&pid.to_string(), "VmPTE:");
        for fd in 3..=7 {
            let file = std::fs::metadata(format!("/proc/{pid}/fd/{fd}")).expect("its files");
            match fd {
                3 => guest = file.blocks() / 2,
                _ => drop(files.insert(file.ino(), file.blocks() / 2)),
            }
        }
    }
    (own + files.values().sum::<u64>(), guest)
}

/// Starts an attack, waits until it has done what it can, and compares what that costs beside guest memory with what it may.
/// Gives what there is of guest memory, and what there may be.
fn send(attack: &Attack, said: &str) -> (u64, u64) {
    let arena = Arena::enter();
    let before = monitor();
    let (vm, console) = attack.start();
    console.wait_for(said);
    let (own, guest) = sandboxes(&vm);
    let grown = monitor().saturating_sub(before);
    let processes = vm.processes().len();
    assert!(own + grown < OVERHEAD, "{own} KiB for {processes} sandboxes, {grown} KiB more in the monitor");
    let memory = vm.memory().size() >> 10;
    assert_eq!(vm.stop().end, End::Stopped);
    arena.leave();
    (guest, memory)
}

#[test]
fn host_memory_for_a_guest_stays_within_its_memory_and_a_fixed_overhead() {
    let attack = Attack { limit: PATIENCE, ..Attack::new("touch", &[]) };
    let (guest, memory) = send(&attack, "touched");
    assert!(guest > memory * 9 / 10 && guest <= memory, "the guest touched {guest} of {memory} KiB");
}

/// Roots, of which many are entered, and programs that make the host's page tables as large as they can.
#[test]
fn host_memory_stays_so_whatever_programs_map() {
    let memory = 160 << 20;
    let attack = Attack { limit: PATIENCE, memory, ..Attack::new("spread", &[16_384, 200]) };
    send(&attack, "spread");
}

//! The memory balloon as a device, and what the host holds of a guest's memory.

mod common;

use common::*;
use hv_core::{Config, DeviceConfig, End, Vm};

const PAGE: u64 = 4096;

fn start(arguments: &[&str]) -> (Vm, Console) {
    let (config, console) = config("devices", arguments);
    let vm = Vm::start(Config { devices: vec![DeviceConfig::Balloon], ..config }).expect("the VM starts");
    (vm, console)
}

#[test]
fn a_guest_gives_up_what_is_asked_for_and_takes_it_back() {
    let (vm, console) = start(&["balloon"]);
    console.wait_for("balloon ready");
    let memory = vm.memory_control();
    for pages in [1000, 3000, 10, 2000] {
        memory.set_balloon(pages * PAGE).expect("it has a balloon");
        console.wait_for(&format!("holds {pages} of {pages}\n"));
        let stats = memory.stats().expect("it runs");
        assert_eq!((stats.ballooned, stats.reported), (pages * PAGE, 0));
    }
    memory.set_balloon(u64::MAX).expect("it has a balloon");
    console.wait_for(&format!("of {}\n", 64 << 20 >> 12));
    let stats = memory.stats().expect("it runs");
    assert!(stats.ballooned > 50 << 20, "{stats:?}");
    memory.set_balloon(0).expect("it has a balloon");
    let report = wait(vm);
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
    assert!(console.text().ends_with("holds 0 of 0\nballoon: good\n"), "{}", console.text());
}

#[test]
fn free_pages_that_a_guest_tells_of_are_the_hosts_until_they_are_used() {
    let (vm, console) = start(&["balloon-report"]);
    console.wait_for("reported");
    let memory = vm.memory_control();
    let stats = memory.stats().expect("it runs");
    assert!(stats.host < 16 << 20, "the host still holds what was reported: {stats:?}");
    assert!(stats.pages_reported >= 4096, "{stats:?}");
    memory.set_balloon(PAGE).expect("it has a balloon");
    let report = wait(vm);
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
}

#[test]
fn requests_that_lie_harm_their_guest_alone() {
    let (vm, console) = start(&["balloon-hostile", "3", "balloon"]);
    console.wait_for("balloon ready");
    let memory = vm.memory_control();
    memory.set_balloon(100 * PAGE).expect("it has a balloon");
    console.wait_for("holds 100 of 100\n");
    memory.set_balloon(0).expect("it has a balloon");
    let report = wait(vm);
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
    assert!(!console.text().contains("\n0 of 60"), "{}", console.text());
}

//! How often a vCPU of the KVM engine leaves the guest, which is what its crossings cost: counted, for it is the same on any machine.
//!
//! Without a KVM that can be used, nothing is counted, and it is said.

mod common;

use common::*;
use hv_core::{End, EngineKind, Vm};

/// Exits of a guest that does `what` so often.
fn exits(what: &str, times: u64) -> u64 {
    let (mut config, console) = config("conformance", &["cost", what, &times.to_string()]);
    config.engine = EngineKind::Kvm;
    let report = wait(Vm::start(config).expect("the VM starts"));
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{report:#?}, having said: {}", console.text());
    report.counters.exits
}

#[test]
fn what_the_guest_can_do_by_itself_leaves_it_never_and_a_call_once() {
    const MORE: u64 = 2000;
    if let Err(why) = hv_core::engine::kvm::usable() {
        eprintln!("not counted: {why}");
        return;
    }
    for (what, each) in [("clock", 0), ("mask", 0), ("update", 0), ("call", 0), ("fault", 0), ("null", 1)] {
        let more = exits(what, 100 + MORE) as i64 - exits(what, 100) as i64;
        println!("{what}: {} exits each", more as f64 / MORE as f64);
        // Beside those, the host's signals and corrections of the clock have it out now and then: some a second.
        assert!(
            (more - (MORE * each) as i64).abs() < MORE as i64 / 4,
            "{what}: {more} exits more for {MORE} times more"
        );
    }
}

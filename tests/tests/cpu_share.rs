//! A VM's share of the processors: how it is kept, and that nothing else suffers.
//!
//! Nothing here asserts how fast anything is. A cap is an upper bound, which holds on however slow a machine; what is
//! compared with it is the host's own count of the sandboxes' time.

mod common;

use common::*;
use hv_core::cpu_share::Peers;
use hv_core::{CpuShare, End, Vm};
use std::time::{Duration, Instant};

/// A guest under a cap.
fn capped(name: &str, arguments: &[&str], percent: u32) -> (Vm, Console) {
    let (mut config, console) = config(name, arguments);
    config.cpu.cap = Some(percent);
    (Vm::start(config).expect("the VM starts"), console)
}

/// Percent of one processor that the VM's sandboxes have had over a time.
fn used(vm: &Vm, time: Duration) -> f64 {
    let (start, before) = (Instant::now(), cpu_time(vm));
    std::thread::sleep(time);
    (cpu_time(vm) - before).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0
}

#[test]
fn a_busy_guest_stays_within_its_cap_and_is_told_of_it() {
    let (vm, console) = capped("conformance", &["spin"], 20);
    console.wait_for("before\n");
    let used = used(&vm, Duration::from_secs(2));
    assert!(used > 0.0 && used < 30.0, "{used} %");
    let report = vm.stop();
    assert_eq!(report.end, End::Stopped);
    let measured = report.cpu.expect("it had a cap");
    assert_eq!((measured.cap, measured.weight), (Some(20), None));
    assert!(measured.percent < 30.0 && measured.pauses > 0, "{measured:?}");
}

#[test]
fn a_vm_without_a_share_has_no_thread_for_it() {
    let (vm, _) = start("conformance", &["block"]);
    assert_eq!(vm.stop().cpu, None);
}

/// With 1 % it is held back nearly all the time, for seconds at a time. A stop that waited for the end of that, once a vCPU has not
/// answered for a second, would have ended the guest as one that does not answer.
#[test]
fn a_guest_that_is_held_back_stops_and_pauses_when_it_is_asked_to() {
    let (mut vm, console) = capped("conformance", &["spin"], 1);
    console.wait_for("before\n");
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(20));
        vm = vm.pause().expect("it comes to a stopping point").resume();
    }
    assert_eq!(vm.stop().end, End::Stopped);
}

/// Programs that come and go: their sandboxes are made, commanded and killed around pauses, and while they last.
#[test]
fn a_guest_of_many_programs_does_all_its_work_however_often_it_is_held_back() {
    let (vm, console) = capped("minios", &["-c", "forks 100; lat call | wc"], 30);
    let report = wait(vm);
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
    assert!(console.text().contains("100 children came and went"), "{}", console.text());
    assert!(report.cpu.expect("it had a cap").pauses > 0);
}

/// Not on one processor, perhaps: then neither waits for the other. The shares themselves are `hv bench`'s to measure.
#[test]
fn vms_with_weights_find_each_other() {
    let path = std::env::temp_dir().join(format!("hv-weights-{}", std::process::id()));
    let vms = [100, 300].map(|weight| {
        let (mut config, console) = config("conformance", &["spin"]);
        config.cpu = CpuShare { cap: None, weight: Some((weight, Peers::join(&path).expect("a place"))) };
        let vm = Vm::start(config).expect("the VM starts");
        console.wait_for("before\n");
        vm
    });
    std::thread::sleep(Duration::from_secs(1));
    for vm in vms {
        let report = vm.stop();
        assert_eq!(report.end, End::Stopped);
        assert_eq!(report.cpu.expect("it had a weight").peers, 1);
    }
    std::fs::remove_file(path).expect("it was made");
}

//! Guests boot, call the hypervisor, and end.

mod common;

use common::*;
use hv_core::Breakpoints;
use hv_core::{End, Vm};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[test]
fn hello_greets_and_shuts_down_with_code_0() {
    let (report, output) = run("hello", &[]);
    assert_eq!(report.end, End::Shutdown { code: 0 });
    assert_eq!(output, "Hello from a guest kernel.\n");
}

#[test]
fn arguments_and_exit_codes_cross() {
    let (report, output) = run("crash", &["no such way"]);
    assert_eq!(report.end, End::Shutdown { code: 2 });
    assert!(output.starts_with("usage: crash WAY\n"), "{output}");
}

#[test]
fn guests_tell_the_time_without_asking() {
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (report, output) = run("clock", &[]);
    let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();

    assert_eq!(report.end, End::Shutdown { code: 0 });
    let seconds: u64 = output.split(" s since").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!((before..=after).contains(&seconds), "{before} {seconds} {after}");
    assert_eq!(output.matches(" late").count(), 4, "{output}");
    // Where its trace records are, five lines, the timer, the shutdown: neither reading the clock nor sleeping reaches the monitor.
    // Two more if the timer's moment came while it was set, which the SDK then does anew.
    assert!(matches!(report.counters.hypercalls, 8 | 10), "{}", report.counters.hypercalls);
}

/// As Ctrl-Z and `fg` do, and what holds a VM back. The kernel goes on with a sleep by another system call.
#[test]
fn a_guest_that_sleeps_goes_on_after_its_processes_were_stopped() {
    let (vm, console) = start("minios", &["-c", "echo begin; sleep 1; echo end"]);
    console.wait_for("begin\n");
    for _ in 0..20 {
        let pids: Vec<_> = vm.processes().iter().map(u32::to_string).collect();
        for signal in ["-STOP", "-CONT"] {
            let sent = std::process::Command::new("kill").arg(signal).args(&pids).output();
            sent.expect("there is a `kill`"); // a program may have ended meanwhile
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert_eq!(wait(vm).end, End::Shutdown { code: 0 });
    assert!(console.text().ends_with("end\n"), "{}", console.text());
}

#[test]
fn user_programs_call_fault_crash_and_are_preempted() {
    let (report, output) = run("user", &[]);
    assert_eq!(report.end, End::Shutdown { code: 0 });
    // The programs take turns, so each has its lines in order, but anything may come between.
    for expected in [
        "Hello from user mode.\n",
        "[hello exits with code 0]\n",
        "A page on demand says 42.\n",
        "[on demand exits with code 0]\n",
        "[crash is ended: PageFault { address: dead0000, access: Write }]\n",
        "[loop goes on for ever]\n",
    ] {
        assert!(output.contains(expected), "not {expected:?}: {output}");
    }
}

#[test]
fn a_hundred_thousand_calls_are_all_answered() {
    let (report, output) = run("bench", &["null", "5"]);
    assert_eq!(report.end, End::Shutdown { code: 0 });
    assert_eq!(output.split_whitespace().count(), 5);
    assert!(report.counters.hypercalls > 100_000);
}

#[test]
fn events_sent_to_oneself_interrupt_before_the_call_returns() {
    // The guest subtracts the time of sending from the time of the handler: a late handler gives a wrapped number.
    let (report, output) = run("bench", &["self", "20"]);
    assert_eq!(report.end, End::Shutdown { code: 0 });
    let samples: Vec<u64> = output.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert_eq!(samples.len(), 1000);
    assert!(samples.iter().all(|ns| *ns < 10_000_000_000), "{samples:?}");
}

#[test]
fn breakpoints_can_be_passed_over_with_all_registers_kept() {
    let (mut config, console) = config("bench", &["trap", "3"]);
    config.breakpoints = Breakpoints::Continue;
    let report = wait(Vm::start(config).unwrap());
    assert_eq!(report.end, End::Shutdown { code: 0 });
    assert_eq!(console.text().split_whitespace().count(), 3);
    assert!(report.counters.traps >= 6000);
}

/// Raises events in a guest that runs, or sleeps, until it has had enough.
fn raise_until_done(mode: &str) {
    let (mut vm, console) = start("bench", &[mode, "300"]);
    console.wait_for("\n");
    let channel = console.text().split(' ').next().unwrap().parse().unwrap();
    for _ in 0..100_000 {
        vm.raise_event(channel);
        match vm.wait_timeout(Duration::from_micros(100)) {
            Ok(report) => {
                assert_eq!(report.end, End::Shutdown { code: 0 });
                return;
            }
            Err(running) => vm = running,
        }
    }
    panic!("the guest lost events: {:?}", vm.stop());
}

#[test]
fn upcalls_reach_a_guest_that_runs() {
    raise_until_done("running");
}

#[test]
fn upcalls_reach_a_guest_that_is_blocked() {
    raise_until_done("blocked");
}

#[test]
fn many_vms_run_beside_each_other() {
    let vms: Vec<_> = (0..8).map(|_| start("clock", &[])).collect();
    for (vm, console) in vms {
        assert_eq!(wait(vm).end, End::Shutdown { code: 0 });
        assert_eq!(console.text().lines().count(), 5);
    }
}

#[test]
fn a_flood_of_events_does_not_harm_a_guest_that_computes() {
    let (vm, console) = start("bench", &["running", "1000000000"]);
    console.wait_for("\n");
    let channel = console.text().split(' ').next().unwrap().parse().unwrap();
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        (0..1000).for_each(|_| vm.raise_event(channel));
    }
    assert_eq!(vm.stop().end, End::Stopped);
}

#[test]
fn vcpus_wake_each_other_without_the_monitor() {
    let (mut config, console) = config("bench", &["ping", "3"]);
    config.vcpus = 2;
    let report = wait(Vm::start(config).expect("the VM starts"));
    assert_eq!(report.end, End::Shutdown { code: 0 });
    assert_eq!(console.text().split_whitespace().count(), 3);
    // 40,000 wake-ups. To interrupt a vCPU takes the monitor, and one that is about to sleep may be told so.
    assert!(report.counters.sleeps < 10_000, "{:?}", report.counters);
}

//! VMs stop at stopping points: nothing of the engine's is ever visible in a stopped guest, and it goes on as if
//! nothing had been.

mod common;

use common::*;
use hv_core::Breakpoints;
use hv_core::handle::RequestError;
use hv_core::{End, Vm};
use std::time::Duration;

const SLOT_255: u64 = hv_abi::address::SLOT_255;

/// Pauses a guest again and again, wherever it is, and lets it finish. Tells how often it was in its own code, and not
/// in a call.
fn pause_often(guest: &str, arguments: &[&str], breakpoints: Breakpoints) -> u32 {
    let (mut config, console) = config(guest, arguments);
    config.breakpoints = breakpoints;
    config.vcpus = 4;
    let mut vm = Vm::start(config).unwrap();
    let mut in_guest = 0;
    for i in 0..400_u64 {
        match vm.pause() {
            Ok(paused) => {
                for (_, registers) in paused.registers() {
                    assert!(registers.rip < SLOT_255, "{registers:x?}");
                    assert!(registers.rsp < SLOT_255, "{registers:x?}");
                    in_guest += u32::from(registers.rip != 0);
                }
                vm = paused.resume();
            }
            Err(report) => {
                assert_eq!(report.end, End::Shutdown { code: 0 }, "after {i} pauses: {report:#?}");
                assert!(guest == "conformance" || !console.text().is_empty());
                return in_guest;
            }
        }
        std::thread::sleep(Duration::from_micros(i % 97 * 3));
    }
    assert_eq!(wait(vm).end, End::Shutdown { code: 0 });
    in_guest
}

#[test]
fn while_it_makes_hypercalls() {
    pause_often("bench", &["null", "20"], Breakpoints::Crash);
}

#[test]
fn while_it_handles_upcalls() {
    pause_often("bench", &["self", "2000"], Breakpoints::Crash);
}

#[test]
fn while_it_traps() {
    pause_often("bench", &["trap", "50"], Breakpoints::Continue);
}

#[test]
fn while_it_sleeps_and_wakes() {
    pause_often("bench", &["sleep", "100"], Breakpoints::Crash);
}

#[test]
fn while_it_computes() {
    assert!(pause_often("bench", &["clock", "50"], Breakpoints::Crash) > 0);
}

#[test]
fn while_it_runs_programs() {
    pause_often("minios", &["-c", "primes 20000 | wc; forks 20"], Breakpoints::Crash);
}

#[test]
fn while_its_programs_make_rewritten_calls() {
    let test = "a_call_in_a_loop_is_interrupted_anywhere";
    pause_often("conformance", &[&conformance_test(test).to_string()], Breakpoints::Crash);
}

#[test]
fn while_its_vcpus_wake_each_other() {
    let test = "events_go_between_vcpus_whatever_the_other_does";
    pause_often("conformance", &[&conformance_test(test).to_string()], Breakpoints::Crash);
}

#[test]
fn while_its_vcpus_run_programs_of_one_space() {
    let test = "one_address_space_runs_on_several_vcpus_at_once";
    pause_often("conformance", &[&conformance_test(test).to_string()], Breakpoints::Crash);
}

#[test]
fn while_it_starts_and_stops_vcpus() {
    let test = "what_was_stored_before_is_seen";
    pause_often("conformance", &[&conformance_test(test).to_string()], Breakpoints::Crash);
}

#[test]
fn while_it_polls() {
    let test = "a_channel_that_fires_masked_ends_it";
    pause_often("conformance", &[&conformance_test(test).to_string()], Breakpoints::Crash);
}

#[test]
fn a_guest_that_polls_can_be_paused_resumed_and_stopped() {
    let (vm, console) = start("bench", &["poll"]);
    console.wait_for("poll");
    let paused = vm.pause().expect("it runs");
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(paused.resume().stop().end, End::Stopped);
}

#[test]
fn a_blocked_guest_can_be_paused_resumed_and_stopped() {
    let (vm, console) = start("bench", &["idle"]);
    console.wait_for("idle");
    let paused = vm.pause().expect("it runs");
    assert!(paused.registers().all(|(_, registers)| registers.rip == 0), "a blocked guest is in a call");
    let vm = paused.resume();
    let report = vm.stop();
    assert_eq!(report.end, End::Stopped);
    let in_idle =
        |f: &hv_core::backtrace::StackFrame| f.function.as_deref().is_some_and(|n| n.contains("idle"));
    assert!(report.backtrace.iter().any(in_idle), "{:#?}", report.backtrace);
}

#[test]
fn a_stopper_ends_the_wait_of_another_thread() {
    let (vm, console) = start("bench", &["idle"]);
    console.wait_for("idle");
    let stopper = vm.stopper();
    let waiter = std::thread::spawn(move || vm.wait());
    stopper.stop();
    stopper.stop();
    assert_eq!(waiter.join().unwrap().end, End::Stopped);
}

#[test]
fn a_paused_vm_does_not_run_and_can_be_dropped() {
    let (vm, _) = start("crash", &["loop"]);
    let pid = vm.processes()[0];
    let paused = vm.pause().expect("it runs");
    let used = || std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    let before = used();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(before, used());
    drop(paused);
    assert!(!exists(pid));
}

/// A console whose reader is slower than a stop may take.
struct Slow(std::sync::mpsc::Sender<()>);

impl std::io::Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.send(());
        std::thread::sleep(Duration::from_millis(1500));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stop_returns_though_the_vcpu_is_in_a_long_call() {
    let (mut config, _) = config("bench", &["idle"]);
    let (in_write, writing) = std::sync::mpsc::channel();
    config.console = Box::new(Slow(in_write));
    let vm = Vm::start(config).unwrap();
    writing.recv_timeout(PATIENCE).expect("the guest writes a line");
    let (done, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(vm.stop().end));
    let end = stopped.recv_timeout(PATIENCE).expect("the stop hangs");
    assert!(matches!(end, End::Stopped | End::Unanswered), "{end:?}");
}

#[test]
fn a_handle_pauses_and_resumes_a_vm_that_another_thread_waits_for() {
    let (vm, console) = start("bench", &["clock", "300"]);
    let handle = vm.handle();
    let waiter = std::thread::spawn(move || wait(vm));
    for _ in 0..200 {
        let done = handle.pause().and_then(|()| handle.pause()); // twice is once
        let paused = handle.stats().map(|stats| stats.paused);
        let resumed = handle.resume().and_then(|()| handle.resume());
        if done.is_err() || resumed.is_err() {
            break; // the guest has finished
        }
        assert_eq!(paused, Ok(true));
    }
    let _ = handle.resume();
    assert_eq!(waiter.join().unwrap().end, End::Shutdown { code: 0 });
    assert!(!console.text().is_empty());
    assert_eq!(handle.pause(), Err(RequestError::Ended));
    assert_eq!(handle.resume(), Err(RequestError::Ended));
    assert_eq!(handle.stats().map(drop), Err(RequestError::Ended));
}

#[test]
fn a_vm_that_a_handle_has_paused_stands_until_it_is_resumed_or_stopped() {
    let (vm, _) = start("crash", &["loop"]);
    let (handle, stopper, pid) = (vm.handle(), vm.stopper(), vm.processes()[0]);
    let waiter = std::thread::spawn(move || vm.wait());
    handle.pause().unwrap();
    let used = || std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap();
    let before = used();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!(before, used());
    stopper.stop();
    let report = waiter.join().unwrap();
    assert_eq!(report.end, End::Stopped);
    assert!(!report.backtrace.is_empty(), "it is known where it stood");
}

#[test]
fn a_paused_vm_can_be_given_back_and_paused_resumed_and_stopped_by_its_owner() {
    for by_owner in [|vm: Vm| vm.stop(), |vm: Vm| vm.pause().unwrap().resume().stop()] {
        let (vm, console) = start("bench", &["idle"]);
        console.wait_for("idle");
        let handle = vm.handle();
        let pauser = std::thread::spawn(move || handle.pause());
        let mut vm = vm;
        while !pauser.is_finished() {
            let Err(given_back) = vm.wait_timeout(Duration::from_millis(20)) else { panic!("it has ended") };
            vm = given_back;
        }
        pauser.join().unwrap().unwrap();
        assert!(vm.handle().stats().unwrap().paused);
        assert_eq!(by_owner(vm).end, End::Stopped);
    }
}

/// A console that takes nothing until it is let go.
struct Held {
    in_write: std::sync::mpsc::Sender<()>,
    let_go: std::sync::mpsc::Receiver<()>,
}

impl std::io::Write for Held {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.in_write.send(());
        let _ = self.let_go.recv(); // an error: it was let go for good
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_vm_that_comes_to_no_stopping_point_is_not_paused_and_runs_on() {
    let (mut config, _) = config("bench", &["first"]);
    let (in_write, writing) = std::sync::mpsc::channel();
    let (letting_go, let_go) = std::sync::mpsc::channel();
    config.console = Box::new(Held { in_write, let_go });
    let vm = Vm::start(config).unwrap();
    let handle = vm.handle();
    let waiter = std::thread::spawn(move || wait(vm));
    writing.recv_timeout(PATIENCE).expect("the guest writes a line");
    assert_eq!(handle.pause(), Err(RequestError::Unanswered));
    assert!(!handle.stats().unwrap().paused);
    drop(letting_go);
    assert_eq!(waiter.join().unwrap().end, End::Shutdown { code: 0 });
}

#[test]
fn a_running_vm_tells_what_it_does() {
    let (vm, console) = start("bench", &["idle"]);
    console.wait_for("idle");
    let stats = vm.handle().stats().unwrap();
    assert_eq!((stats.paused, stats.memory.size, stats.vcpus.len()), (false, vm.memory().size(), 1));
    assert!(stats.vcpus[0].counters.hypercalls > 0, "it has written to its console");
    assert!((1..=stats.memory.size).contains(&stats.memory.host), "{:?}", stats.memory);
    assert_eq!(stats.processes, vm.processes());
}

/// A vCPU may be making an address space when its VM is ended: that ends, too, and nothing waits for it for ever.
#[test]
fn while_its_vcpus_make_address_spaces() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..200 {
        let (mut config, _) = config("minios", &["-c", "forkbomb & forkbomb & forkbomb & forkbomb"]);
        config.vcpus = 4;
        let vm = Vm::start(config).expect("the VM starts");
        std::thread::sleep(Duration::from_micros(random.u64(8_000..40_000)));
        let processes = vm.processes();
        drop(vm); // at once, wherever its vCPUs are
        assert!(processes.into_iter().all(|pid| !exists(pid)), "a sandbox is left");
    }
}

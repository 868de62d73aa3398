//! Hypercalls with hostile arguments.

use crate::arena::{Arena, Attack, factor, told};
use crate::common::{PATIENCE, wait};
use hv_abi::{Call, GuestPhys};
use hv_core::{End, Vm};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Calls in all, and in each VM.
const CALLS: u64 = 1_000_000;
const EACH: u64 = 50_000;

#[test]
fn a_million_random_hypercalls_get_a_status_each() {
    let arena = Arena::enter();
    let attacks = (0..CALLS / EACH * factor())
        .map(|seed| Attack { limit: PATIENCE, ..Attack::new("calls", &[seed, EACH]) });
    arena.send(attacks, |attack, report| match &report.end {
        // A few are events that need no monitor.
        End::Shutdown { code: 0 } => assert!(report.counters.hypercalls >= EACH - EACH / 10),
        End::Panic { message, place: None } if message.is_empty() => {}
        end => panic!("{attack:?}: {end:?} {:#?}", report.backtrace),
    });
    arena.leave();
}

/// The guest-physical address that a guest prints behind `name`.
fn address(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the guest prints it");
    line.trim().parse().expect("a number")
}

/// Runs `attack` while `change` is done to its memory over and over, as another of its processors could.
fn with_second_thread(attack: &Attack, word: &str, change: impl Fn(&Vm, u64, u64) + Sync) -> End {
    let (vm, console) = attack.start();
    console.wait_for("\n");
    let at = address(&console.text(), word);
    let done = AtomicBool::new(false);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0.. {
                if done.load(Relaxed) {
                    break;
                }
                change(&vm, at, i);
            }
        });
        let alive = |pid: &u32| {
            std::fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| !maps.is_empty())
        };
        while vm.processes().iter().all(alive) && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(1));
        }
        done.store(true, Relaxed);
    });
    let report = wait(vm);
    told(attack, &report);
    report.end
}

#[test]
fn calls_are_copied_once() {
    let arena = Arena::enter();
    for _ in 0..factor() {
        let attack = Attack::new("shared", &[100_000]);
        let end = with_second_thread(&attack, "entry", |vm, entry, i| {
            let call = if i % 2 == 0 { Call::VERSION } else { Call::SHUTDOWN };
            vm.memory().write(GuestPhys(entry), &call).expect("guest memory");
            let channel = if i % 3 == 0 { 16_u64 } else { u64::MAX };
            vm.memory().write(GuestPhys(entry + 64 + 8), &channel).expect("guest memory");
        });
        assert_eq!(end, End::Shutdown { code: 3 }, "the guest came to its own end");
    }
    arena.leave();
}

#[test]
fn a_panic_report_is_copied_once() {
    let arena = Arena::enter();
    for _ in 0..20 * factor() {
        let attack = Attack::new("panic", &[u64::MAX]);
        let end = with_second_thread(&attack, "length", |vm, length, i| {
            let value = if i % 64 == 0 { 16_u64 } else { u64::MAX - i };
            vm.memory().write(GuestPhys(length), &value).expect("guest memory");
        });
        assert_eq!(end, End::Panic { message: "changed in time.".into(), place: None });
    }
    arena.leave();
}

//! Attacks on the pages that a vCPU shares with the monitor.

use crate::arena::{Arena, Attack, factor, told};
use hv_abi::vcpu::{FIRST_DYNAMIC_CHANNEL, TIMER_CHANNEL};
use hv_core::{End, Report, Vm};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// No guest of these ends by itself in peace.
fn not_in_peace(attack: &Attack, report: &Report) {
    assert_ne!(report.end, End::Shutdown { code: 0 }, "{attack:?}");
}

#[test]
fn writes_to_every_shared_page_end_the_writer_alone() {
    let arena = Arena::enter();
    let attacks =
        (0..3).flat_map(|how| (0..60 * factor()).map(move |seed| Attack::new("pages", &[seed, how])));
    arena.send(attacks, not_in_peace);
    arena.leave();
}

#[test]
fn forged_states_end_the_forger_alone() {
    let arena = Arena::enter();
    arena.send((0..100 * factor()).map(|seed| Attack::new("forge", &[seed])), not_in_peace);
    arena.leave();
}

/// Does to a VM what an embedding program may do, until it ends or the time is over.
fn pester(mut vm: Vm, time: Duration) -> Report {
    let start = Instant::now();
    while start.elapsed() < time {
        for channel in [TIMER_CHANNEL, FIRST_DYNAMIC_CHANNEL, 511] {
            vm.raise_event(channel);
        }
        vm = match vm.pause() {
            Ok(paused) => paused.resume(),
            Err(report) => return report,
        };
        vm = match vm.wait_timeout(Duration::from_micros(200)) {
            Ok(report) => return report,
            Err(vm) => vm,
        };
    }
    vm.stop()
}

#[test]
fn forged_states_do_not_harm_pauses_and_events() {
    let arena = Arena::enter();
    for seed in 0..60 * factor() {
        for attack in
            [Attack::new("forge", &[seed]), Attack::new("pages", &[seed, 1]), Attack::new("victim", &[seed])]
        {
            let (vm, _) = attack.start();
            told(&attack, &pester(vm, attack.limit));
        }
    }
    arena.leave();
}

/// The files that hold what the sandbox's vCPU may write in slot 255, and where in them that is.
fn writable(pid: u32) -> [(File, u64, u64); 2] {
    let open = |fd: i32| {
        let path = format!("/proc/{pid}/fd/{fd}");
        OpenOptions::new().write(true).open(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    const VCPU_PAGES: i32 = 5;
    const EXCHANGE: i32 = 6;
    // Behind the clock page, the vCPU's page; hand-over page and signal stack.
    [(open(VCPU_PAGES), 4096, 4096), (open(EXCHANGE), 0, 0x1_1000)]
}

/// Stores numbers into both files, mostly near the beginning of each, where something is, until `stop`.
fn scribble(files: &[(File, u64, u64); 2], seed: u64, stop: &AtomicBool) {
    let mut random = fastrand::Rng::with_seed(seed);
    while !stop.load(Relaxed) {
        let (file, start, length) = &files[random.usize(..2)];
        let span = if random.u8(..4) == 0 { *length } else { 256 };
        let slot_255 = hv_abi::address::SLOT_255 + random.u64(..0x2000);
        let value = [0, 1, 2, random.u64(..), u64::MAX, slot_255][random.usize(..6)];
        let bytes = &value.to_ne_bytes()[..4 << random.u8(..2)];
        // It fails when the sandbox is gone, which ends this soon.
        let _ = file.write_at(bytes, start + random.u64(..span / 8) * 8);
        (0..random.u32(..2000)).for_each(|_| std::hint::spin_loop());
    }
}

#[test]
fn a_second_thread_that_writes_to_the_shared_pages_ends_its_own_vm_alone() {
    let arena = Arena::enter();
    for seed in 0..100 * factor() {
        let attack = Attack::new("victim", &[seed]);
        let (vm, _) = attack.start();
        let files = writable(vm.processes()[0]);
        let stop = AtomicBool::new(false);
        let report = std::thread::scope(|scope| {
            scope.spawn(|| scribble(&files, seed, &stop));
            let pestering = scope.spawn(|| pester(vm, attack.limit));
            let report = pestering.join();
            stop.store(true, Relaxed);
            report
        });
        told(&attack, &report.expect("the monitor does not panic"));
    }
    arena.leave();
}

#[test]
fn vcpus_that_write_to_each_others_pages_end_their_own_vm_alone() {
    let arena = Arena::enter();
    let attacks = (0..80 * factor()).map(|seed| {
        let mut attack = Attack::new("vcpus", &[seed]);
        attack.vcpus = 2 + (seed % 5) as u32;
        attack
    });
    arena.send(attacks, |_, _| {});
    for seed in 0..20 * factor() {
        let mut attack = Attack::new("vcpus", &[seed]);
        attack.vcpus = 4;
        let (vm, _) = attack.start();
        told(&attack, &pester(vm, attack.limit));
    }
    arena.leave();
}

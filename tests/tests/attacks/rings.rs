//! Devices whose drivers are hostile.

use crate::arena::{Arena, Attack, factor, status};
use crate::common::{Console, PATIENCE, cpu_time};
use hv_core::{End, Report, Vm};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

fn attack(way: &str, numbers: &[u64]) -> Attack {
    Attack { vcpus: 3, devices: true, ..Attack::new(way, numbers) }
}

/// A guest that lets a device write to its code dies of that, by itself.
fn harms_itself_alone(attack: &Attack, report: &Report) {
    match &report.end {
        End::Shutdown { .. } | End::Stopped | End::Crash { .. } | End::Panic { .. } => {}
        other => panic!("{attack:?} {other:?} {:#?}", report.backtrace),
    }
}

#[test]
fn rings_registers_and_resets_of_any_kind_harm_their_guest_alone() {
    let arena = Arena::enter();
    let limit = Duration::from_secs(2);
    let attacks = (0..160 * factor()).map(|seed| Attack { limit, ..attack("rings", &[seed, 2000]) });
    let (requests, ends) = (RefCell::new(BTreeMap::<u32, u64>::new()), RefCell::new(0));
    arena.send(attacks, |attack, report| {
        harms_itself_alone(attack, report);
        *ends.borrow_mut() += u32::from(report.end == End::Shutdown { code: 0 });
        for device in &report.devices {
            *requests.borrow_mut().entry(device.kind).or_default() += device.requests;
        }
    });
    let (requests, ends) = (requests.into_inner(), ends.into_inner());
    assert!(
        requests.len() == 5 && requests.values().all(|count| *count > 0),
        "not all were reached: {requests:?}"
    );
    assert!(ends > 0, "none came to its end");
    arena.leave();
}

/// Neither doorbells nor writes to the configuration space, nor any order to a device, pile up at the monitor.
#[test]
fn floods_of_doorbells_and_of_writes_do_not_make_the_monitor_grow() {
    let arena = Arena::enter();
    let before = status("self", "RssAnon:");
    for how in 0..4 * factor() {
        let attack = attack("flood", &[how]);
        let (vm, _, _host) = attack.start_with_devices();
        match vm.wait_timeout(Duration::from_millis(700)) {
            Ok(report) => panic!("{attack:?} {:?}", report.end),
            Err(vm) => {
                let grown = status("self", "RssAnon:").saturating_sub(before);
                assert!(grown < 16 << 10, "{attack:?}: the monitor grew by {grown} KiB");
                assert_eq!(vm.stop().end, End::Stopped, "{attack:?}");
            }
        }
    }
    arena.leave();
}

/// Processor time that devices' threads, and the VM's sandboxes, have had.
fn used(vm: &Vm) -> (Duration, Duration) {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is there");
    let of_device = |task: std::io::Result<fs::DirEntry>| {
        let task = task.ok()?.path();
        let name = fs::read_to_string(task.join("comm")).ok()?;
        let schedstat = fs::read_to_string(task.join("schedstat")).ok()?;
        let ran = schedstat.split(' ').next()?.parse().ok()?;
        (name.trim_end() == "hv-device").then_some(Duration::from_nanos(ran))
    };
    (tasks.filter_map(of_device).sum(), cpu_time(vm))
}

/// However a driver leaves its devices, and although something comes for them from the host.
#[test]
fn devices_that_have_nothing_to_do_use_no_processor() {
    let arena = Arena::enter();
    for how in 0..6 {
        let attack = attack("settle", &[how]);
        let (vm, console, host): (Vm, Console, _) = attack.start_with_devices();
        console.wait_for("settled");
        host.disturb();
        let start = Instant::now();
        let mut before = used(&vm);
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = used(&vm);
            if now == before {
                break;
            }
            assert!(
                start.elapsed() < PATIENCE / 4,
                "{attack:?}: somebody is never at rest: {before:?}, {now:?}"
            );
            before = now;
        }
        assert_eq!(vm.stop().end, End::Stopped, "{attack:?}");
    }
    arena.leave();
}

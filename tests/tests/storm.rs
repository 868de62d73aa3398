//! No event and no wake-up is lost, whatever vCPUs do when it comes, and whatever the host does meanwhile: the sample guest
//! `storm` sends its vCPUs events, and fails if one does not come; the host pauses it, and raises events, at random.
//!
//! `HV_STORM=600 cargo test --release -p conformance --test storm` goes on for ten minutes; `HV_STORM_SEED` says with which
//! seeds.

mod common;

use common::*;
use hv_core::{End, Vm};
use std::time::{Duration, Instant};

/// What the guest waits for tokens itself, and some.
const PATIENCE: Duration = Duration::from_secs(300);

/// A number in the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no number")))
}

/// Runs the guest with so many vCPUs.
fn storm(vcpus: u32, seed: u64, seconds: u64) {
    let (mut config, console) = config("storm", &[&seed.to_string(), &seconds.to_string()]);
    config.vcpus = vcpus;
    let mut vm = Vm::start(config).expect("the VM starts");
    console.wait_for("\n");
    let channel = console.text().trim().parse().expect("the guest tells its channel");
    let mut random = fastrand::Rng::with_seed(seed);
    let start = Instant::now();
    // By turns it is left alone: what the host sends might make good what is lost.
    let report = loop {
        let disturbed = start.elapsed().as_secs() % 2 == 1;
        if disturbed && random.u8(..4) == 0 {
            match vm.pause() {
                Ok(paused) => {
                    std::thread::sleep(Duration::from_micros(random.u64(..2000)));
                    vm = paused.resume();
                }
                Err(report) => break report,
            }
        } else if disturbed {
            (0..random.u32(..4)).for_each(|_| vm.raise_event(channel));
        }
        match vm.wait_timeout(Duration::from_micros(random.u64(..5000))) {
            Ok(report) => break report,
            Err(running) => vm = running,
        }
        assert!(
            start.elapsed() < Duration::from_secs(seconds) + PATIENCE,
            "{vcpus} vCPUs, seed {seed}: it hangs: {:?}, having said: {}",
            vm.stop(),
            console.text()
        );
    };
    let text = console.text();
    assert_eq!(
        report.end,
        End::Shutdown { code: 0 },
        "{vcpus} vCPUs, seed {seed}: {report:#?}, having said: {text}"
    );
    println!("{vcpus} vCPUs, seed {seed}: {}", text.lines().last().unwrap_or_default());
}

#[test]
fn no_event_and_no_wake_up_is_lost() {
    let all = number("HV_STORM").unwrap_or(8);
    let first = number("HV_STORM_SEED").unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(all);
    let each = (all / 4).min(15);
    for seed in first.. {
        for vcpus in [2, 4, 8, 64] {
            storm(vcpus, seed, each);
        }
        if Instant::now() >= end {
            break;
        }
    }
}

#[test]
fn a_vcpu_that_is_started_waits_for_no_lock_for_ever() {
    let (mut config, console) = config("storm", &["starts", "2"]);
    config.vcpus = 4;
    let report = wait(Vm::start(config).expect("the VM starts"));
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{report:#?}, having said: {}", console.text());
}

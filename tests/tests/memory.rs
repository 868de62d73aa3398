//! What guests do not need goes back to the host, and comes again when they need it.

mod common;

use common::*;
use hv_core::{Config, End, MemoryStats, Vm};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// Waits until the VM's memory is as it should be.
fn wait_until(vm: &Vm, what: &str, is_so: impl Fn(&MemoryStats) -> bool) -> MemoryStats {
    let start = Instant::now();
    loop {
        let stats = vm.memory_stats();
        if is_so(&stats) {
            return stats;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that minios says are in use, by the last `free` on the console.
fn in_use(console: &Console) -> u64 {
    let text = console.text();
    let line = text.lines().rfind(|line| line.contains(" KiB free")).expect("`free` was run");
    let (free, rest) = line.split_once(" of ").expect("what `free` writes");
    let size = rest.split_once(' ').expect("what `free` writes").0;
    let kib = |text: &str| text.trim_start_matches("$ ").parse::<u64>().expect("a number");
    (kib(size) - kib(free)) << 10
}

#[test]
fn what_an_idle_guest_has_freed_is_back_at_the_host() {
    // Three programs that use all that they are given, one after the other and together.
    let command = "crash memory; crash memory & crash memory; wait; free; sleep 3600";
    let (vm, console) = start("minios", &["-c", command]);
    console.wait_for(" KiB free");
    let in_use = in_use(&console);
    let (start, before) = (Instant::now(), vm.memory_stats());
    let free = before.size - in_use;
    let stats = wait_until(&vm, "99 % of what is free is back", |stats| stats.host <= in_use + free / 100);
    println!("{} of {} bytes were back after {:?}", before.host - stats.host, before.host, start.elapsed());
    assert!(stats.reported >= 40 * MIB, "so much was used: {stats:?}");
    assert!(stats.host < 16 * MIB, "{stats:?}");
    assert_eq!(vm.stop().end, End::Stopped);
}

/// minios with a prompt.
fn prompt(memory: u64) -> (Vm, Console) {
    let (config, console) = config("minios", &[]);
    let vm = Vm::start(Config { console_input: true, memory, ..config }).expect("the VM starts");
    (vm, console)
}

fn type_line(vm: &Vm, line: &str) {
    assert_eq!(vm.console_input().push(line.as_bytes()), line.len());
}

#[test]
fn the_balloon_takes_memory_from_a_guest_and_gives_it_back() {
    let (vm, console) = prompt(64 * MIB);
    let control = vm.memory_control();
    type_line(&vm, "crash memory; echo one\r");
    console.wait_for("\none\n");
    for target in [32 * MIB, 48 * MIB + 5, 8 * MIB] {
        control.set_balloon(target).expect("minios has a balloon");
        let agreed = target / 4096 * 4096;
        let stats = wait_until(&vm, "the balloon follows", |stats| stats.ballooned == agreed);
        assert_eq!(stats.balloon_target, agreed);
        assert!(stats.host <= stats.size - agreed, "{stats:?}");
    }
    // More than there is: it gives what it can, and lives.
    control.set_balloon(u64::MAX).expect("minios has a balloon");
    let stats = wait_until(&vm, "the balloon goes as far as it can", |stats| stats.ballooned > 48 * MIB);
    assert_eq!(stats.balloon_target, stats.size);
    type_line(&vm, "crash memory; echo two\r");
    console.wait_for("\ntwo\n");
    assert!(vm.memory_stats().host < 16 * MIB, "there was no memory to crash with: {:?}", vm.memory_stats());
    control.set_balloon(0).expect("minios has a balloon");
    wait_until(&vm, "the balloon is empty", |stats| stats.ballooned == 0);
    type_line(&vm, "primes 100000 | wc; exit 3\r");
    console.wait_for("9592 9592 56126");
    assert_eq!(wait(vm).end, End::Shutdown { code: 3 });
    assert_eq!(control.stats(), None);
    assert_eq!(control.set_balloon(0), Err(hv_core::vm::BalloonError::Ended));
}

#[test]
fn a_guest_that_is_squeezed_at_random_computes_what_it_should() {
    let command = "cowtest 1; cowtest 2; cowtest 3; cowtest 4; primes 100000 | wc";
    let (vm, console) = start("minios", &["-c", command]);
    let control = vm.memory_control();
    let squeeze = std::thread::spawn(move || {
        let mut random = fastrand::Rng::with_seed(3);
        let mut times = 0;
        // Never so much that a program does not get what it needs.
        while control.set_balloon(random.u64(..32) * MIB).is_ok() {
            times += 1;
            std::thread::sleep(Duration::from_micros(random.u64(..2000)));
        }
        times
    });
    let report = wait(vm);
    let (told, times) = (console.text(), squeeze.join().expect("nothing panics there"));
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{told}");
    assert_eq!(told.matches(" saw ").count(), 4, "{told}");
    assert!(told.ends_with("9592 9592 56126\n"), "{told}");
    assert!(times > 10, "squeezed {times} times");
}

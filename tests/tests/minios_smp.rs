//! minios on several vCPUs: its threads, processes that run at the same time, and stops of all that.

mod common;

use common::*;
use hv_core::{End, Vm};
use std::time::Duration;

/// Starts minios with four vCPUs, whose page tables are checked, and has its shell run a command.
fn start_on_four(command: &str) -> (Vm, Console) {
    let (mut config, console) = config("minios", &["-c", command]);
    config.vcpus = 4;
    config.check_tables = true;
    (Vm::start(config).expect("the VM starts"), console)
}

/// What the shell writes, if all goes well.
fn output(command: &str) -> String {
    let (vm, console) = start_on_four(command);
    let report = wait(vm);
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
    console.text()
}

#[test]
fn all_vcpus_take_part() {
    let told = output("nproc; spin & spin & spin & sleep 0.5; ps; kill 3 4 5; wait");
    assert!(told.starts_with("4\n"), "{told}");
    // Three that never wait, and `ps` itself: each is on a vCPU of its own.
    let mut vcpus: Vec<&str> = told
        .lines()
        .filter(|line| line.contains(" running "))
        .filter_map(|line| line.split_whitespace().nth(4))
        .collect();
    vcpus.sort_unstable();
    assert_eq!(vcpus, ["0", "1", "2", "3"], "{told}");
}

#[test]
fn threads_lose_no_addition() {
    let told = output("threads 4 5000; threads 40 100; par 50000 3");
    assert!(
        told.contains("threads: 20000 turns, 20000 under the mutex, 20000 by atomic additions\n"),
        "{told}"
    );
    assert!(told.contains("threads: 4000 turns, 4000 under the mutex, 4000 by atomic additions\n"), "{told}");
    assert!(told.contains("par: 5133 primes with 1 thread, 5133 with 3\n"), "{told}");
}

#[test]
fn threads_leave_nothing_behind() {
    let told = output("threads 100 3; free; threads 100 3; threads 100 3; free");
    let free = |line: &str| line.split_once(" of ")?.0.parse().ok();
    let levels: Vec<u64> = told.lines().filter_map(free).collect();
    assert_eq!((levels.len(), levels[0]), (2, levels[1]), "{told}");
}

#[test]
fn threads_run_out_and_the_shell_goes_on() {
    let told = output("threads 1000 1; echo $?; primes 1000 | wc -l; threads 4 10; free");
    // If threads end as fast as they are made, it is their stacks that run out.
    let refused = ["threads: too many threads", "threads: out of memory"];
    let rest = refused.iter().find_map(|refusal| told.strip_prefix(refusal));
    assert!(rest.is_some_and(|rest| rest.starts_with("\n1\n168\n")), "{told}");
    assert!(told.contains(" 2 processes,"), "{told}");
}

#[test]
fn a_fork_is_of_one_moment_while_other_threads_write() {
    for _ in 0..3 {
        assert_eq!(output("forkrace 40"), "forkrace: 40 of 40 children, reader true, writer true\n");
    }
}

#[test]
fn what_one_thread_does_wrong_ends_all() {
    let told =
        output("threadcrash fault; echo $?; threadcrash exit; echo $?; ps | grep -c threadcrash; true");
    assert!(told.starts_with("minios: killed threadcrash (2): Write of 0x0,"), "{told}");
    assert!(told.ends_with("\n137\n7\n0\n"), "{told}");
}

#[test]
fn a_process_with_threads_cannot_become_another() {
    assert_eq!(output("threadcrash exec"), "threadcrash: the process has other threads\n");
}

#[test]
fn busy_processes_and_threads_on_other_vcpus_are_killed() {
    let told =
        output("spin & spin & threadcrash spin & sleep 0.1; kill 2 3 4; wait; ps | grep -c 'spin'; free");
    assert!(told.contains("\n0\n"), "{told}");
    assert!(told.contains(" 2 processes,"), "{told}");
}

#[test]
fn processes_that_write_and_fork_at_random_do_so_side_by_side() {
    let command: String = (1..=5).map(|seed| format!("cowtest {seed} & ")).collect();
    let told = output(&format!("{command} wait"));
    assert_eq!(told.matches("processes saw what was theirs\n").count(), 5, "{told}");
}

#[test]
fn pipelines_run_side_by_side() {
    let pipeline = "primes 20000 | cat | cat | wc -l & ";
    let told = output(&format!("{} wait", pipeline.repeat(4)));
    assert_eq!(told.lines().filter(|line| *line == "2262").count(), 4, "{told}");
}

#[test]
fn sleepers_wake_up_while_others_compute() {
    let told = output("spin & spin & spin & spin & sleep 0.05; sleep 0.05; echo awake; kill 2 3 4 5; wait");
    assert!(told.ends_with("awake\n"), "{told}");
}

#[test]
fn bombs_of_all_kinds_end() {
    let told = output("forkbomb & forkbomb & threads 200 10 & pipebomb; wait; primes 1000 | wc -l; free");
    assert!(told.contains("\n168\n") && told.contains(" 2 processes,"), "{told}");
}

#[test]
fn it_goes_on_however_often_it_is_paused() {
    let command = "primes 20000 | cat | wc -l; threads 4 1000; forkrace 20; cowtest 5; forks 20";
    let (mut vm, console) = start_on_four(command);
    for i in 0..400_u64 {
        match vm.pause() {
            Ok(paused) => vm = paused.resume(),
            Err(report) => {
                assert_eq!(report.end, End::Shutdown { code: 0 }, "after {i} pauses: {}", console.text());
                break;
            }
        }
        std::thread::sleep(Duration::from_micros(i % 97 * 30));
        if i == 399 {
            assert_eq!(wait(vm).end, End::Shutdown { code: 0 }, "{}", console.text());
            break;
        }
    }
    let told = console.text();
    assert!(told.contains("2262\nthreads: 4000 turns, 4000 under"), "{told}");
    assert!(told.contains("20 of 20 children, reader true, writer true\n"), "{told}");
    assert!(told.contains("processes saw what was theirs\nforks: 20 children came and went\n"), "{told}");
}

#[test]
fn it_is_stopped_whatever_its_vcpus_do() {
    for i in 0..10 {
        let (vm, console) =
            start_on_four("echo ready; spin & forks 1000 & threads 4 1000000 & forkrace 10000");
        console.wait_for("ready");
        std::thread::sleep(Duration::from_millis(7 * i));
        assert_eq!(vm.stop().end, End::Stopped, "{}", console.text());
    }
}

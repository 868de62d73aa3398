//! minios, the sample operating system: what its shell writes for commands, and that nothing a program does hurts others, on one
//! vCPU and on several.

mod common;

use common::*;
use hv_core::{Config, End, Vm};

/// minios in a VM of so many vCPUs.
struct Minios {
    vcpus: u32,
}

/// Where everything is tried.
const MACHINES: [Minios; 2] = [Minios { vcpus: 1 }, Minios { vcpus: 4 }];

impl Minios {
    fn config(&self, arguments: &[&str]) -> (Config, Console) {
        let (mut config, console) = config("minios", arguments);
        config.vcpus = self.vcpus;
        config.check_tables = true;
        (config, console)
    }

    /// What it writes, and its status.
    fn run(&self, arguments: &[&str]) -> (String, u8) {
        let (config, console) = self.config(arguments);
        let report = wait(Vm::start(config).expect("the VM starts"));
        let output = console.text();
        let End::Shutdown { code } = report.end else { panic!("{:?} {output}", report.end) };
        (output, code)
    }

    /// What the shell writes when it runs `command`, and its status.
    fn shell(&self, command: &str) -> (String, u8) {
        self.run(&["-c", command])
    }

    /// What the shell writes, if all goes well.
    fn output(&self, command: &str) -> String {
        let (output, status) = self.shell(command);
        assert_eq!(status, 0, "{} vCPUs: {output}", self.vcpus);
        output
    }
}

/// The primes up to `limit`, one a line, as minios's program writes them.
fn primes(limit: usize) -> String {
    let is_prime = |n: &usize| (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
    (2..=limit).filter(is_prime).map(|n| format!("{n}\n")).collect()
}

/// Lines, words, bytes.
fn counts(text: &str) -> String {
    format!("{} {} {}\n", text.lines().count(), text.split_whitespace().count(), text.len())
}

#[test]
fn a_pipeline_counts_what_the_host_counts() {
    for minios in MACHINES {
        let primes = primes(100_000);
        assert_eq!(counts(&primes), "9592 9592 56126\n");
        assert_eq!(minios.output("primes 100000 | wc"), counts(&primes));
    }
}

#[test]
fn files_are_read_by_programs() {
    for minios in MACHINES {
        let words = include_str!("../../sample-guests/guests/minios/files/words");
        assert_eq!(minios.output("cat words"), words);
        assert_eq!(minios.output("wc words"), format!("{} words\n", counts(words).trim_end()));
        let with_h: Vec<&str> = words.lines().filter(|word| word.starts_with('h')).collect();
        assert_eq!(minios.output("grep ^h words"), with_h.join("\n") + "\n");
        assert_eq!(minios.output("cat words | grep -v h | wc -l"), {
            format!("{}\n", words.lines().filter(|word| !word.contains('h')).count())
        });
        let (number, _) = words.lines().enumerate().find(|(_, word)| *word == "hypervisor").unwrap();
        assert_eq!(minios.output("grep -n hyper words"), format!("{}:hypervisor\n", number + 1));
        let listed = minios.output("ls");
        assert!(listed.contains(&format!("{} words\n", words.len())), "{listed}");
        assert_eq!(minios.shell("cat none motd | grep -c .").0, "cat: none: no such file\n3\n");
    }
}

#[test]
fn lines_mean_what_they_mean_to_other_shells() {
    for minios in MACHINES {
        assert_eq!(minios.output("echo a  b; echo 'c  |  d' \"e;f\" g\\ h # i"), "a b\nc  |  d e;f g h\n");
        assert_eq!(minios.output("false; echo $?; true; echo $?"), "1\n0\n");
        assert_eq!(minios.shell("exit 7"), (String::new(), 7));
        assert_eq!(minios.shell("false"), (String::new(), 1));
        assert_eq!(minios.shell("nothere; echo $?").0, "sh: nothere: no such command\n127\n");
        assert_eq!(minios.shell("motd; echo $?").0, "sh: motd: not a program\n127\n");
        assert_eq!(minios.shell("echo |").0, "sh: a command is missing behind `|`\n");
    }
}

#[test]
fn a_long_pipeline_passes_everything_on() {
    for minios in MACHINES {
        let command = format!("primes 200000 {} | wc", "| cat ".repeat(20));
        assert_eq!(minios.output(&command), counts(&primes(200_000)));
    }
}

#[test]
fn a_writer_that_nobody_reads_ends() {
    for minios in MACHINES {
        assert_eq!(minios.output("primes 3000000 | true; echo $?; ps | grep -c primes; true"), "0\n0\n");
    }
}

#[test]
fn background_jobs_run_while_the_shell_goes_on() {
    for minios in MACHINES {
        let told = minios
            .output("sleep 3600 & echo first; ps | grep -c sleep; kill 2; wait; ps | grep -c sleep; true");
        assert_eq!(told, "[1] 2\nfirst\n1\n0\n");
        assert_eq!(
            minios.output("sleep 3600 & sleep 3601 & jobs; kill 2 3; wait; jobs"),
            "[1] 2\n[2] 3\n[1] sleep 3600\n[2] sleep 3601\n"
        );
    }
}

#[test]
fn a_program_that_never_gives_the_processor_back_is_preempted_and_killed() {
    for minios in MACHINES {
        let told = minios.output(
            "spin & spin & echo 'still here'; primes 1000 | wc -l; kill 2 3; wait; ps | grep -c spin; true",
        );
        assert_eq!(told, "[1] 2\n[2] 3\nstill here\n168\n0\n");
    }
}

#[test]
fn only_the_program_dies() {
    for minios in MACHINES {
        for (way, why) in [
            ("null", "Write of 0x0,"),
            ("kernel", "Write of 0x100000000000,"),
            ("code", "Write of 0x"),
            ("stack", "Write of 0x"),
            ("memory", "out of memory,"),
            ("illegal", "exception 6,"),
            ("privileged", "exception 13,"),
            ("divide", "exception 0,"),
        ] {
            let told = minios.output(&format!("crash {way}; echo $?"));
            assert!(told.starts_with(&format!("minios: killed crash (2): {why}")), "{way}: {told}");
            assert!(told.ends_with("\n137\n"), "{way}: {told}");
        }
        let told = minios.output("crash panic; echo $?");
        assert!(told.contains("on purpose") && told.ends_with("\n101\n"), "{told}");
    }
}

#[test]
fn a_fork_bomb_ends_and_the_shell_goes_on() {
    for minios in MACHINES {
        let told = minios.output("forkbomb; primes 1000 | wc -l; free");
        assert!(told.contains("too many processes\n168\n"), "{told}");
        assert!(told.contains(" 2 processes,"), "{told}");
    }
}

#[test]
fn programs_that_take_all_memory_are_refused_and_the_kernel_goes_on() {
    for minios in MACHINES {
        let told = minios
            .output("crash memory | crash memory | crash memory & crash memory; wait; primes 1000 | wc -l");
        assert_eq!(told.matches("out of memory").count(), 4, "{told}");
        assert!(told.ends_with("\n168\n"), "{told}");
    }
}

#[test]
fn what_the_kernel_keeps_for_processes_is_refused_before_it_has_no_memory() {
    for minios in MACHINES {
        let (mut config, console) =
            minios.config(&["-c", "pipebomb; crash memory & crash memory; wait; pipebomb; cowtest"]);
        config.memory = 16 << 20;
        let report = wait(Vm::start(config).expect("the VM starts"));
        let told = console.text();
        // Children of a bomb may outlive it and leave nothing for the shell; but the kernel is there to the end.
        assert!(matches!(report.end, End::Shutdown { .. }), "{:?} {told}", report.end);
        assert!(told.contains("pipebomb") && told.contains("out of memory"), "{told}");
    }
}

#[test]
fn parent_and_child_see_their_own_memory() {
    for minios in MACHINES {
        assert_eq!(minios.output("cowtest"), "cowtest: 3 of 3 children and 1 parent saw what was theirs\n");
    }
}

#[test]
fn processes_that_write_and_fork_at_random_see_their_own_memory() {
    for minios in MACHINES {
        for seed in 1..=6 {
            let told = minios.output(&format!("cowtest {seed}"));
            let processes = told.strip_prefix("cowtest: ").and_then(|rest| rest.split_once(" processes saw"));
            let processes = processes.and_then(|(count, _)| count.parse::<u32>().ok());
            assert!(processes.is_some_and(|count| count > 1), "seed {seed}: {told}");
        }
    }
}

#[test]
fn a_thousand_children_leave_nothing_behind() {
    for minios in MACHINES {
        let told = minios.output("forks 100; cowtest; free; forks 1000; cowtest; free");
        let free = |line: &str| line.split_once(" of ")?.0.parse().ok();
        let levels: Vec<u64> = told.lines().filter_map(free).collect();
        assert!(told.contains("forks: 1000 children came and went\n"), "{told}");
        assert_eq!(levels.len(), 2, "{told}");
        assert_eq!(levels[0], levels[1], "{told}");
    }
}

#[test]
fn a_file_of_commands_and_what_is_typed_are_run() {
    for minios in MACHINES {
        let (told, code) = minios.run(&[]);
        assert_eq!(code, 0, "{told}");
        assert!(told.contains("$ primes 100000 | wc\n9592 9592 56126\n"), "{told}");
        assert_eq!(minios.output("echo 'echo typed' | sh"), "$ echo typed\r\ntyped\n$ ");
        let edited = minios.output("echo 'echp\u{8}o typed' | sh");
        assert!(edited.ends_with("\r\ntyped\n$ "), "{edited:?}");
    }
}

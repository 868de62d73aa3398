//! The program `hv` as a script sees it: what it prints where, and its exit codes.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn hv(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hv"));
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// As [`hv`], for tests that send signals: a test that runs in the background of a script ignores some, and `hv` would.
fn hv_with_signals(arguments: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_hv")]);
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    hv(arguments).output().expect("hv can be started")
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).expect("text")
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).expect("text")
}

/// Checks the exit code, and that standard error says all of these.
#[track_caller]
fn assert_told(output: &Output, code: i32, texts: &[&str]) {
    let told = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{told}");
    for text in texts {
        assert!(told.contains(text), "`{text}` is not in:\n{told}");
    }
}

/// The last line of standard error.
fn json_report(output: &Output) -> Value {
    let line = stderr(output).lines().last().expect("a line");
    serde_json::from_str(line).expect("the last line is JSON")
}

/// A directory of this test's own that is removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("Unicode").to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the sample guest `crash`, which dies in the way its argument names.
fn crash(way: &str) -> Output {
    run(&["run", "crash", way, "--timeout", "20s"])
}

#[test]
fn hello_prints_its_greeting_and_nothing_else() {
    let output = run(&["run", "hello"]);
    assert_told(&output, 0, &[]);
    assert!(stdout(&output).starts_with("Hello"), "{}", stdout(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_file_runs_like_a_built_in_image() {
    let directory = Directory::new("file");
    let image = directory.path("my-guest");
    std::fs::write(&image, sample_guests::find("hello").expect("built in").image).expect("written");
    let output = run(&["run", "--memory", "16M", &image, "a", "b"]);
    assert_told(&output, 0, &[]);
    assert!(stdout(&output).starts_with("Hello"));
}

#[test]
fn the_guests_code_is_the_commands() {
    let output = run(&["run", "crash"]); // without an argument it explains itself
    assert_told(&output, 2, &[]);
    assert!(stdout(&output).contains("usage"));
}

#[test]
fn an_unknown_image_is_127_and_the_nearest_name_is_told() {
    assert_told(
        &run(&["run", "helo"]),
        127,
        &["no image `helo`", "did you mean `hello`?", "built-in guests:"],
    );
}

#[test]
fn what_is_no_image_is_126() {
    let directory = Directory::new("bad");
    let whole = sample_guests::find("hello").expect("built in").image;
    for (name, bytes, text) in [
        ("empty", &whole[..0], "0 bytes long"),
        ("header", &whole[..64], "cut short"),
        ("half", &whole[..5000], "cut short"),
        ("script", b"#!/bin/sh\n", "does not begin with an ELF header"),
    ] {
        let path = directory.path(name);
        std::fs::write(&path, bytes).expect("written");
        assert_told(&run(&["run", &path]), 126, &["cannot run", "caused by:", text]);
    }
    assert_told(&run(&["run", &directory.path("")]), 126, &["is a directory"]);
}

#[test]
fn memory_that_does_not_fit_is_125() {
    assert_told(&run(&["run", "hello", "--memory", "0"]), 125, &["0 bytes of memory"]);
    assert_told(&run(&["run", "hello", "--memory", "1T"]), 125, &["512 GiB"]);
    assert_told(&run(&["run", "hello", "--memory", "4K"]), 125, &["--memory"]);
}

#[test]
fn a_wrong_command_line_is_2() {
    assert_told(&run(&["run", "hello", "--memory", "lots"]), 2, &["such as 64M"]);
    assert_told(&run(&["run", "hello", "--timeout", "10"]), 2, &["such as 10s"]);
    assert_told(&run(&["run", "hello", "--memroy", "1M"]), 2, &["--memory"]);
    assert_told(&run(&["run"]), 2, &["<IMAGE>"]);
}

#[test]
fn a_store_to_a_live_table_is_told_with_its_place() {
    let output = run(&["run", "--check-tables", "crash", "table"]);
    assert_told(&output, 134, &["page-table entry at P 0x", "level 1", "MMU_UPDATE", "AddressSpace"]);
}

/// A host that has not enough for another address space gets some back from those that are not in use.
#[test]
fn programs_run_though_the_host_has_few_descriptors() {
    let hv = env!("CARGO_BIN_EXE_hv");
    let script = format!("ulimit -n 40 && exec {hv} run attack --memory 32M -- spread 150 100 1");
    let output = Command::new("sh").args(["-c", &script]).output().expect("a shell can be started");
    assert_told(&output, 0, &[]);
    assert_eq!(stdout(&output), "spread\n");
}

#[test]
fn a_panic_is_101_with_its_message_and_place() {
    assert_told(&crash("panic"), 101, &["guest panic at", "main.rs:", "backtrace"]);
}

#[test]
fn a_crash_is_134_with_cause_registers_and_backtrace() {
    for (way, cause) in [
        ("page-fault", "page fault"),
        ("illegal-instruction", "illegal instruction"),
        ("stack-overflow", "overflowed"),
        ("divide", "divide error"),
        ("syscall", "system call"),
    ] {
        assert_told(&crash(way), 134, &["guest crash", cause, "rip 0x", "backtrace", "main.rs:"]);
    }
}

#[test]
fn a_time_out_is_124_and_says_where_the_guest_was() {
    let begin = Instant::now();
    let output = run(&["run", "crash", "--timeout", "300ms", "loop"]);
    assert!(begin.elapsed() < Duration::from_secs(60));
    assert_told(&output, 124, &["time-out", "300 ms", "backtrace", "--timeout"]);
}

#[test]
fn a_guest_that_hides_or_kills_its_sandbox_is_ended_all_the_same() {
    assert_told(&run(&["run", "crash", "unanswering", "--timeout", "200ms"]), 135, &["did not answer"]);
    assert_told(&crash("lost-stack"), 136, &["the guest is gone"]);
}

#[test]
fn the_json_report_tells_the_same_codes_apart() {
    let output = run(&["run", "--json", "hello"]);
    let report = json_report(&output);
    assert_eq!((&report["exit_code"], &report["cause"]), (&0.into(), &"shutdown".into()));
    assert_eq!(stderr(&output).lines().count(), 1);

    let report = json_report(&run(&["run", "--json", "crash", "divide"]));
    assert_eq!((&report["exit_code"], &report["cause"]), (&134.into(), &"crash".into()));
    assert!(report["backtrace"].as_array().is_some_and(|frames| !frames.is_empty()), "{report}");

    let report = json_report(&run(&["run", "--json", "--timeout", "100ms", "crash", "loop"]));
    assert_eq!((&report["cause"], &report["end"]), (&"time-out".into(), &"stopped".into()));

    let report = json_report(&run(&["run", "--json", "helo"]));
    assert_eq!((&report["exit_code"], &report["cause"]), (&127.into(), &"no-image".into()));
}

/// Starts an endless guest, sends it a signal, and checks how it ends.
#[track_caller]
fn ends_by(signal: rustix::process::Signal, code: i32, text: &str) {
    let mut command = hv_with_signals(&["run", "--timeout", "60s", "crash", "loop"]);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("hv can be started");
    let pid = rustix::process::Pid::from_child(&child);
    std::thread::sleep(Duration::from_millis(500)); // until it catches signals
    rustix::process::kill_process(pid, signal).expect("it runs");
    assert_told(&child.wait_with_output().expect("it ends"), code, &[text, "backtrace"]);
}

#[test]
fn signals_stop_the_guest_and_say_where_it_was() {
    use rustix::process::Signal;
    ends_by(Signal::INT, 130, "stopped by Ctrl-C");
    ends_by(Signal::TERM, 143, "stopped by SIGTERM");
    ends_by(Signal::HUP, 129, "stopped by SIGHUP");
}

/// A terminal sends Ctrl-C to all processes of the foreground group. Sandboxes must not be among them, or the guest
/// is gone before it can say where it was.
#[test]
fn ctrl_c_in_a_terminal_is_for_the_monitor_alone() {
    use rustix::process::{Pid, Signal, kill_process_group};
    use std::os::unix::process::CommandExt;
    let mut command = hv_with_signals(&["run", "--timeout", "60s", "crash", "loop"]);
    command.process_group(0).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().expect("hv can be started");
    let group = Pid::from_child(&child);
    std::thread::sleep(Duration::from_millis(500)); // until it catches signals
    kill_process_group(group, Signal::INT).expect("it runs");
    assert_told(&child.wait_with_output().expect("it ends"), 130, &["stopped by Ctrl-C", "backtrace"]);
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    for (arguments, code) in [
        (&["images"][..], 0),
        (&["run", "--help"], 0),
        (&["run", "hello"], 141),
        (&["run", "bench", "null", "1000"], 141),
    ] {
        let (read, write) = std::io::pipe().expect("a pipe");
        drop(read);
        let output = hv(arguments).stdout(write).output().expect("hv can be started");
        assert_told(&output, code, &[]);
        assert_eq!(stderr(&output), "");
    }
}

#[test]
fn lost_output_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("every Linux has it");
    let output = hv(&["run", "hello"]).stdout(full).output().expect("hv can be started");
    assert_told(&output, 125, &["output could not be written", "No space left"]);
}

#[test]
fn a_reader_that_is_stuck_does_not_keep_the_guest_from_being_stopped() {
    let (_read, mut write) = std::io::pipe().expect("a pipe");
    fill(&mut write);
    let begin = Instant::now();
    let mut command = hv(&["run", "hello", "--timeout", "300ms"]);
    let output = command.stdout(write).output().expect("hv can be started");
    assert!(begin.elapsed() < Duration::from_secs(60));
    assert_told(&output, 124, &["time-out"]);
}

/// Writes to a pipe until it takes no more.
fn fill(pipe: &mut std::io::PipeWriter) {
    use std::io::Write;
    let set = |flags| rustix::fs::fcntl_setfl(&*pipe, flags).expect("a pipe has flags");
    set(rustix::fs::OFlags::NONBLOCK);
    let mut filler = &*pipe;
    while filler.write(&[b'x'; 4096]).is_ok() {}
    set(rustix::fs::OFlags::empty());
}

#[test]
fn images_are_listed() {
    let output = run(&["images"]);
    assert_told(&output, 0, &[]);
    assert!(sample_guests::IMAGES.iter().all(|sample| stdout(&output).contains(sample.name)));

    let list: Value = serde_json::from_slice(&run(&["images", "--json"]).stdout).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(sample_guests::IMAGES.len()));
    assert_eq!(list[0]["abi_version"], hv_abi::ABI_VERSION);
}

#[test]
fn new_writes_a_crate_and_overwrites_nothing() {
    let directory = Directory::new("new");
    let path = directory.path("my-guest");
    let output = run(&["new", &path]);
    assert_told(&output, 0, &[]);
    assert!(stdout(&output).contains("cargo run"));
    for file in ["Cargo.toml", "build.rs", "src/main.rs", ".cargo/config.toml", ".gitignore", "README.md"] {
        let text = std::fs::read_to_string(Path::new(&path).join(file)).expect(file);
        assert!(!text.contains('@'), "{file} has a word that was not filled in");
    }

    assert_told(&run(&["new", &path]), 125, &["is not empty"]);
    assert_told(&run(&["new", &directory.path("2nd")]), 125, &["`2nd`", "--name"]);
    assert_told(&run(&["new", &directory.path("2nd"), "--name", "second"]), 0, &[]);
    assert_told(&run(&["new", &directory.path("x"), "--sdk", "/nowhere"]), 125, &["/nowhere", "--sdk"]);
    assert!(!Path::new(&directory.path("x")).exists());
}

#[test]
fn new_with_tests_adds_to_what_it_writes_without() {
    let directory = Directory::new("new-tests");
    let (plain, tested) = (directory.path("plain"), directory.path("tested"));
    assert_told(&run(&["new", &plain, "--name", "guest-of-mine"]), 0, &[]);
    let output = run(&["new", &tested, "--name", "guest-of-mine", "--with-tests"]);
    assert_told(&output, 0, &[]);
    assert!(stdout(&output).contains("src/bin/tests.rs"));
    for file in ["Cargo.toml", "src/main.rs", "src/lib.rs", ".cargo/config.toml", "README.md", "Cargo.lock"] {
        let text = |path| std::fs::read_to_string(Path::new(path).join(file)).expect(file);
        assert!(text(&tested).starts_with(&text(&plain)), "{file}");
    }
    for file in ["src/bin/tests.rs", "tests/in_vms.rs"] {
        let text = std::fs::read_to_string(Path::new(&tested).join(file)).expect(file);
        assert!(!text.contains('@'), "{file} has a word that was not filled in");
        assert!(!Path::new(&plain).join(file).exists());
    }
}

#[test]
fn tests_of_an_image_are_run_each_with_its_verdict() {
    let directory = Directory::new("test");
    let image = directory.path("suite");
    std::fs::write(&image, sample_guests::find("conformance").expect("built in").image).expect("written");
    let report = directory.path("report.xml");
    let output = run(&["test", &image, "--filter", "VERSION-001", "--junit", &report]);
    assert_told(&output, 0, &[]);
    assert_eq!(stdout(&output), "VERSION-001 version_gives_the_abi_version ... ok\n1 passed, 0 failed\n");
    assert!(std::fs::read_to_string(&report).expect("written").contains("tests=\"1\" failures=\"0\""));

    let output = run(&["test", "conformance", "--list"]);
    assert_told(&output, 0, &[]);
    assert!(stdout(&output).lines().count() > 40, "{}", stdout(&output));

    let verdicts = run(&["test", "conformance", "--json", "--filter", "VERSION-001"]);
    let verdicts: Value = serde_json::from_slice(&verdicts.stdout).expect("JSON");
    assert_eq!((verdicts.as_array().map(Vec::len), &verdicts[0]["outcome"]), (Some(1), &"passed".into()));
}

#[test]
fn what_cannot_be_tested_is_told() {
    assert_told(&run(&["test", "hello"]), 126, &["without tests", "guest_sdk::tests!", "--with-tests"]);
    assert_told(&run(&["test", "helo"]), 127, &["did you mean `hello`?"]);
    assert_told(&run(&["test", "conformance", "--filter", "no such"]), 125, &["\"no such\"", "--list"]);
    assert_told(&run(&["test", "conformance", "--junit", "/nowhere/x"]), 125, &["--junit"]);
    assert_told(&run(&["test"]), 2, &["<IMAGE>"]);
}

#[test]
fn doctor_says_that_guests_run_here() {
    let output = run(&["doctor"]);
    assert_told(&output, 0, &[]);
    assert!(stdout(&output).contains("Guests run here, on the engine `process`."), "{}", stdout(&output));

    let findings: Value = serde_json::from_slice(&run(&["doctor", "--json"]).stdout).expect("JSON");
    assert_eq!(findings["engine"], "process");
    assert!(findings["measured"]["run_ns"].as_u64().is_some_and(|ns| ns > 0));
}

#[test]
fn a_filter_that_cannot_be_read_is_told() {
    let output = hv(&["images"]).env("RUST_LOG", "a=b=c").output().expect("hv can be started");
    assert_told(&output, 125, &["RUST_LOG"]);
}

/// What the help teaches: the exit codes are part of the contract with scripts.
#[test]
fn the_help_of_run_lists_the_exit_codes() {
    let output = run(&["run", "--help"]);
    for code in ["101", "124", "125", "126", "127", "130", "134", "135", "136", "143"] {
        assert!(stdout(&output).contains(&format!("    {code}  ")), "{code}");
    }
}

#[test]
fn a_ramdisk_is_what_the_guest_finds() {
    let directory = Directory::new("ramdisk");
    let archive = directory.path("files.tar");
    std::fs::write(&archive, tar("greet", b"echo hello; echo from a ramdisk\n")).expect("a file");
    let output = run(&["run", "minios", "--ramdisk", &archive, "--", "greet"]);
    assert_told(&output, 0, &[]);
    assert_eq!(stdout(&output), "hello\nfrom a ramdisk\n");
    let output = run(&["run", "minios", "--ramdisk", &directory.path("none")]);
    assert_told(&output, 125, &["the ramdisk `", "/none` cannot be read", "No such file"]);
}

/// An archive of one file, in tar's format: a block that begins with its name, says its length, and has a sum of all its
/// bytes, which counts itself as blanks; then the file in whole blocks, then two empty ones.
fn tar(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..][..text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(124, &format!("{:011o}\0", bytes.len()));
    put(148, "        0"); // the sum to be, and the type: a file
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = [&header, bytes].concat();
    archive.resize(archive.len().next_multiple_of(512) + 1024, 0);
    archive
}

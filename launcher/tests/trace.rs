//! Traces of VMs: of one from its first instruction on, and of running ones, as people and other programs ask for them.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long something may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest that crosses and marks for longer than any test takes.
const LONG: &[&str] = &["bench", "known", "1000000000"];

/// A directory of control sockets and traces of one test's own.
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(TempDir::new().expect("a directory"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn hv(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_hv")]).args(arguments);
        command.current_dir(self.0.path()).env("HV_RUNTIME_DIR", self.file("sockets")).env_remove("RUST_LOG");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn spawn(&self, arguments: &[&str]) -> Running {
        Running(Some(self.hv(arguments).spawn().expect("hv can be started")))
    }

    #[track_caller]
    fn does(&self, arguments: &[&str], code: i32) -> Output {
        told(self.hv(arguments).output().expect("hv can be started"), code)
    }

    /// Starts a VM, and waits until its guest has printed a line.
    fn start(&self, name: &str, guest: &[&str]) -> Running {
        let mut vm = self.spawn(&[&["run", "--timeout", "120s", "--name", name], guest].concat());
        let stdout = vm.0.as_mut().and_then(|child| child.stdout.take()).expect("piped");
        BufReader::new(stdout).read_line(&mut String::new()).expect("the guest prints a line");
        vm
    }

    /// A trace of a running VM into `trace.json`, once it has begun.
    fn trace(&self, name: &str) -> Running {
        let trace = self.spawn(&["trace", name, "--output", "trace.json"]);
        let start = Instant::now();
        while fs::metadata(self.file("trace.json")).map_or(0, |file| file.len()) < 4096 {
            assert!(start.elapsed() < PATIENCE, "nothing is traced");
            std::thread::sleep(Duration::from_millis(5));
        }
        trace
    }

    fn json(&self, file: &str) -> Value {
        let text = fs::read(self.file(file)).expect("the trace is there");
        serde_json::from_slice(&text).expect("a trace is JSON")
    }
}

/// `hv`, killed when it is dropped.
struct Running(Option<Child>);

impl Running {
    fn signal(&self, signal: Signal) {
        let child = self.0.as_ref().expect("it has not been waited for");
        kill_process(Pid::from_child(child), signal).expect("it runs");
    }

    #[track_caller]
    fn ends(mut self, code: i32) -> Output {
        told(self.0.take().expect("once").wait_with_output().expect("it ends"), code)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[track_caller]
fn told(output: Output, code: i32) -> Output {
    assert_eq!(output.status.code(), Some(code), "{}", text(&output.stderr));
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The events of a trace, but for names; checked for what the format asks of each.
fn events(trace: &Value, process: u64) -> Vec<Value> {
    let all = trace["traceEvents"].as_array().expect("an array");
    for event in all {
        assert!(event["name"].is_string() && event["pid"].is_u64() && event["tid"].is_u64(), "{event}");
        let is_time = |field: &str| event[field].as_f64().is_some_and(|time| time >= 0.0);
        match event["ph"].as_str() {
            Some("M") => assert!(event["args"]["name"].is_string(), "{event}"),
            Some("X") => assert!(is_time("ts") && is_time("dur"), "{event}"),
            Some("i") => assert!(is_time("ts") && event["s"] == "t", "{event}"),
            _ => panic!("an event of no kind that is written: {event}"),
        }
    }
    all.iter().filter(|event| event["ph"] != "M" && event["pid"] == process).cloned().collect()
}

fn names(events: &[Value], of: &[&str]) -> Vec<String> {
    let names = events.iter().map(|event| event["name"].as_str().expect("a name"));
    names.filter(|name| of.contains(name)).map(str::to_owned).collect()
}

const MONITOR: u64 = 1;
const GUEST: u64 = 2;

#[test]
fn a_trace_from_the_first_instruction_has_the_guests_crossings_in_their_order() {
    let directory = Directory::new();
    let output = directory.does(&["run", "--trace", "known.json", "bench", "known", "3"], 0);
    assert_eq!(text(&output.stdout), "known\n", "the guest's output is the guest's alone");
    let summary = text(&output.stderr);
    assert!(summary.contains("VERSION") && summary.contains("0 lost"), "{summary}");
    let trace = directory.json("known.json");
    assert_eq!((&trace["otherData"]["dropped"], &trace["otherData"]["complete"]), (&0.into(), &true.into()));

    let seen = events(&trace, MONITOR);
    let expected =
        ["CONSOLE_WRITE", "VERSION", "FEATURES", "VERSION", "FEATURES", "VERSION", "FEATURES", "SHUTDOWN"];
    assert_eq!(names(&seen, &["CONSOLE_WRITE", "VERSION", "FEATURES", "SHUTDOWN"]), expected);
    let mut last = 0.0;
    for event in &seen {
        let (begin, length) = (event["ts"].as_f64().expect("a time"), event["dur"].as_f64().expect("a time"));
        assert!(begin >= last, "{event} begins before the one before it has ended, at {last}");
        last = begin + length - 0.001; // what a decimal fraction of microseconds loses
    }

    let told = events(&trace, GUEST);
    let rounds = |name: &str| -> Vec<_> {
        told.iter()
            .filter(|event| event["name"] == name)
            .map(|event| event["args"]["value"].clone())
            .collect()
    };
    assert_eq!(
        (rounds("round"), rounds("work")),
        (vec![0.into(), 1.into(), 2.into()], vec![0.into(), 1.into(), 2.into()])
    );
    assert!(names(&told, &["block"]).len() >= 3, "each round sleeps");
}

#[test]
fn ctrl_c_ends_a_trace_and_keeps_what_there_was() {
    let directory = Directory::new();
    let _vm = directory.start("vm", LONG);
    let trace = directory.trace("vm");
    trace.signal(Signal::INT);
    let output = trace.ends(0);
    assert!(
        text(&output.stdout).contains("VERSION") && text(&output.stderr).contains("trace.json has the trace")
    );
    let trace = directory.json("trace.json");
    assert_eq!(trace["otherData"]["complete"], true);
    for (process, name) in [(MONITOR, "VERSION"), (GUEST, "round"), (GUEST, "work"), (GUEST, "block")] {
        assert!(!names(&events(&trace, process), &[name]).is_empty(), "there is no {name}");
    }
}

#[test]
fn a_trace_of_a_time_needs_no_file() {
    let directory = Directory::new();
    let _vm = directory.start("vm", LONG);
    let output = directory.does(&["trace", "v", "--for", "300ms", "--summary-only", "--json"], 0);
    let summary: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&summary["complete"], &summary["guest_tells"]), (&true.into(), &true.into()));
    let rows = summary["rows"].as_array().expect("rows");
    let version = rows.iter().find(|row| row["name"] == "VERSION").expect("it is called all the time");
    let number = |field: &str| version[field].as_u64().expect("a number");
    assert!(
        number("count") > 0 && number("p50_ns") <= number("p99_ns") && number("p99_ns") <= number("max_ns")
    );
    assert!(number("total_ns") >= number("max_ns"));
    assert_eq!((&version["seen_by"], &version["kind"]), (&"monitor".into(), &"hypercall".into()));
    assert!(!directory.file("vm.trace.json").exists());
}

#[test]
fn the_end_of_the_vm_ends_its_trace_and_the_file_is_whole() {
    let directory = Directory::new();
    let vm = directory.start("vm", LONG);
    let trace = directory.trace("vm");
    directory.does(&["stop", "vm"], 0);
    vm.ends(143);
    trace.ends(0);
    assert_eq!(directory.json("trace.json")["otherData"]["complete"], true);
}

#[test]
fn a_monitor_that_is_killed_leaves_a_file_that_says_what_is_missing() {
    let directory = Directory::new();
    let vm = directory.start("vm", LONG);
    let trace = directory.trace("vm");
    vm.signal(Signal::KILL);
    let mut trace = trace;
    let output = trace.0.take().expect("once").wait_with_output().expect("it ends");
    assert!(!output.status.success());
    let told = text(&output.stderr);
    assert!(told.contains("the end of the trace of `vm` is missing"), "{told}");
    let trace = directory.json("trace.json");
    assert_eq!(trace["otherData"]["complete"], false);
    assert!(!events(&trace, MONITOR).is_empty());
}

#[test]
fn a_vm_is_traced_by_one_at_a_time() {
    let directory = Directory::new();
    let _vm = directory.start("vm", LONG);
    let first = directory.trace("vm");
    let refused = directory.does(&["trace", "vm"], 125);
    assert!(text(&refused.stderr).contains("being traced already"), "{}", text(&refused.stderr));
    assert!(!directory.file("vm.trace.json").exists(), "nothing was begun");
    first.signal(Signal::INT);
    first.ends(0);
    directory.does(&["trace", "vm", "--for", "50ms"], 0);
    assert_eq!(directory.json("vm.trace.json")["otherData"]["complete"], true);
    assert!(text(&directory.does(&["trace", "x"], 125).stderr).contains("no VM called `x`"));
}

#[test]
fn a_client_that_does_not_read_its_trace_holds_nobody_up() {
    let directory = Directory::new();
    let _vm = directory.start("vm", LONG);
    let mut silent = UnixStream::connect(directory.file("sockets").join("vm.sock")).expect("it listens");
    silent.write_all(b"{\"version\":1,\"request\":\"trace\"}\n").expect("it takes a line");
    let mut first = [0; 20];
    silent.read_exact(&mut first).expect("it answers");
    for _ in 0..3 {
        directory.does(&["pause", "vm"], 0);
        directory.does(&["resume", "vm"], 0);
        directory.does(&["stats", "vm"], 0);
    }
    // It is cut off in the end, and somebody else can trace.
    let start = Instant::now();
    while !directory
        .hv(&["trace", "vm", "--for", "50ms"])
        .output()
        .expect("hv can be started")
        .status
        .success()
    {
        assert!(start.elapsed() < PATIENCE, "it is not cut off");
    }
    drop(silent);
}

#[test]
fn several_vcpus_have_a_track_each() {
    let directory = Directory::new();
    directory.does(&["run", "--cpus", "2", "--trace", "two.json", "bench", "ping", "3"], 0);
    let trace = directory.json("two.json");
    let told = events(&trace, GUEST);
    for vcpu in 0..2 {
        assert!(
            told.iter().any(|event| event["tid"] == vcpu && event["name"] == "block"),
            "vCPU {vcpu} blocks"
        );
    }
}

//! Profiles of running VMs: whose functions they name, what they do with nothing to see, and how they end.

use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long something may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of control sockets and profiles of one test's own.
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

    fn output(&self, arguments: &[&str]) -> Output {
        self.hv(arguments).output().expect("hv can be started")
    }

    /// Starts a VM, and waits until `hv ps` has it.
    fn start(&self, name: &str, guest: &[&str]) -> Running {
        let command = [&["run", "--timeout", "120s", "--name", name], guest].concat();
        let vm = Running(self.hv(&command).spawn().expect("hv can be started"));
        let start = Instant::now();
        while !text(&self.output(&["ps"]).stdout).contains(name) {
            assert!(start.elapsed() < PATIENCE, "it does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        vm
    }

    /// Profiles until there are so many samples, for a host that is busy takes its time; gives the last profile.
    #[track_caller]
    fn profile(&self, arguments: &[&str], samples: u64) -> Value {
        let start = Instant::now();
        loop {
            let command = [&["profile"], arguments, &["--for", "1s", "--json"]].concat();
            let output = self.output(&command);
            assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
            let profile: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
            if profile["samples"].as_u64().expect("a number") >= samples {
                return profile;
            }
            assert!(start.elapsed() < PATIENCE, "too few samples: {profile}");
        }
    }
}

/// `hv run`, killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The hottest function is this one, and has most of the samples.
#[track_caller]
fn assert_hottest(profile: &Value, name: &str, of: &str) {
    let (samples, hottest) = (profile["samples"].as_u64().expect("a number"), &profile["functions"][0]);
    assert_eq!((hottest["name"].as_str(), hottest["of"].as_str()), (Some(name), Some(of)), "{profile}");
    assert!(hottest["own"].as_u64().expect("a number") * 2 > samples, "{profile}");
}

#[test]
fn a_guest_kernel_that_spins_is_found_where_it_spins() {
    let directory = Directory::new();
    let _vm = directory.start("spinning", &["crash", "loop"]);
    let profile = directory.profile(&["spinning", "--output", "k.svg", "--folded", "k.folded"], 20);
    assert_hottest(&profile, "crash::endless", "[kernel]");
    let folded = fs::read_to_string(directory.file("k.folded")).expect("it is written");
    let main = folded.lines().find(|line| line.contains(";crash::main;crash::endless")).expect("its caller");
    assert!(main.starts_with("[kernel];") && !main.contains("[cut off]"), "{main}");
    let svg = fs::read_to_string(directory.file("k.svg")).expect("it is written");
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let svg = roxmltree::Document::parse_with_options(&svg, options).expect("it is XML");
    assert!(svg.descendants().any(|node| node.text().is_some_and(|text| text.contains("crash::endless"))));
}

#[test]
fn a_program_that_spins_is_found_and_told_from_its_kernel() {
    let directory = Directory::new();
    let _vm = directory.start("program", &["minios", "--", "-c", "spin"]);
    let profile = directory.profile(&["program", "--vcpus", "--folded", "p.folded"], 20);
    assert_hottest(&profile, "spin::main", "[user spin]");
    let folded = fs::read_to_string(directory.file("p.folded")).expect("it is written");
    assert!(folded.lines().any(|line| line.starts_with("[vCPU 0];[user spin];")), "{folded}");
}

#[test]
fn a_guest_that_sleeps_is_idle_and_has_no_samples() {
    let directory = Directory::new();
    let _vm = directory.start("idle", &["bench", "idle"]);
    let profile = directory.profile(&["idle"], 0);
    let asked = &profile["asked"];
    assert!(asked["idle"].as_u64() > asked["running"].as_u64(), "{profile}");
}

#[test]
fn what_cannot_be_profiled_is_told() {
    let directory = Directory::new();
    let output = directory.output(&["profile", "nobody"]);
    assert!(text(&output.stderr).contains("no VM called `nobody`"), "{}", text(&output.stderr));
    let _vm = directory.start("one", &["crash", "loop"]);
    for (arguments, told) in [
        (&["profile", "one", "--frequency", "5001"][..], "5001"),
        (&["profile", "one", "--symbols", "missing"], "`missing` has no symbols"),
    ] {
        let output = directory.output(arguments);
        assert!(!output.status.success());
        assert!(text(&output.stderr).contains(told), "{}", text(&output.stderr));
    }
    let mut first = Running(directory.hv(&["profile", "one"]).spawn().expect("hv can be started"));
    let start = Instant::now();
    loop {
        let second = directory.output(&["profile", "one", "--for", "10ms"]);
        if text(&second.stderr).contains("somebody else profiles this VM") {
            break;
        }
        assert!(start.elapsed() < PATIENCE && first.0.try_wait().expect("a child").is_none());
    }
}

#[test]
fn a_profile_ends_with_its_vm_and_keeps_what_it_has() {
    let directory = Directory::new();
    let _vm = directory.start("ends", &["crash", "loop"]);
    let profile = directory.hv(&["profile", "ends", "--json"]).spawn().expect("hv can be started");
    // Until it has begun, it can be profiled by others.
    let start = Instant::now();
    while !text(&directory.output(&["profile", "ends", "--for", "10ms"]).stderr).contains("somebody else") {
        assert!(start.elapsed() < PATIENCE, "it does not begin");
    }
    assert!(directory.output(&["stop", "ends"]).status.success());
    let output = profile.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let profile: Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    assert!(profile["asked"]["running"].as_u64().is_some(), "{profile}");
}

//! Running VMs and what can be done to them by name, as people, scripts and hostile clients do it.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a VM or command may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(300);

/// A directory of control sockets of one test's own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hv-control-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    /// `hv` as somebody starts it by hand: no signal is ignored.
    fn hv(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_hv")]).args(arguments);
        command.env("HV_RUNTIME_DIR", &self.0).env_remove("RUST_LOG").stdin(Stdio::null());
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.hv(arguments).output().expect("hv can be started")
    }

    /// Runs a command that succeeds; gives what it prints.
    #[track_caller]
    fn does(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_told(&output, 0, &[]);
        text(&output.stdout)
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.does(arguments)).expect("it prints JSON")
    }

    /// Starts a VM, and waits until its guest has printed a line.
    fn start(&self, name: &str, guest: &[&str]) -> Vm {
        let mut command = self.hv(&["run", "--timeout", "120s", "--name", name]);
        let mut child = command
            .args(guest)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("hv can be started");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut String::new()).expect("the guest prints a line");
        Vm { child, stdout }
    }

    fn idle(&self, name: &str) -> Vm {
        self.start(name, &["bench", "idle"])
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.sock"))
    }

    fn connect(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.socket(name)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time");
        stream
    }

    /// The sockets that are there.
    fn sockets(&self) -> Vec<String> {
        let names =
            fs::read_dir(&self.0).expect("it is there").map(|entry| entry.expect("an entry").file_name());
        names
            .map(|name| name.into_string().expect("Unicode"))
            .filter(|name| name.ends_with(".sock"))
            .collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `hv run`, killed when it is dropped.
struct Vm {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Vm {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits until it ends; what it printed, and how it ended.
    fn end(mut self) -> Output {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.stdout.read_to_end(&mut stdout).expect("it is read");
        self.child.stderr.take().expect("piped").read_to_end(&mut stderr).expect("it is read");
        Output { status: self.child.wait().expect("it ends"), stdout, stderr }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

/// Checks the exit code, and that standard error says all of these.
#[track_caller]
fn assert_told(output: &Output, code: i32, texts: &[&str]) {
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{told}");
    for text in texts {
        assert!(told.contains(text), "`{text}` is not in:\n{told}");
    }
}

/// Sends a line, gives the answer.
fn asked(stream: &UnixStream, line: &str) -> Value {
    let mut writer = stream;
    writer.write_all(format!("{line}\n").as_bytes()).expect("it takes a line");
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).expect("it answers");
    serde_json::from_str(&answer).expect("the answer is JSON")
}

const STATUS: &str = r#"{"version":1,"request":"status"}"#;

#[test]
fn a_vm_is_listed_paused_resumed_and_stopped_by_its_name() {
    let directory = Directory::new("all");
    assert!(directory.does(&["ps"]).contains("No VM is running"));
    assert_eq!(directory.json(&["ps", "--json"]), Value::Array(Vec::new()));
    let vm = directory.idle("first");
    let mode = fs::metadata(directory.socket("first")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let listed = directory.does(&["ps"]);
    assert!(
        listed.starts_with("NAME") && listed.contains("\nfirst ") && listed.contains("running"),
        "{listed}"
    );

    assert_eq!(directory.does(&["pause", "first"]), "first is paused\n");
    assert_eq!(directory.does(&["pause", "first"]), "first is paused\n");
    let status = directory.json(&["ps", "--json"])[0].clone();
    for (field, value) in [
        ("name", Value::from("first")),
        ("pid", vm.child.id().into()),
        ("image", "bench".into()),
        ("state", "paused".into()),
        ("vcpus", 1.into()),
        ("memory", (64 << 20).into()),
    ] {
        assert_eq!(status[field], value, "{field}");
    }
    assert_eq!(directory.does(&["resume", "fi"]), "first is running\n");
    assert_eq!(directory.does(&["resume", "first"]), "first is running\n");
    assert_eq!(directory.json(&["stats", "first", "--json"])["state"], "running");

    assert_eq!(directory.does(&["stop", "first"]), "first is gone\n");
    assert!(directory.sockets().is_empty());
    assert_told(&vm.end(), 143, &["stopped by `hv stop`", "backtrace", "idle"]);
}

#[test]
fn all_vcpus_of_a_vm_are_paused_and_counted() {
    let directory = Directory::new("vcpus");
    let vm = directory.start("vm", &["--cpus", "3", "bench", "idle"]);
    assert_eq!(directory.json(&["ps", "--json"])[0]["vcpus"], 3);
    for _ in 0..20 {
        directory.does(&["pause", "vm"]);
        assert_eq!(directory.json(&["stats", "vm", "--json"])["state"], "paused");
        directory.does(&["resume", "vm"]);
    }
    assert!(directory.does(&["stats", "vm"]).contains("running, 3 vCPUs"));
    directory.does(&["stop", "vm"]);
    assert_told(&vm.end(), 143, &["stopped by `hv stop`"]);
}

#[test]
fn a_guest_gives_memory_up_and_takes_it_back() {
    let directory = Directory::new("balloon");
    let _vm = directory.start("vm", &["minios", "--", "-c", "echo there; sleep 100"]);
    for (size, bytes) in [("16M", 16 << 20), ("0", 0)] {
        let told = directory.does(&["balloon", "vm", size]);
        assert!(told.starts_with("vm is asked to give up"), "{told}");
        let start = Instant::now();
        loop {
            let status = directory.json(&["stats", "vm", "--json"]);
            assert_eq!(status["balloon_target"], bytes);
            if status["ballooned"] == bytes {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "the guest does not follow: {status}");
        }
    }
    assert_told(&directory.output(&["balloon", "vm", "lots"]), 2, &["such as 64M"]);
}

#[test]
fn stats_are_of_the_running_vm() {
    let directory = Directory::new("stats");
    let _vm = directory.start("busy", &["minios", "--", "-c", "echo there; spin"]);
    let stats = |field: &str| directory.json(&["stats", "busy", "--json"])[field].as_u64().expect("a number");
    let (before, start) = (stats("sandbox_cpu_ns"), Instant::now());
    while stats("sandbox_cpu_ns") <= before {
        assert!(start.elapsed() < PATIENCE, "a program that spins takes time");
    }
    assert!((1..stats("memory")).contains(&stats("resident")));
    assert!(stats("monitor_cpu_ns") > 0 && stats("up_ns") > 0);
    let counters = directory.json(&["stats", "busy", "--json"])["counters"].clone();
    assert!(counters["hypercalls"].as_u64() > Some(0), "{counters}");
    let sheet = directory.does(&["stats", "busy"]);
    for row in ["state", "CPU", "memory", "hypercalls", "traps", "sleeps", "spinning"] {
        assert!(sheet.contains(&format!("\n  {row} ")), "{row} is not in:\n{sheet}");
    }
}

#[test]
fn names_are_completed_and_wrong_ones_told_what_there_is() {
    let directory = Directory::new("names");
    assert_told(&directory.output(&["stop", "x"]), 125, &["no VM called `x`", "no VM is running", "hv run"]);
    let _vms = [directory.idle("web"), directory.idle("web-1"), directory.idle("db")];
    for command in ["pause", "resume", "stop", "stats"] {
        assert_told(
            &directory.output(&[command, "x"]),
            125,
            &["no VM called `x`", "running: db, web, web-1"],
        );
        assert_told(&directory.output(&[command, "we"]), 125, &["several names: web, web-1"]);
        if command != "stats" {
            assert_told(&directory.output(&[command]), 2, &["<NAME>"]);
        }
    }
    assert_eq!(directory.does(&["pause", "d"]), "db is paused\n");
    assert_eq!(directory.does(&["pause", "web"]), "web is paused\n"); // a whole name is no beginning
    assert_eq!(directory.json(&["ps", "--json"]).as_array().map(Vec::len), Some(3));
}

#[test]
fn a_name_is_checked_and_taken_once() {
    let directory = Directory::new("taken");
    for name in ["", "a/b", ".lock", "..", "a b", &"x".repeat(65)] {
        assert_told(&directory.output(&["run", "hello", "--name", name]), 2, &["a name "]);
    }
    let _vm = directory.idle("taken");
    let told = ["cannot be called `taken`", "a VM called `taken` is running", "hv ps"];
    assert_told(&directory.output(&["run", "hello", "--name", "taken"]), 125, &told);
    assert_eq!(directory.json(&["ps", "--json"])[0]["name"], "taken", "it is still served");
}

#[test]
fn a_vm_without_a_name_is_called_after_its_image() {
    let directory = Directory::new("default");
    let command =
        directory.hv(&["run", "bench", "idle"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = command.expect("hv can be started");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    stdout.read_line(&mut String::new()).expect("the guest prints a line");
    let vm = Vm { child, stdout };
    assert_eq!(directory.json(&["ps", "--json"])[0]["name"], format!("bench-{}", vm.child.id()));
    directory.does(&["stop", "bench"]);
}

#[test]
fn what_a_killed_monitor_leaves_is_nobodys() {
    let directory = Directory::new("stale");
    let vm = directory.idle("killed");
    vm.signal(Signal::KILL);
    drop(vm.end());
    assert_eq!(directory.sockets(), ["killed.sock"]);
    assert_told(&directory.output(&["stop", "killed"]), 125, &["no VM called `killed`", "no VM is running"]);
    // Its name can be had,
    let vm = directory.idle("killed");
    assert_eq!(directory.does(&["stop", "killed"]), "killed is gone\n");
    assert_told(&vm.end(), 143, &[]);
    // and is cleared away.
    drop(UnixListener::bind(directory.socket("old")).expect("a socket"));
    assert_eq!(directory.sockets(), ["old.sock"]);
    directory.does(&["ps"]);
    assert!(directory.sockets().is_empty());
}

/// Ways in which a directory is not private, each with what is told.
fn not_private(directory: &Path) -> Vec<(PathBuf, &'static str)> {
    fs::create_dir(directory).expect("a directory");
    let at = |name| directory.join(name);
    fs::create_dir(at("open")).expect("a directory");
    fs::set_permissions(at("open"), fs::Permissions::from_mode(0o755)).expect("it is ours");
    fs::write(at("file"), "").expect("a file");
    fs::create_dir(at("private")).expect("a directory");
    fs::set_permissions(at("private"), fs::Permissions::from_mode(0o700)).expect("it is ours");
    symlink(at("private"), at("link")).expect("a link");
    // Everybody but root finds root's.
    let foreign = if rustix::process::geteuid().is_root() {
        fs::create_dir(at("foreign")).expect("a directory");
        std::os::unix::fs::chown(at("foreign"), Some(1), None).expect("root may");
        at("foreign")
    } else {
        "/usr".into()
    };
    vec![
        (at("open"), "has mode 0755"),
        (at("file"), "not a directory"),
        (at("link"), "symbolic link"),
        (foreign, "belongs to user"),
        (at("none/none"), "cannot be made"),
    ]
}

#[test]
fn a_directory_that_is_not_private_is_not_used() {
    let directory = Directory::new("foreign");
    for (path, told) in not_private(&directory.0) {
        let hv = |arguments: &[&str]| {
            directory.hv(arguments).env("HV_RUNTIME_DIR", &path).output().expect("hv can be started")
        };
        assert_told(&hv(&["run", "hello", "--name", "x"]), 125, &["cannot be called `x`", told]);
        assert_told(&hv(&["ps"]), 125, &["cannot be looked for", told]);
        assert_told(&hv(&["stop", "x"]), 125, &["cannot be looked for", told]);
        let output = hv(&["run", "hello"]);
        assert_told(&output, 0, &["WARN", "will not find this VM", told]);
        assert!(text(&output.stdout).starts_with("Hello"));
    }
    assert!(fs::read_dir(directory.0.join("private")).expect("it is there").next().is_none(), "by the link");
}

#[test]
fn the_directory_is_that_of_the_session_if_there_is_one() {
    let directory = Directory::new("session");
    fs::create_dir(&directory.0).expect("a directory");
    let mut command = directory.hv(&["run", "hello", "--name", "x"]);
    let output = command.env_remove("HV_RUNTIME_DIR").env("XDG_RUNTIME_DIR", &directory.0).output();
    assert_told(&output.expect("hv can be started"), 0, &[]);
    let made = fs::metadata(directory.0.join("hv")).expect("it was made");
    assert_eq!(made.permissions().mode() & 0o777, 0o700);
}

#[test]
fn hostile_clients_get_an_answer_or_none_and_hold_nobody_up() {
    let directory = Directory::new("hostile");
    let vm = directory.idle("vm");
    for garbage in ["", "garbage", "\u{1f600}", "{}", "[[[[", r#"{"version":1,"request":"explode"}"#, "null"]
    {
        let answer = asked(&directory.connect("vm"), garbage);
        let told = answer["error"].as_str().expect("an error");
        assert!(told.contains("expected a request such as"), "{told}");
    }
    let answer = asked(&directory.connect("vm"), r#"{"version":99,"request":"stop"}"#);
    assert!(answer["error"].as_str().is_some_and(|told| told.contains("found 99")), "{answer}");

    let mut endless = directory.connect("vm");
    let sent = (0..256).try_for_each(|_| endless.write_all(&[b'x'; 4096])); // until it is cut off
    let mut told = String::new();
    let _ = endless.read_to_string(&mut told); // and then perhaps an error
    assert!(sent.is_err() || told.contains("at most 4096 bytes"), "{told}");

    // Asks, and does not listen.
    let mut deaf = directory.connect("vm");
    deaf.set_write_timeout(Some(PATIENCE)).expect("a time");
    let flood = format!("{STATUS}\n").repeat(100);
    while deaf.write_all(flood.as_bytes()).is_ok() {}

    let half = directory.connect("vm");
    (&half).write_all(&STATUS.as_bytes()[..10]).expect("it takes half a line");
    let silent: Vec<_> = (0..100).map(|_| directory.connect("vm")).collect();
    assert_eq!(directory.json(&["ps", "--json"])[0]["name"], "vm");
    drop((half, silent));
    assert_eq!(directory.does(&["stop", "vm"]), "vm is gone\n");
    assert_told(&vm.end(), 143, &["`hv stop`"]);
}

#[test]
fn many_requests_come_over_one_connection() {
    let directory = Directory::new("connection");
    let _vm = directory.idle("vm");
    let stream = directory.connect("vm");
    for request in ["pause", "status", "resume", "status"].repeat(20) {
        let answer = asked(&stream, &format!(r#"{{"version":1,"request":"{request}"}}"#));
        assert_eq!(answer["version"], 1);
        assert!(answer.get("done").is_some() || answer["status"]["name"] == "vm", "{answer}");
    }
    // Two at a time, and in pieces.
    let (first, second) = STATUS.split_at(7);
    (&stream).write_all(format!("{STATUS}\n{first}").as_bytes()).expect("it takes them");
    let mut answers = BufReader::new(&stream).lines().map(|line| line.expect("it answers"));
    assert!(answers.next().is_some_and(|line| line.contains("status")));
    (&stream).write_all(format!("{second}\n").as_bytes()).expect("it takes it");
    assert!(answers.next().is_some_and(|line| line.contains("status")));
}

#[test]
fn twenty_clients_at_once_are_all_answered() {
    let directory = Directory::new("twenty");
    let _vm = directory.idle("vm");
    let ask = |i: usize| {
        let stream = directory.connect("vm");
        for _ in 0..20 {
            let request = ["status", "pause", "resume"][i % 3];
            let answer = asked(&stream, &format!(r#"{{"version":1,"request":"{request}"}}"#));
            assert!(answer.get("error").is_none(), "{answer}");
        }
    };
    std::thread::scope(|scope| (0..20).for_each(|i| drop(scope.spawn(move || ask(i)))));
}

#[test]
fn a_guest_counts_on_through_a_storm_of_pauses() {
    let directory = Directory::new("storm");
    let vm = directory.start("vm", &["minios", "--", "-c", "echo there; primes 200000 | wc; forks 20"]);
    let stream = directory.connect("vm");
    let ended = (0..300).any(|i| {
        std::thread::sleep(Duration::from_micros(i % 17 * 100));
        ["pause", "resume"].iter().any(|request| {
            let line = format!("{{\"version\":1,\"request\":\"{request}\"}}\n");
            let sent = (&stream).write_all(line.as_bytes());
            let mut answer = String::new();
            let read = BufReader::new(&stream).read_line(&mut answer);
            let gone = sent.is_err() || !matches!(read, Ok(1..)) || answer.contains("has ended");
            assert!(gone || answer.contains("done"), "{answer}");
            gone
        })
    });
    let output = vm.end();
    assert_told(&output, 0, &[]);
    assert!(text(&output.stdout).contains("17984 17984"), "{ended}: {}", text(&output.stdout));
}

#[test]
fn a_paused_vm_is_stopped_by_all_that_stops_one() {
    let directory = Directory::new("paused");
    let paused = |arguments: &[&str]| {
        let mut command = directory.hv(&["run", "--name", "vm"]);
        let command = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.args(["bench", "idle"]).spawn().expect("hv can be started");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut String::new()).expect("the guest prints a line");
        directory.does(&["pause", "vm"]);
        Vm { child, stdout }
    };
    let vm = paused(&[]);
    directory.does(&["stop", "vm"]);
    assert_told(&vm.end(), 143, &["stopped by `hv stop`", "backtrace"]);
    let vm = paused(&[]);
    vm.signal(Signal::INT);
    assert_told(&vm.end(), 130, &["stopped by Ctrl-C", "backtrace"]);
    let vm = paused(&["--timeout", "5s"]);
    assert_told(&vm.end(), 124, &["time-out", "backtrace"]);
    assert!(directory.sockets().is_empty());
}

#[test]
fn no_socket_is_left_whichever_way_a_guest_ends() {
    let directory = Directory::new("gone");
    for (guest, code) in [
        (&["hello"][..], 0),
        (&["crash", "panic"], 101),
        (&["crash", "divide"], 134),
        (&["crash", "lost-stack"], 136),
        (&["crash", "unanswering", "--timeout", "200ms"], 135),
        (&["crash", "loop", "--timeout", "200ms"], 124),
        (&["hello", "--memory", "4K"], 125), // it does not even start
    ] {
        let output = directory.hv(&["run", "--name", "vm"]).args(guest).output().expect("hv can be started");
        assert_told(&output, code, &[]);
        assert_eq!(directory.sockets(), [""; 0], "{guest:?}");
    }
}

/// The first signal waits for the guest, the second for nobody.
#[test]
fn no_socket_is_left_after_two_signals() {
    let directory = Directory::new("signals");
    let vm = directory.idle("vm");
    directory.does(&["pause", "vm"]);
    vm.signal(Signal::TERM);
    vm.signal(Signal::INT);
    let code = vm.end().status.code();
    assert!(matches!(code, Some(130 | 143)), "{code:?}");
    assert!(directory.sockets().is_empty());
}

/// Something that listens like a VM: it takes one connection for each list of answers, and gives one for each request.
fn listen_as(directory: &Directory, name: &str, connections: &'static [&'static [&'static str]]) {
    let _ = fs::create_dir(&directory.0);
    fs::set_permissions(&directory.0, fs::Permissions::from_mode(0o700)).expect("it is ours");
    let listener = UnixListener::bind(directory.socket(name)).expect("a socket");
    std::thread::spawn(move || {
        let mut kept = Vec::new(); // until the end of the test
        for answers in connections {
            let (stream, _) = listener.accept().expect("somebody connects");
            let mut requests = BufReader::new(stream.try_clone().expect("a descriptor"));
            for answer in *answers {
                requests.read_line(&mut String::new()).expect("a request");
                (&stream).write_all(format!("{answer}\n").as_bytes()).expect("it is taken");
            }
            kept.push(stream);
        }
        loop {
            std::thread::park();
        }
    });
}

const A_STATUS: &str = r#"{"version":1,"status":{"name":"vm","pid":4711,"image":"x","state":"running","vcpus":1,"memory":1,"resident":1,"reported":0,"ballooned":0,"balloon_target":0,"up_ns":1,"monitor_cpu_ns":1,"sandbox_cpu_ns":1,"counters":{"hypercalls":5,"of-a-later-hv":6}}}"#;

#[test]
fn a_vm_that_does_not_go_is_told_with_what_to_do() {
    let directory = Directory::new("stays");
    listen_as(&directory, "vm", &[&[A_STATUS, r#"{"version":1,"done":null}"#]]);
    let output = directory.output(&["stop", "vm", "--timeout", "100ms"]);
    assert_told(&output, 124, &["still there after 100 ms", "--timeout", "kill -KILL 4711"]);
}

#[test]
fn answers_of_other_versions_are_read_or_told() {
    let directory = Directory::new("versions");
    listen_as(&directory, "later", &[&[A_STATUS]]);
    assert_eq!(directory.json(&["stats", "later", "--json"])["counters"]["hypercalls"], 5);
    listen_as(&directory, "odd", &[&[r#"{"version":1,"astonishment":7}"#], &["nonsense"], &[""]]);
    for _ in 0..3 {
        assert_told(&directory.output(&["stats", "odd"]), 125, &["`odd`", "not one that this hv knows"]);
    }
}

#[test]
fn one_that_does_not_answer_keeps_no_other_from_being_listed() {
    let directory = Directory::new("mute");
    listen_as(&directory, "mute", &[&[]]);
    let _vm = directory.idle("vm");
    let output = directory.output(&["ps", "--json"]);
    assert_told(&output, 0, &["`mute` is left out", "does not answer"]);
    let listed: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((listed.as_array().map(Vec::len), &listed[0]["name"]), (Some(1), &"vm".into()));
}

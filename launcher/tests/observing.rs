//! What there is to see of running VMs: `hv stats` in all its forms, and `hv top`.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a VM or command may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of control sockets of one test's own, removed at the end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hv-observing-{name}-{}", std::process::id()));
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
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.does(arguments)).expect("it prints JSON")
    }

    /// Starts a VM, and waits until its guest has printed a line.
    fn start(&self, name: &str, guest: &[&str]) -> Running {
        let mut command = self.hv(&["run", "--timeout", "120s", "--name", name]);
        let child = command.args(guest).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        Running::new(child.expect("hv can be started"))
    }

    fn idle(&self, name: &str) -> Running {
        self.start(name, &["bench", "idle"])
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that has printed a line, killed when it is dropped.
struct Running {
    child: Child,
    line: String,
}

impl Running {
    fn new(mut child: Child) -> Self {
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut line).expect("it prints a line");
        child.stdout = Some(stdout.into_inner());
        Self { child, line }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Samples by their names with their labels, as they are written.
type Samples = BTreeMap<String, f64>;

/// Reads Prometheus's text format, version 0.0.4, and takes nothing that promtool would not: each family is told of once, with
/// its help and type, its samples are together and of different labels, and counters are called so.
#[track_caller]
fn parse(text: &str) -> Samples {
    let mut samples = Samples::new();
    let mut families = BTreeSet::new();
    let mut family: Option<(String, String)> = None;
    let mut lines = text.split_terminator('\n').peekable();
    assert!(text.ends_with('\n'), "the last line has no end");
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect("a help text");
            assert!(!help.is_empty() && families.insert(name.to_string()), "{line}");
            let of_type = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")));
            let of_type = of_type.expect("a type after the help");
            assert!(matches!(of_type, "counter" | "gauge"), "{of_type}");
            assert_eq!(of_type == "counter", name.ends_with("_total"), "{name}");
            assert!(name.starts_with("hv_") && is_name(name), "{name}");
            assert!(lines.peek().is_some_and(|line| line.starts_with(name)), "{name} has no samples");
            family = Some((name.to_string(), of_type.to_string()));
            continue;
        }
        let (name, of_type) = family.as_ref().expect("a family before its samples");
        let rest = line.strip_prefix(name.as_str()).expect("samples of the family");
        let rest = rest.strip_prefix('{').expect("labels: each sample is of a VM");
        let (labels, value) = labels(rest);
        assert_eq!(labels.first().map(|(name, _)| name.as_str()), Some("vm"), "{line}");
        let value: f64 = value.strip_prefix(' ').expect("a space").parse().expect("a number");
        assert!(value >= 0.0 || of_type == "gauge", "{line}");
        let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let key = format!("{name} {}", labels.join(" "));
        assert!(samples.insert(key, value).is_none(), "twice: {line}");
    }
    samples
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// Labels up to the closing brace, and what is behind it.
#[track_caller]
fn labels(text: &str) -> (Vec<(String, String)>, &str) {
    let mut labels = Vec::new();
    let mut rest = text;
    loop {
        let (name, behind) = rest.split_once("=\"").expect("a label");
        assert!(is_name(name) && !name.starts_with("__"), "{name}");
        let mut value = String::new();
        let mut chars = behind.char_indices();
        let end = loop {
            match chars.next().expect("a closing quote") {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match chars.next().expect("what is escaped").1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("\\{c} is no escape"),
                }),
                (_, c) => value.push(c),
            }
        };
        labels.push((name.to_string(), value));
        match behind[end..].strip_prefix(',') {
            Some(more) => rest = more,
            None => return (labels, behind[end..].strip_prefix('}').expect("a closing brace")),
        }
    }
}

#[test]
fn stats_tell_kinds_vcpus_and_devices_of_one_vm_or_all() {
    let directory = Directory::new("stats");
    assert!(directory.does(&["stats"]).contains("No VM is running"));
    assert_eq!(directory.json(&["stats", "--json"]), Value::Array(Vec::new()));
    assert_eq!(directory.does(&["stats", "--prometheus"]), "");
    let _idle = directory.start("idle", &["--cpus", "2", "bench", "idle"]);
    let _busy = directory.start("busy", &["minios", "--", "-c", "echo there; sleep 1000"]);
    let all = directory.json(&["stats", "--json"]);
    assert_eq!((&all[0]["name"], &all[1]["name"]), (&"busy".into(), &"idle".into()));
    assert_eq!(all[1]["vcpu_stats"].as_array().map(Vec::len), Some(2));
    let busy = directory.json(&["stats", "busy", "--json"]);
    let of =
        |path: &str| busy.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path} in {busy}"));
    assert!(of("/counters/calls/CONSOLE_WRITE") > 0 && of("/counters/calls/enter_user") > 0);
    let kinds = busy["counters"]["trap_kinds"].as_object().expect("kinds").values();
    assert_eq!(kinds.filter_map(Value::as_u64).sum::<u64>(), of("/counters/traps"));
    let calls = busy["counters"]["calls"].as_object().expect("calls").values();
    assert_eq!(calls.filter_map(Value::as_u64).sum::<u64>(), of("/counters/hypercalls"));
    assert!(of("/spaces/made") > 0 && of("/spaces/shadow_misses") > 0 && of("/spaces/entries_changed") > 0);
    assert!(of("/spaces/mappings") >= of("/spaces/batches"));
    assert!(of("/vcpu_stats/0/kernel_cpu_ns") > 0 && of("/vcpu_stats/0/counters/hypercalls") > 0);
    let kinds = busy["devices"].as_array().expect("devices").iter().map(|device| &device["kind"]);
    assert!(kinds.clone().any(|kind| kind == 4), "it has an entropy device: {busy}");
    let sheets = directory.does(&["stats"]);
    for part in ["busy (minios", "idle (bench", " CONSOLE_WRITE", "\n  DEVICE ", " entropy ", "\n  VCPU "] {
        assert!(sheets.contains(part), "{part} is not in:\n{sheets}");
    }
}

#[test]
fn metrics_are_of_prometheus_format() {
    let directory = Directory::new("metrics");
    let _vm = directory.start("web", &["minios", "--", "-c", "echo there; sleep 1000"]);
    let samples = parse(&directory.does(&["stats", "--prometheus"]));
    for (sample, value) in
        [("hv_up vm=web", 1.0), ("hv_vcpus vm=web", 1.0), ("hv_info vm=web image=minios", 1.0)]
    {
        assert_eq!(samples.get(sample), Some(&value), "{sample} in {samples:?}");
    }
    for sample in [
        "hv_hypercalls_total vm=web call=CONSOLE_WRITE",
        "hv_vcpu_hypercalls_total vm=web vcpu=0",
        "hv_cpu_seconds_total vm=web part=guest",
        "hv_memory_resident_bytes vm=web",
        "hv_shadow_lookups_total vm=web result=miss",
    ] {
        assert!(samples.get(sample) > Some(&0.0), "{sample} in {samples:?}");
    }
    assert!(samples.contains_key("hv_device_requests_total vm=web device=0 kind=entropy"), "{samples:?}");
    assert_eq!(parse(&directory.does(&["stats", "web", "--prometheus"])).len(), samples.len());
}

/// Sends a request, gives the status line, the headers and the body.
fn exchanged(address: &str, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers, and closes");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an empty line");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    assert_eq!(length.parse(), Ok(body.len()), "{head}");
    (head.to_string(), body.to_string())
}

#[test]
fn an_endpoint_tells_of_the_vms_that_run_when_it_is_scraped() {
    let directory = Directory::new("serve");
    let child = directory.hv(&["stats", "--serve", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn();
    let mut served = Running::new(child.expect("hv can be started"));
    let address = served.line.strip_prefix("http://").and_then(|line| line.strip_suffix("/metrics\n"));
    let address = address.expect("it says where it listens").to_string();
    let scraped = || {
        let (head, body) = exchanged(&address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
        body
    };
    assert_eq!(scraped(), "");
    let first = directory.idle("first");
    let _second = directory.idle("second");
    let samples = parse(&scraped());
    assert_eq!((samples.get("hv_up vm=first"), samples.get("hv_up vm=second")), (Some(&1.0), Some(&1.0)));
    first.signal(Signal::STOP); // it cannot answer, and holds the other up for a moment only
    for _ in 0..3 {
        let samples = parse(&scraped());
        assert_eq!((samples.get("hv_up vm=first"), samples.get("hv_up vm=second")), (Some(&0.0), Some(&1.0)));
        assert!(!samples.contains_key("hv_vcpus vm=first") && samples.contains_key("hv_vcpus vm=second"));
    }
    first.signal(Signal::CONT);
    drop(first);
    assert!(!parse(&scraped()).contains_key("hv_up vm=first"));
    for (request, status) in [("PUT /metrics HTTP/1.1\r\n\r\n", "405"), ("nonsense\r\n\r\n", "400")] {
        let (head, _) = exchanged(&address, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    }
    let taken = directory.output(&["stats", "--serve", &address]);
    assert!(String::from_utf8_lossy(&taken.stderr).contains("cannot be listened on"));
    served.signal(Signal::INT);
    assert_eq!(served.child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn top_prints_tables_and_lines_of_all_vms() {
    let directory = Directory::new("batch");
    let empty = directory.does(&["top", "--batch", "1", "--interval", "10ms"]);
    assert!(empty.contains("No VM is running"), "{empty}");
    let busy = directory.start("busy", &["minios", "--", "-c", "echo there; spin"]);
    let _idle = directory.idle("idle");
    let text = directory.does(&["top", "--batch", "2", "--interval", "500ms"]);
    let tables: Vec<&str> = text.split("\n\n").collect();
    assert_eq!(tables.len(), 2, "{text}");
    for table in tables {
        let lines: Vec<_> = table.lines().collect();
        assert!(lines[0].starts_with("2 VMs: 2 running; CPU "), "{text}");
        assert!(lines[1].starts_with("NAME ") && lines[1].contains(" TRAP/S "), "{text}");
        assert!(lines[2].starts_with("busy ") && lines[3].starts_with("idle "), "by processor time: {text}");
    }
    busy.signal(Signal::STOP);
    let line = directory.json(&["top", "--batch", "1", "--json", "--sort", "name", "--interval", "200ms"]);
    assert!(line["unix_ms"].is_u64());
    assert_eq!((&line["vms"][0]["name"], &line["vms"][1]["name"]), (&"busy".into(), &"idle".into()));
    assert!(line["vms"][0]["silent"].is_string() && line["vms"][1]["silent"].is_null(), "{line}");
    assert!(line["vms"][1]["rates"]["cpu_percent"].is_f64(), "{line}");
    busy.signal(Signal::CONT);
    let told = directory.output(&["top"]);
    assert_eq!(told.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&told.stderr).contains("hv top --batch 1"));
}

/// A terminal, and somebody who sits at it.
struct Terminal {
    user: File,
    program: File,
    shown: Vec<u8>,
}

impl Terminal {
    fn new() -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&user).and_then(|()| unlockpt(&user)).expect("its other end");
        let name = ptsname(&user, Vec::new()).expect("its name");
        let program = File::options().read(true).write(true).open(name.to_str().expect("Unicode"));
        let program = program.expect("its other end");
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&program, size).expect("it has a size");
        Self { user: user.into(), program, shown: Vec::new() }
    }

    fn start(&self, command: &mut Command) -> Child {
        let end = || Stdio::from(self.program.try_clone().expect("a descriptor"));
        command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("hv can be started")
    }

    fn keys(&mut self, keys: &str) {
        self.user.write_all(keys.as_bytes()).expect("a terminal takes keys");
    }

    /// Waits until this is shown, and forgets all before it.
    #[track_caller]
    fn wait_for(&mut self, text: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.shown.windows(text.len()).position(|shown| shown == text.as_bytes()) {
                self.shown.drain(..at + text.len());
                return;
            }
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now())).expect("a minute");
            let ready = poll(&mut [PollFd::new(&self.user, PollFlags::IN)], Some(&left));
            let shown = String::from_utf8_lossy(&self.shown);
            assert!(ready.expect("it can be waited for") > 0, "{text:?} is not in {shown:?}");
            let mut piece = [0; 4096];
            let length = self.user.read(&mut piece).expect("the other end is open");
            self.shown.extend(&piece[..length]);
        }
    }
}

const ENTERS_SCREEN: &str = "\x1b[?1049h";
const LEAVES_SCREEN: &str = "\x1b[?1049l";

#[test]
fn top_shows_vms_on_a_terminal_and_leaves_it_as_it_was() {
    let directory = Directory::new("terminal");
    let _vm = directory.idle("shown");
    for (key, signal, code) in [("q", None, 0), ("\x03", None, 0), ("", Some(Signal::TERM), 143)] {
        let mut terminal = Terminal::new();
        let modes =
            |terminal: &Terminal| format!("{:?}", tcgetattr(&terminal.program).expect("it is a terminal"));
        let before = modes(&terminal);
        let mut top = terminal.start(&mut directory.hv(&["top", "--interval", "200ms"]));
        terminal.wait_for(ENTERS_SCREEN);
        terminal.wait_for("hv top");
        terminal.wait_for("shown");
        terminal.keys("\r");
        terminal.wait_for("MONITOR%");
        terminal.keys(key);
        if let Some(signal) = signal {
            kill_process(Pid::from_child(&top), signal).expect("it runs");
        }
        terminal.wait_for(LEAVES_SCREEN);
        assert_eq!(top.wait().expect("it ends").code(), Some(code));
        assert_eq!(modes(&terminal), before);
    }
}

#[test]
fn a_vm_is_paused_and_let_run_on_by_a_key() {
    let directory = Directory::new("key");
    let _vm = directory.idle("held");
    let mut terminal = Terminal::new();
    let mut top = terminal.start(&mut directory.hv(&["top", "--interval", "200ms"]));
    terminal.wait_for("running");
    for state in ["paused", "running"] {
        let start = Instant::now();
        // A key that comes before it is known what the last one did does that again.
        while directory.json(&["stats", "held", "--json"])["state"] != state {
            assert!(start.elapsed() < PATIENCE, "it is not {state}");
            terminal.keys("p");
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    terminal.keys("q");
    terminal.wait_for(LEAVES_SCREEN);
    assert_eq!(top.wait().expect("it ends").code(), Some(0));
}

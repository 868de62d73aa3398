//! Networks of `hv run`: the processes beside the monitor, how they begin and end, and what is said when they cannot be had.

use hv_core::net::frames::{FrameReader, FrameWriter};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(300);

fn hv(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hv"));
    command.args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A directory of control sockets of one test's own.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hv-net-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self(path)
    }

    fn hv(&self, arguments: &[&str]) -> Command {
        let mut command = hv(arguments);
        command.env("HV_RUNTIME_DIR", &self.0);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.hv(arguments).output().expect("hv can be started")
    }

    /// What is in it, but for the lock.
    fn entries(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).expect("it was made").map(|entry| entry.unwrap().path());
        entries.filter(|path| !path.ends_with(".lock")).collect()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "it took too long: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process of a network, which has said that it is ready.
fn ready(command: &mut Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().expect("hv can be started");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

fn assert_locked_down(process: &Child) {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).expect("it lives");
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "Threads:\t1"] {
        assert!(status.lines().any(|found| found == line), "{line:?} is not in {status}");
    }
}

struct Card {
    socket: UnixStream,
    reader: FrameReader,
}

impl Card {
    fn new(socket: UnixStream) -> Self {
        Self { socket, reader: FrameReader::new(0) }
    }

    fn send(&self, frame: &[u8]) {
        let mut writer = FrameWriter::new(0);
        writer.push(frame.len(), |to| to.copy_from_slice(frame));
        writer.flush(&self.socket).unwrap();
        assert!(writer.is_empty());
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut received = Vec::new();
        until("a frame", || {
            self.reader.fill(&self.socket).unwrap();
            let frame = self.reader.next_frame().unwrap();
            received.extend_from_slice(frame.unwrap_or_default());
            frame.is_some()
        });
        received
    }
}

/// Asks who has 10.0.2.2, as 10.0.2.15.
const WHO_HAS_GATEWAY: &[u8] = b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x0f\x08\x06\
    \0\x01\x08\0\x06\x04\0\x01\x02\0\0\0\0\x0f\x0a\0\x02\x0f\0\0\0\0\0\0\x0a\0\x02\x02";

#[test]
fn the_user_mode_network_is_locked_down_serves_and_ends_with_its_vm() {
    let (ours, its) = UnixStream::pair().unwrap();
    let mut process = ready(hv(&["net-user"]).stdin(std::os::fd::OwnedFd::from(its)));
    assert_locked_down(&process);
    let mut card = Card::new(ours);
    card.send(WHO_HAS_GATEWAY);
    let answer = card.receive();
    assert_eq!(answer[12..14], *b"\x08\x06");
    assert_eq!(answer[28..32], [10, 0, 2, 2]);
    drop(card);
    assert!(process.wait().unwrap().success());
}

#[test]
fn a_switch_is_locked_down_connects_vms_and_ends_with_the_last() {
    let directory = Directory::new("switch");
    fs::create_dir(&directory.0).unwrap();
    fs::set_permissions(&directory.0, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let path = directory.0.join("room.switch");
    let listener = UnixListener::bind(&path).unwrap();
    let join = || Card::new(UnixStream::connect(&path).unwrap());
    let (one, mut two) = (join(), join());
    let mut process =
        ready(directory.hv(&["net-switch", "room"]).stdin(std::os::fd::OwnedFd::from(listener)));
    assert_locked_down(&process);
    let frame = |text: &str| [b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x88\xb5", text.as_bytes()].concat();
    one.send(&frame("to all"));
    assert_eq!(two.receive(), frame("to all"));
    let mut three = join();
    drop(one);
    two.send(&frame("to the third"));
    assert_eq!(three.receive(), frame("to the third"));
    drop((two, three));
    assert!(process.wait().unwrap().success());
    assert_eq!(directory.entries(), [] as [PathBuf; 0]);
}

/// Whether a process of this machine was started with this directory and is a switch.
fn switches_in(directory: &Path) -> usize {
    let wanted = format!("HV_RUNTIME_DIR={}", directory.display());
    let is_switch = |process: &Path| {
        let read = |file| fs::read(process.join(file)).map(|bytes| text(&bytes)).unwrap_or_default();
        read("cmdline").contains("net-switch") && read("environ").split('\0').any(|line| line == wanted)
    };
    fs::read_dir("/proc").unwrap().filter(|entry| is_switch(&entry.as_ref().unwrap().path())).count()
}

#[test]
fn vms_that_come_and_go_always_find_a_switch_and_leave_none() {
    let directory = Directory::new("come-and-go");
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..12 {
                    let output = directory.output(&["run", "devices", "--net", "switch=room"]);
                    assert!(output.status.success(), "{}", text(&output.stderr));
                    assert!(text(&output.stdout).contains("network"), "{}", text(&output.stdout));
                }
            });
        }
    });
    until("the switch ends", || switches_in(&directory.0) == 0);
    assert_eq!(directory.entries(), [] as [PathBuf; 0]);
}

#[test]
fn a_switch_that_was_killed_is_replaced() {
    let directory = Directory::new("killed");
    assert!(directory.output(&["run", "devices"]).status.success()); // makes the directory
    drop(UnixListener::bind(directory.0.join("room.switch")).unwrap()); // nobody listens on it
    let output = directory.output(&["run", "devices", "--net", "switch=room"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// Everything that ends before the guest's first instruction, and what is said.
#[test]
fn a_network_that_cannot_be_had_is_told() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("{}:80", taken.local_addr().unwrap().port());
    let cases: &[(&[&str], i32, &[&str])] = &[
        (
            &["--net", "user:builtin", "--publish", &port],
            125,
            &["user-mode network", &port, "Address already in use"],
        ),
        (&["--net", "switch=room", "--publish", "8080:80"], 125, &["only `--net user` can publish"]),
        (&["--publish", "8080:80"], 2, &["--net"]),
        (&["--net", "usr"], 2, &["user:builtin", "switch=NAME", "tap=NAME"]),
        (&["--net", "tap=lo"], 125, &["`lo`"]),
    ];
    let directory = Directory::new("told");
    for (options, code, told) in cases {
        let output = directory.output(&[&["run", "devices"], *options].concat());
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{options:?}: {stderr}");
        assert_eq!(text(&output.stdout), "", "{options:?}");
        for words in *told {
            assert!(stderr.contains(words), "{options:?}: {words:?} is not in {stderr}");
        }
    }
}

#[test]
fn passt_is_asked_for_by_name_and_missed_by_name() {
    let output = hv(&["run", "devices", "--net", "user:passt"]).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("--net user:builtin"), "{}", text(&output.stderr));
    // Where it is only a choice, the network built in takes its place.
    let output = hv(&["run", "devices", "--net", "user"]).env("PATH", "/nowhere").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

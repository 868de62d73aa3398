//! `hv run --gdb` with the real gdb: minios, its kernel and its programs. Where there is no gdb, each test says so, and
//! tests nothing.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// How long a session may take before a test gives up on it.
const PATIENCE: &str = "120s";

/// Exit codes of `hv run`.
const CRASHED: i32 = 134;
const KILLED: i32 = 137;

/// Whether there is a gdb.
fn has_gdb() -> bool {
    let found = Command::new("gdb").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("no gdb is installed: not tested");
    }
    found
}

/// A VM that waits for gdb at a socket.
struct Guest {
    hv: Child,
    directory: PathBuf,
    /// Where, as gdb takes it.
    place: String,
}

impl Guest {
    fn start(name: &str, options: &[&str], guest: &[&str]) -> Self {
        let directory = std::env::temp_dir().join(format!("hv-gdb-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir(&directory).expect("a directory");
        let socket = directory.join("gdb");
        Self::start_at(directory, &socket.display().to_string(), options, guest)
    }

    fn start_at(directory: PathBuf, place: &str, options: &[&str], guest: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hv"));
        command.args(["run", "--timeout", PATIENCE, &format!("--gdb={place}")]).args(options).args(guest);
        command.env("HV_RUNTIME_DIR", directory.join("control")).env_remove("RUST_LOG").stdin(Stdio::null());
        let mut hv =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hv can be started");
        let mut told = String::new();
        let mut stderr = BufReader::new(hv.stderr.take().expect("piped"));
        stderr.read_line(&mut told).expect("it says how to connect");
        assert!(told.contains(&format!("-ex 'target remote {place}'")), "{told}");
        hv.stderr = Some(stderr.into_inner());
        Self { hv, directory, place: place.into() }
    }

    /// A session of these commands, from the first stop on. Gives what gdb printed.
    fn gdb(&self, commands: &[&str]) -> String {
        let mut gdb = Command::new("timeout");
        gdb.args([PATIENCE, "gdb", "-nx", "-batch", "-ex", "set pagination off", "-ex", "set confirm off"]);
        gdb.args(["-ex", "set language c", "-ex", &format!("target remote {}", self.place)]);
        for command in commands {
            gdb.args(["-ex", command]);
        }
        let output = gdb.stdin(Stdio::null()).output().expect("gdb can be started");
        let told =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        eprintln!("{told}");
        told
    }

    fn end(mut self) -> Output {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        self.hv.stdout.take().expect("piped").read_to_end(&mut stdout).expect("it can be read");
        self.hv.stderr.take().expect("piped").read_to_end(&mut stderr).expect("it can be read");
        let status = self.hv.wait().expect("it ends");
        Output { status, stdout, stderr }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.hv.kill(); // it has ended, unless the test failed
        let _ = self.hv.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What `told` has behind `mark`, of its first line.
fn behind<'a>(told: &'a str, mark: &str) -> &'a str {
    let (_, rest) = told.split_once(mark).unwrap_or_else(|| panic!("no {mark:?} in:\n{told}"));
    rest.lines().next().unwrap_or_default().trim()
}

#[track_caller]
fn has(told: &str, marks: &[&str]) {
    let mut rest = told;
    for mark in marks {
        let found = rest.find(mark).unwrap_or_else(|| panic!("no {mark:?}, in this order, in:\n{told}"));
        rest = &rest[found + mark.len()..];
    }
}

#[test]
fn a_session_with_kernel_and_program() {
    if !has_gdb() {
        return;
    }
    let guest = Guest::start("session", &["minios"], &["--", "-c", "echo hello"]);
    let told = guest.gdb(&[
        "info threads",
        "break console.rs:11",
        "monitor program",
        "continue", // to the first program's first instruction
        "info threads",
        "echo program at:\\n",
        "output/x $pc",
        "echo \\n",
        "stepi",
        "stepi",
        "info registers mxcsr",
        "set $slot = (long *)($sp - 8)",
        "watch -l *$slot",
        "continue", // to whoever changes that
        "delete 2",
        "continue", // to the kernel's console
        "backtrace",
        "stepi",
        "next",
        "monitor vcpus",
        "delete",
        "continue",
    ]);
    has(
        &told,
        &[
            "_start",
            "vCPU 0, in the guest kernel",
            "Breakpoint 1 at 0x",
            "vCPU 0, in a user program under root 0x",
            "program at:",
            "0x4",
            "mxcsr          0x1f80",
            "atchpoint 2: -location *$slot",
            "Old value = ",
            "New value = ",
            "Breakpoint 1, ",
            "console.rs:11",
            "#0 ",
            "dispatch",
            "calls.rs",
            "main.rs",
            "exited normally",
        ],
    );
    has(&told, &["vCPU 0: in the guest kernel, at 0x2"]); // it goes to standard error
    let output = guest.end();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_breakpoint_in_a_program_and_memory_of_its_address_space() {
    if !has_gdb() {
        return;
    }
    let first = Guest::start("find", &["minios"], &["--", "-c", "echo hello"]);
    let told = first.gdb(&["monitor program", "continue", "info registers rip", "kill"]);
    let entry = behind(&told, "rip            ").split(' ').next().expect("a number").to_string();
    assert_eq!(first.end().status.code(), Some(KILLED), "gdb has killed it");

    let guest = Guest::start("program", &["minios"], &["--", "-c", "echo hello"]);
    let (set, code) = (format!("tbreak *{entry}"), format!("x/2xb {entry}"));
    let told = guest.gdb(&[
        &set,
        "continue",
        &code,
        "stepi",
        &code, // which is now behind
        "tbreak console.rs:11",
        "continue",
        &code, // no memory of the kernel's
        "detach",
    ]);
    has(
        &told,
        &[
            "Temporary breakpoint 1, ",
            &entry,
            &entry,
            "0x",
            "Temporary breakpoint 2, ",
            "Cannot access memory",
        ],
    );
    assert!(!told.contains("0xcc"), "a breakpoint shows:\n{told}");
    let output = guest.end();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello\n", "it runs on after gdb has gone");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_crash_stops_in_gdb_and_ends_the_vm_when_gdb_has_gone() {
    if !has_gdb() {
        return;
    }
    let guest = Guest::start("crash", &["crash"], &["page-fault"]);
    let told = guest.gdb(&["continue", "backtrace"]);
    has(&told, &["received signal SIGSEGV", "page_fault"]);
    let output = guest.end();
    assert!(String::from_utf8_lossy(&output.stderr).contains("page fault writing address 0x123456789000"));
    assert_eq!(output.status.code(), Some(CRASHED));
}

#[test]
fn threads_are_vcpus_and_an_interrupt_stops_all() {
    if !has_gdb() {
        return;
    }
    // A port that is free, at the loopback.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("it is bound").port();
    let directory = std::env::temp_dir().join(format!("hv-gdb-threads-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let guest = Guest::start_at(
        directory,
        &format!(":{port}"),
        &["minios", "--cpus", "3"],
        &["--", "-c", "sleep 100"],
    );
    let told = guest.gdb(&[
        "python import threading, time",
        "python threading.Timer(2, lambda: gdb.post_event(lambda: gdb.execute('interrupt'))).start()",
        "continue",
        "info threads",
        "thread apply all -q info registers rip",
        "kill",
    ]);
    has(&told, &["received signal SIGINT", "vCPU 0, in", "vCPU 1, in", "vCPU 2, in"]);
    assert_eq!(guest.end().status.code(), Some(KILLED), "gdb has killed it");
}

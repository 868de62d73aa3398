//! Standard input as the guest's console: what is typed, on a terminal and without one.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long `hv` may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(300);

/// `hv` as somebody starts it by hand: no signal is ignored.
fn hv(arguments: &[&str]) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,TERM", env!("CARGO_BIN_EXE_hv")]);
    command.args(arguments).env_remove("RUST_LOG");
    command
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
        let program = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().expect("Unicode"))
            .expect("its other end");
        Self { user: user.into(), program, shown: Vec::new() }
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let end = || Stdio::from(self.program.try_clone().expect("a descriptor"));
        hv(arguments).stdin(end()).stdout(end()).stderr(end()).spawn().expect("hv can be started")
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
            let ready = poll(&mut [PollFd::new(&self.user, PollFlags::IN)], Some(&left))
                .expect("it can be waited for");
            assert!(ready > 0, "{text:?} is not in {:?}", String::from_utf8_lossy(&self.shown));
            let mut piece = [0; 4096];
            let length = self.user.read(&mut piece).expect("the other end is open");
            self.shown.extend(&piece[..length]);
        }
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.program).expect("it is a terminal")
    }

    /// Whether it sends each key, and shows none.
    fn sends_keys(&self) -> bool {
        !self.modes().local_modes.intersects(LocalModes::ICANON | LocalModes::ECHO)
    }

    #[track_caller]
    fn assert_is_as(&self, before: &Termios) {
        assert_eq!(format!("{:?}", self.modes()), format!("{before:?}"));
    }
}

#[test]
fn a_shell_is_typed_at_on_a_terminal_and_leaves_it_as_it_was() {
    let mut terminal = Terminal::new();
    let before = terminal.modes();
    let mut hv = terminal.start(&["run", "minios", "--timeout", "60s"]);
    terminal.wait_for("$ ");
    terminal.keys("ecxx\x7f\x7fho ed\x1b[Dit\x05\r");
    terminal.wait_for("\r\neitd\r\n$ ");
    assert!(terminal.sends_keys(), "{:?}", terminal.modes());
    terminal.keys("\x04");
    assert_eq!(hv.wait().expect("it ends").code(), Some(0));
    terminal.assert_is_as(&before);
}

#[test]
fn the_output_of_a_pipeline_is_shown_at_the_prompt() {
    let mut terminal = Terminal::new();
    let mut hv = terminal.start(&["run", "minios", "--timeout", "60s"]);
    terminal.wait_for("$ ");
    terminal.keys("primes 100 | wc\r");
    terminal.wait_for("primes 100 | wc\r\r\n25 25 71\r\n$ ");
    terminal.keys("exit 3\r");
    assert_eq!(hv.wait().expect("it ends").code(), Some(3));
}

#[test]
fn a_terminal_is_left_as_it_was_when_hv_is_ended() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let mut terminal = Terminal::new();
        let before = terminal.modes();
        let mut hv = terminal.start(&["run", "minios", "--timeout", "60s"]);
        terminal.wait_for("$ ");
        terminal.keys("spin & echo now\r");
        terminal.wait_for("\nnow\r\n");
        assert!(terminal.sends_keys());
        let sent = Command::new("kill").args(["-s", signal, &hv.id().to_string()]).status();
        assert!(sent.expect("kill can be started").success());
        assert_eq!(hv.wait().expect("it ends").code(), Some(code));
        terminal.assert_is_as(&before);
    }
}

#[test]
fn what_comes_through_a_pipe_is_typed_and_its_end_ends_the_shell() {
    let mut hv = hv(&["run", "minios", "--timeout", "60s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("hv can be started");
    hv.stdin.take().expect("a pipe").write_all(b"echo hi\nfalse\n").expect("it is read");
    let output = hv.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "$ echo hi\r\nhi\n$ false\r\n$ ");
    assert_eq!(output.status.code(), Some(1), "the last command's");
}

#[test]
fn a_guest_that_reads_nothing_takes_nothing() {
    let mut file = File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect("a file");
    let shared = file.try_clone().expect("a descriptor");
    let output = hv(&["run", "hello", "--timeout", "60s"]).stdin(shared).output().expect("hv can be started");
    assert_eq!((output.status.code(), file.stream_position().expect("a file")), (Some(0), 0));
}

//! Devices of `hv run` that others are at the other end of: a terminal, ports, sockets.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long `hv` may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(300);

fn hv(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hv"));
    command.args(arguments).env_remove("RUST_LOG");
    command
}

/// A directory that goes with this value.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hv-run-{}-{name}", std::process::id()));
        fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("Unicode").to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A terminal, and somebody who sits at it.
struct Terminal {
    user: File,
    program: File,
    shown: Vec<u8>,
}

impl Terminal {
    fn new(columns: u16, rows: u16) -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
        grantpt(&user).and_then(|()| unlockpt(&user)).expect("its other end");
        let name = ptsname(&user, Vec::new()).expect("its name");
        let mut open = File::options();
        let program =
            open.read(true).write(true).open(name.to_str().expect("Unicode")).expect("its other end");
        let terminal = Self { user: user.into(), program, shown: Vec::new() };
        terminal.resize(columns, rows);
        terminal
    }

    fn resize(&self, columns: u16, rows: u16) {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.user, size).expect("it has a size");
    }

    /// Starts `hv` in the terminal's foreground, where it hears of changes of the window.
    fn start(&self, arguments: &[&str]) -> Child {
        let end = || Stdio::from(self.program.try_clone().expect("a descriptor"));
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_hv")]).args(arguments).env_remove("RUST_LOG");
        command.stdin(end()).stdout(end()).stderr(end());
        command.spawn().expect("hv can be started")
    }

    fn keys(&mut self, keys: &[u8]) {
        self.user.write_all(keys).expect("a terminal takes keys");
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
            assert!(ready.expect("it can be waited for") > 0, "{text:?} is not in {:?}", self.text());
            let mut piece = [0; 4096];
            let length = self.user.read(&mut piece).expect("the other end is open");
            self.shown.extend(&piece[..length]);
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.shown).into_owned()
    }

    fn modes(&self) -> Termios {
        tcgetattr(&self.program).expect("it is a terminal")
    }

    #[track_caller]
    fn assert_is_as(&self, before: &Termios) {
        assert_eq!(format!("{:?}", self.modes()), format!("{before:?}"));
    }
}

#[test]
fn a_guest_that_has_the_terminal_gets_all_keys_and_its_size() {
    let mut terminal = Terminal::new(80, 25);
    let before = terminal.modes();
    let mut hv = terminal.start(&["run", "devices", "--terminal", "terminal", "--timeout", "60s"]);
    terminal.wait_for("size 80x25\r");
    terminal.keys(b"\x03");
    terminal.wait_for("keys [3]");
    terminal.keys(b"\r");
    terminal.wait_for("keys [d]");
    terminal.keys(b"\x01\x01");
    terminal.wait_for("keys [1]");
    terminal.resize(132, 43);
    terminal.wait_for("size 132x43\r");
    terminal.keys(b"q");
    assert_eq!(hv.wait().expect("it ends").code(), Some(0), "{}", terminal.text());
    terminal.assert_is_as(&before);
}

#[test]
fn ctrl_a_x_ends_a_guest_that_has_the_terminal_and_leaves_that_as_it_was() {
    let mut terminal = Terminal::new(80, 25);
    let before = terminal.modes();
    let mut hv = terminal.start(&["run", "devices", "--terminal", "terminal", "--timeout", "60s"]);
    terminal.wait_for("size 80x25\r");
    terminal.keys(b"\x01x");
    assert_eq!(hv.wait().expect("it ends").code(), Some(130), "{}", terminal.text());
    terminal.assert_is_as(&before);
}

#[track_caller]
fn assert_good(output: &Output) {
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
}

#[test]
fn ports_are_files_and_sockets() {
    let directory = Directory::new("ports");
    fs::write(directory.path("log"), "before\n").expect("a file");
    let ports = [format!("log={}", directory.path("log")), format!("chat=unix:{}", directory.path("chat"))];
    let arguments =
        ["run", "devices", "console", "--port", &ports[0], "--port", &ports[1], "--timeout", "60s"];
    let mut hv =
        hv(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hv can be started");
    let mut lines = BufReader::new(hv.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    for _ in 0..2 {
        assert!(lines.any(|line| line == "waiting" || line == "gone"), "{:?}", hv.wait_with_output());
        let mut stream = UnixStream::connect(directory.path("chat")).expect("it is listened on");
        stream.write_all(b"hello").expect("it is read");
        let mut back = [0; 5];
        stream.read_exact(&mut back).expect("it comes back");
    }
    lines.for_each(drop);
    assert_good(&hv.wait_with_output().expect("it ends"));
    assert_eq!(fs::read_to_string(directory.path("log")).expect("a file"), "before\na line\nand 1\n");
    let output = hv_fails(&["run", "devices", "--port", "log=/nowhere/at/all"]);
    assert!(output.contains("error: `/nowhere/at/all` cannot be the end of the port `log`"), "{output}");
}

/// What it says.
fn hv_fails(arguments: &[&str]) -> String {
    let output = hv(arguments).output().expect("hv can be started");
    assert_ne!(output.status.code(), Some(0));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_guest_connects_to_sockets_of_the_host_though_its_monitor_cannot() {
    let directory = Directory::new("vsock");
    let path = directory.path("guest.sock");
    let listener = UnixListener::bind(format!("{path}_1000")).expect("a socket");
    let echo = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the guest connects");
        std::io::copy(&mut &stream, &mut &stream).expect("it is open");
        stream.shutdown(Shutdown::Write).expect("it is open");
    });
    let vsock = format!("{path},cid=77");
    assert_good(
        &hv(&["run", "devices", "vsock", "--vsock", &vsock, "--timeout", "60s"]).output().expect("hv"),
    );
    echo.join().expect("it was connected to");
    // The socket that it leaves is replaced.
    let again = hv(&["run", "devices", "--vsock", &path, "--timeout", "60s"]).output().expect("hv");
    assert_good(&again);
    let output = hv_fails(&["run", "devices", "--vsock", "/nowhere/at/all"]);
    assert!(output.contains("error: the guest cannot have these sockets"), "{output}");
}

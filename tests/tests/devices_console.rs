//! The console device and its ports, against files and programs of the host.

mod common;

use common::*;
use hv_core::devices::{Console as Ports, Port, Window, listen};
use hv_core::{Config, DeviceConfig, End, Report, Vm};
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A directory with the ends of a console's ports, that goes with this value.
struct Ends(PathBuf);

impl Ends {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hv-console-{}-{name}", std::process::id()));
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    fn device(&self) -> DeviceConfig {
        let nowhere = File::options().write(true).open("/dev/null").expect("it is there");
        let log = File::create(self.0.join("log")).expect("a file");
        let chat = listen(&self.0.join("chat")).expect("it is free");
        let ports = vec![
            Port::streams("", None, nowhere.into()),
            Port::streams("log", None, log.into()),
            Port::listener("chat", chat),
        ];
        DeviceConfig::Console(Ports::new(ports, Window::new().expect("a descriptor")))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.0.join("log")).expect("it is there")
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.0.join("chat")).expect("the device listens")
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn start(ends: &Ends, arguments: &[&str]) -> (Vm, Console) {
    let (config, console) = config("devices", arguments);
    let vm = Vm::start(Config { devices: vec![ends.device()], ..config }).expect("the VM starts");
    (vm, console)
}

#[track_caller]
fn assert_good(report: &Report, console: &Console) {
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
}

/// Two programs, one after the other, each of which gets back what it sends.
fn two_programs(ends: &Ends, console: &Console) {
    for number in 1..=2 {
        let mut stream = ends.connect();
        stream.write_all(b"hello").expect("it is read");
        let mut back = [0; 5];
        stream.read_exact(&mut back).expect("it comes back");
        assert_eq!(&back, b"hello");
        drop(stream);
        console.wait_for(&"gone\n".repeat(number));
    }
}

#[test]
fn ports_go_to_a_file_and_to_one_program_after_the_other() {
    let ends = Ends::new("check");
    let (vm, console) = start(&ends, &["console"]);
    console.wait_for("waiting");
    two_programs(&ends, &console);
    assert_good(&wait(vm), &console);
    assert!(console.text().contains("ports [\"\", \"log\", \"chat\"]\n"), "{}", console.text());
    assert_eq!(ends.log(), "a line\nand 1\n");
}

#[test]
fn ports_that_are_busy_lose_nothing_across_pauses() {
    let ends = Ends::new("load");
    let (mut vm, console) = start(&ends, &["console-load"]);
    let mut stream = ends.connect();
    let sent: Vec<u8> = (0..2 << 20).map(|at: u32| (at ^ at >> 8) as u8).collect();
    let writer = {
        let (mut stream, sent) = (stream.try_clone().expect("a descriptor"), sent.clone());
        std::thread::spawn(move || stream.write_all(&sent).expect("it is read"))
    };
    let reader = std::thread::spawn(move || {
        let mut back = vec![0; 2 << 20];
        stream.read_exact(&mut back).expect("it comes back");
        stream.shutdown(Shutdown::Both).expect("it is open");
        back
    });
    let start = Instant::now();
    let report = loop {
        vm = match vm.pause() {
            Ok(paused) => paused.resume(),
            Err(report) => break report,
        };
        match vm.wait_timeout(Duration::from_millis(5)) {
            Ok(report) => break report,
            Err(running) => vm = running,
        }
        assert!(start.elapsed() < PATIENCE, "{}", console.text());
    };
    assert_good(&report, &console);
    writer.join().expect("all was sent");
    assert!(reader.join().expect("all came back") == sent);
    let expected: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    assert!(ends.log() == expected, "{} bytes", ends.log().len());
}

#[test]
fn a_program_that_does_not_read_holds_its_guest_back_and_loses_nothing() {
    let ends = Ends::new("slow");
    let (vm, console) = start(&ends, &["console-slow"]);
    let mut stream = ends.connect();
    console.wait_for("full");
    let mut bytes = vec![0; 3 << 20];
    stream.read_exact(&mut bytes).expect("all of it comes");
    assert!((0..3 << 20).map(|at: u32| (at ^ at >> 8) as u8).eq(bytes));
    assert_good(&wait(vm), &console);
}

#[test]
fn messages_that_lie_harm_their_guest_alone() {
    let ends = Ends::new("hostile");
    let (vm, console) = start(&ends, &["console-hostile", "3"]);
    console.wait_for("waiting");
    two_programs(&ends, &console);
    assert_good(&wait(vm), &console);
    assert!(!console.text().contains("\n0 of 60"), "{}", console.text());
}

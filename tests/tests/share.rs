//! Shared folders: real files of the host's, seen and changed by guests.

mod common;

use common::*;
use hv_core::devices::{Access, SharedFolder};
use hv_core::{Config, DeviceConfig, End, Vm};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A directory of the test's own, with a folder in it that is shared.
struct Outside(TempDir);

impl Outside {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        fs::create_dir(directory.path().join("shared")).expect("a directory");
        fs::write(directory.path().join("secret"), "secret\n").expect("a file");
        Self(directory)
    }

    /// A place in the folder.
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("shared").join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).expect("a file can be written");
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8(fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}")))
            .expect("text")
    }

    fn device(&self, access: Access) -> DeviceConfig {
        let folder = SharedFolder::open(&self.path(""), "share", access);
        DeviceConfig::FileSystem(folder.expect("it can be shared"))
    }

    fn config(&self, guest: &str, arguments: &[&str], access: Access) -> (Config, Console) {
        let (config, console) = config(guest, arguments);
        (Config { devices: vec![self.device(access)], ..config }, console)
    }

    /// What minios's shell writes for a command.
    fn shell(&self, vcpus: u32, access: Access, command: &str) -> String {
        let (mut config, console) = self.config("minios", &["-c", command], access);
        config.vcpus = vcpus;
        let report = wait(Vm::start(config).expect("the VM starts"));
        assert!(matches!(report.end, End::Shutdown { .. }), "{:?} {}", report.end, console.text());
        console.text()
    }
}

/// Bytes without an order.
fn random_bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// What the host's `cksum` says of a file: sum and length.
fn cksum(path: &Path) -> String {
    let output = Command::new("cksum").arg(path).output().expect("the host has cksum");
    let told = String::from_utf8(output.stdout).expect("text");
    told.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_guest_works_on_the_hosts_files() {
    for vcpus in [1, 4] {
        let outside = Outside::new();
        outside.write("greeting", "hello\nfrom the host\n");
        symlink("greeting", outside.path("link")).expect("a link");
        let told = outside.shell(
            vcpus,
            Access::ReadWrite,
            "mount
             ls /share
             cat /share/greeting; wc -l </share/link
             echo made by the guest >/share/answer; echo and more >>/share/answer
             mkdir /share/d; mkdir /share/d/e; cp /share/answer /share/d/e/copy
             mv /share/d/e/copy /share/d/e/moved; cat /share/d/e/moved
             rm /share/answer /share/none; rm /share/d; rm -r /share/d/e; mkdir /share/d
             cp /share/greeting /motd; mv /share/greeting /greeting; cat /share",
        );
        let wanted = "/                archive
/share           shared folder
      20 greeting
       0 link
hello
from the host
2
made by the guest
and more
rm: /share/none: no such file
rm: /share/d: the directory is not empty
mkdir: /share/d: it is there already
cp: cannot be changed: the file system is read-only
mv: /share/greeting to /greeting: the other name is in another file system
cat: /share: a directory
";
        assert_eq!(told, wanted, "on {vcpus}");
        assert!(!outside.path("answer").exists() && outside.path("d").is_dir());
        assert_eq!(fs::read_dir(outside.path("d")).expect("it is there").count(), 0);
        let told = outside.shell(vcpus, Access::ReadWrite, "echo -n x >/share/made; cat words >/share/words");
        assert_eq!(told, "");
        let words = include_str!("../../sample-guests/guests/minios/files/words");
        assert_eq!((outside.read("made"), outside.read("words")), ("-n x\n".into(), words.into()));
    }
}

#[test]
fn large_files_arrive_as_they_are() {
    let outside = Outside::new();
    for (i, length) in [0, 1, 4095, 65_536, 65_537, 24 << 20].into_iter().enumerate() {
        outside.write(&format!("{i}"), random_bytes(length, i as u64));
    }
    let sums = outside.shell(
        1,
        Access::ReadWrite,
        "cksum /share/0 /share/1 /share/2 /share/3 /share/4 /share/5; cp -r /share /share/copy",
    );
    let wanted = (0..6).map(|i| format!("{} /share/{i}\n", cksum(&outside.path(&format!("{i}")))));
    assert!(sums.starts_with(&wanted.collect::<String>()), "{sums}");
    for i in 0..6 {
        let (from, to) =
            (fs::read(outside.path(&format!("{i}"))), fs::read(outside.path(&format!("copy/{i}"))));
        assert!(from.expect("it is there") == to.expect("it is there, too"), "{i}");
    }
}

#[test]
fn directories_with_many_files_are_listed_copied_and_removed() {
    let outside = Outside::new();
    fs::create_dir(outside.path("many")).expect("a directory");
    let name = |i: u32| format!("many/a file with a rather long name, number {i}, and a content of its own");
    (0..500).for_each(|i| outside.write(&name(i), format!("{i}\n")));
    let told = outside.shell(
        4,
        Access::ReadWrite,
        "ls /share/many | wc -l; cp -r /share/many /share/copy; rm -r /share/many; ls /share",
    );
    assert_eq!(told, "500\n       0 copy/\n");
    for i in 0..500 {
        assert_eq!(outside.read(&name(i).replacen("many", "copy", 1)), format!("{i}\n"));
    }
}

#[test]
fn a_folder_to_look_at_is_not_changed() {
    let outside = Outside::new();
    outside.write("file", "content\n");
    let told = outside.shell(
        1,
        Access::ReadOnly,
        "cat /share/file; echo x >/share/file; echo x >/share/new; mkdir /share/new; rm /share/file; mv /share/file /share/new; cp motd /share/file",
    );
    assert_eq!(told.matches("cannot be changed").count(), 6, "{told}");
    assert_eq!(told.lines().count(), 7, "{told}");
    assert_eq!(outside.read("file"), "content\n");
    assert_eq!(fs::read_dir(outside.path("")).expect("it is there").count(), 1);
}

#[test]
fn nothing_beside_the_folder_can_be_reached() {
    let outside = Outside::new();
    symlink("../secret", outside.path("out")).expect("a link");
    symlink(outside.0.path().join("secret"), outside.path("absolute")).expect("a link");
    symlink("..", outside.path("up")).expect("a link");
    symlink("loop", outside.path("loop")).expect("a link");
    let fifo = Command::new("mkfifo").arg(outside.path("fifo")).status().expect("the host has mkfifo");
    assert!(fifo.success());
    let told = outside.shell(
        1,
        Access::ReadWrite,
        "cat /share/out /share/absolute /share/up/secret /share/../secret /share/loop /share/fifo
         echo x >/share/out; echo x >/share/up/new; echo x >/share/fifo; ls /share/up; echo on",
    );
    assert!(told.ends_with("on\n"), "{told}");
    assert!(told.lines().all(|line| line != "secret"), "{told}");
    assert_eq!(told.matches("no such file").count(), 6, "{told}");
    assert_eq!(told.matches("fifo: not permitted").count(), 2, "{told}");
    assert_eq!(fs::read_to_string(outside.0.path().join("secret")).expect("it is there"), "secret\n");
    assert_eq!(fs::read_dir(outside.0.path()).expect("it is there").count(), 2);
}

#[test]
fn programs_that_use_it_at_once_do_not_mix_their_files() {
    let outside = Outside::new();
    (0..6).for_each(|i| outside.write(&format!("{i}"), random_bytes(1 << 20, i)));
    let copies: String = (0..6).map(|i| format!("cp /share/{i} /share/copy{i} & ")).collect();
    outside.shell(4, Access::ReadWrite, &format!("{copies} wait"));
    for i in 0..6 {
        let (from, to) =
            (fs::read(outside.path(&format!("{i}"))), fs::read(outside.path(&format!("copy{i}"))));
        assert!(from.expect("it is there") == to.expect("it is there, too"), "{i}");
    }
}

/// What is beneath a directory: names, lengths, and contents.
fn snapshot(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        all.push((path.clone(), fs::read(&path).unwrap_or_default()));
    }
    all.sort();
    all
}

#[test]
fn many_requests_at_once_are_all_served_and_kept_across_pauses() {
    let outside = Outside::new();
    let (config, console) = outside.config("devices", &["share-load", "7"], Access::ReadWrite);
    let mut vm = Vm::start(config).expect("the VM starts");
    let (start, mut changes) = (Instant::now(), 0);
    let report = loop {
        let paused = match vm.pause() {
            Ok(paused) => paused,
            Err(report) => break report,
        };
        let before = snapshot(&outside.path(""));
        std::thread::sleep(Duration::from_millis(1));
        assert!(snapshot(&outside.path("")) == before, "a paused VM changes its folder");
        changes += usize::from(!before.is_empty());
        vm = paused.resume();
        match vm.wait_timeout(Duration::from_millis(2)) {
            Ok(report) => break report,
            Err(running) => vm = running,
        }
        assert!(start.elapsed() < PATIENCE, "{}", console.text());
    };
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
    assert!(changes > 0, "the pauses were in the midst of it");
    assert_eq!(snapshot(&outside.path("")), [], "the guest has removed its files");
}

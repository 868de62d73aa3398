//! Devices, against their real counterparts on the host.

mod common;

use common::*;
use hv_core::devices::{Block, BlockError, BlockOptions};
use hv_core::{Config, DeviceConfig, End, StartError, Vm};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SECTOR: usize = 512;

/// A file that goes with this value.
struct TempFile(PathBuf);

impl TempFile {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("hv-devices-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("a temporary file can be written");
        Self(path)
    }

    fn disk(&self, options: BlockOptions) -> DeviceConfig {
        DeviceConfig::Block(Block::open(&self.0, options).expect("it is a disk"))
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).expect("it is there")
    }
}

impl AsRef<Path> for TempFile {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What the guest `devices` expects of a disk at first.
fn pattern(sectors: u64) -> Vec<u8> {
    let sector = |number: u64| {
        (0..SECTOR as u64).map(move |at| (number.wrapping_mul(31).wrapping_add(at) ^ (at >> 8)) as u8)
    };
    (0..sectors).flat_map(sector).collect()
}

/// The guest `devices` with these arguments and devices, not yet started.
fn guest(arguments: &[&str], devices: Vec<DeviceConfig>) -> (Config, Console) {
    let (config, console) = config("devices", arguments);
    (Config { devices, ..config }, console)
}

/// Runs it to its end, which must be a good one.
fn run_devices(arguments: &[&str], devices: Vec<DeviceConfig>) -> String {
    let (config, console) = guest(arguments, devices);
    let report = wait(Vm::start(config).expect("the VM starts"));
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
    console.text()
}

#[test]
fn devices_are_listed_and_entropy_is_random() {
    let disk = TempFile::new("listed", &pattern(8));
    let text = run_devices(&["rng"], vec![DeviceConfig::Entropy, disk.disk(BlockOptions::default())]);
    assert_eq!(text, "device 0: entropy\ndevice 1: disk\nrng: good\n");
}

#[test]
fn a_disk_holds_what_its_file_does() {
    for (direct, plain) in [(false, false), (false, true), (true, false), (true, true)] {
        let disk = TempFile::new(&format!("disk-{direct}-{plain}"), &pattern(64));
        let options = BlockOptions { direct, plain, ..BlockOptions::default() };
        let device = match Block::open(&disk.0, options) {
            Err(BlockError::NoDirect { .. }) => {
                eprintln!("no direct I/O in {}: not tested", disk.0.display());
                continue;
            }
            opened => DeviceConfig::Block(opened.expect("it is a disk")),
        };
        let text = run_devices(&["disk"], vec![device]);
        assert!(text.ends_with("64 sectors\ndisk: good\n"), "{text}");
        let (bytes, expected) = (disk.bytes(), pattern(64));
        assert_eq!(bytes.len(), 64 * SECTOR, "a disk does not grow or shrink");
        assert!(bytes[..SECTOR] == expected[..SECTOR], "sector 0 was not written");
        assert!(bytes[SECTOR..3 * SECTOR].iter().all(|byte| *byte == 0), "zeros were written");
        assert!(bytes[8 * SECTOR..63 * SECTOR] == expected[8 * SECTOR..63 * SECTOR]);
        assert!(bytes[63 * SECTOR..].iter().all(|byte| *byte == 0x5a));
    }
}

#[test]
fn a_read_only_disk_stays_as_it_is_and_can_be_shared() {
    let disk = TempFile::new("read-only", &pattern(16));
    let options = BlockOptions { read_only: true, ..BlockOptions::default() };
    let (first, second) = (disk.disk(options), disk.disk(options));
    let refused = Block::open(&disk.0, BlockOptions::default());
    assert!(matches!(refused, Err(BlockError::InUse { .. })), "{refused:?}");
    run_devices(&["disk-read-only"], vec![first]);
    run_devices(&["disk-read-only"], vec![second]);
    assert!(disk.bytes() == pattern(16));
    Block::open(&disk.0, BlockOptions::default()).expect("nobody else has it any more");
}

#[test]
fn files_that_are_no_disks_are_refused() {
    let open = |path: &Path| Block::open(path, BlockOptions::default());
    let odd = TempFile::new("odd", &[0; 700]);
    assert!(matches!(open(&odd.0), Err(BlockError::Size { size: 700, .. })));
    let empty = TempFile::new("empty", &[]);
    assert!(matches!(open(&empty.0), Err(BlockError::Size { size: 0, .. })));
    assert!(matches!(open(Path::new("/dev/null")), Err(BlockError::NoDisk { .. })));
    assert!(matches!(open(Path::new("/nowhere/at/all")), Err(BlockError::Open { .. })));
    assert!(matches!(open(&std::env::temp_dir()), Err(BlockError::Open { .. })));
}

#[test]
fn many_requests_at_once_are_all_served_and_kept_across_pauses() {
    for plain in [false, true] {
        serve_load(BlockOptions { plain, ..BlockOptions::default() });
    }
    // Past the page cache, requests are under way for longer.
    let file = TempFile::new("direct", &pattern(1));
    let options = BlockOptions { direct: true, ..BlockOptions::default() };
    if Block::open(&file.0, options).is_ok() {
        serve_load(options);
    }
}

fn serve_load(options: BlockOptions) {
    let disk = TempFile::new("load", &pattern(48 * 32));
    let (config, console) = guest(&["disk-load", "7"], vec![disk.disk(options)]);
    let mut vm = Vm::start(config).expect("the VM starts");
    let start = Instant::now();
    let report = loop {
        let paused = match vm.pause() {
            Ok(paused) => paused,
            Err(report) => break report,
        };
        let before = disk.bytes();
        std::thread::sleep(Duration::from_millis(1));
        assert!(disk.bytes() == before, "a paused VM writes to its disk");
        vm = paused.resume();
        match vm.wait_timeout(Duration::from_millis(2)) {
            Ok(report) => break report,
            Err(running) => vm = running,
        }
        assert!(start.elapsed() < PATIENCE, "{}", console.text());
    };
    assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
}

/// All memory of the one VM in this process that has so much.
fn guest_memory(size: u64) -> Vec<u8> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is there");
    let starts = maps.lines().filter(|line| line.contains("memfd:hv-guest-memory")).filter_map(|line| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        (end - start == size).then_some(start)
    });
    let starts: Vec<u64> = starts.collect();
    assert_eq!(starts.len(), 1, "{maps}");
    let mut bytes = vec![0; size as usize];
    let memory = std::fs::File::open("/proc/self/mem").expect("/proc is there");
    memory.read_exact_at(&mut bytes, starts[0]).expect("it is mapped");
    bytes
}

#[test]
fn a_paused_vms_devices_touch_no_guest_memory() {
    for (plain, size) in [(false, (24 << 20) + 0xd000), (true, (24 << 20) + 0xf000)] {
        let disk = TempFile::new(&format!("paused-{plain}"), &pattern(48 * 32));
        let options = BlockOptions { plain, ..BlockOptions::default() };
        let (config, console) = guest(&["disk-load", "9"], vec![disk.disk(options)]);
        let mut vm = Vm::start(Config { memory: size, ..config }).expect("the VM starts");
        let (start, mut pauses) = (Instant::now(), 0);
        let report = loop {
            let paused = match vm.pause() {
                Ok(paused) => paused,
                Err(report) => break report,
            };
            let before = guest_memory(size);
            std::thread::sleep(Duration::from_millis(1));
            assert!(guest_memory(size) == before, "a paused VM's memory has changed");
            pauses += 1;
            match paused.resume().wait_timeout(Duration::from_millis(2)) {
                Ok(report) => break report,
                Err(running) => vm = running,
            }
            assert!(start.elapsed() < PATIENCE, "{}", console.text());
        };
        assert_eq!(report.end, End::Shutdown { code: 0 }, "{}", console.text());
        assert!(pauses > 2, "it was over too soon");
    }
}

#[test]
fn a_disk_that_became_shorter_gives_errors_and_the_vm_goes_on() {
    let disk = TempFile::new("shorter", &pattern(64));
    let device = disk.disk(BlockOptions::default());
    std::fs::File::options().write(true).open(&disk.0).unwrap().set_len(512).unwrap();
    let (config, console) = guest(&["disk"], vec![device]);
    let report = wait(Vm::start(config).expect("the VM starts"));
    assert_eq!(report.end, End::Shutdown { code: 1 }, "{}", console.text());
    assert!(console.text().contains("Io"), "{}", console.text());
}

#[test]
fn a_guest_that_knows_no_devices_and_too_many_devices_are_refused() {
    let (config, _) = guest(&[], (0..33).map(|_| DeviceConfig::Entropy).collect());
    assert!(matches!(Vm::start(config), Err(StartError::Devices { devices: 33 })));
    let (mut config, _) = guest(&[], vec![DeviceConfig::Entropy]);
    config.image.note.liked -= hv_abi::Features::DEVICES;
    assert!(matches!(Vm::start(config), Err(StartError::NoDevices)));
}

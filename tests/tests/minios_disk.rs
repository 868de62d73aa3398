//! minios and a disk: what the host put there, and what a restart finds.

mod common;

use common::{config, wait};
use hadris_fat::format::{FatFormatOptions, FatVolumeFormatter};
use hadris_fat::{FatVolume, FatVolumeWriteExt};
use hv_core::devices::{Block, BlockOptions};
use hv_core::{Config, DeviceConfig, End, Vm};
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

/// Bytes of the disk.
const SIZE: u64 = 40 << 20;

/// A file with a file system, which goes with this value.
struct DiskFile(PathBuf);

impl DiskFile {
    fn new(name: &str) -> Self {
        let disk = Self(std::env::temp_dir().join(format!("hv-minios-disk-{}-{name}", std::process::id())));
        File::create(&disk.0).and_then(|file| file.set_len(SIZE)).expect("a temporary file can be made");
        FatVolumeFormatter::format(disk.open(), FatFormatOptions::new(SIZE)).expect("it can be formatted");
        disk
    }

    fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.0).expect("it is there")
    }

    fn volume(&self) -> FatVolume<File> {
        FatVolume::open(self.open()).expect("there is a file system")
    }

    /// What the host finds in a file.
    fn read(&self, path: &str) -> Vec<u8> {
        self.volume().open_file_path(path).and_then(|mut file| file.read_to_vec()).expect("the file is there")
    }

    /// What minios' shell prints for these commands.
    fn run(&self, options: BlockOptions, commands: &str) -> String {
        let disk = Block::open(&self.0, options).expect("it is a disk");
        let (config, console) = config("minios", &["-c", commands]);
        let config = Config { devices: vec![DeviceConfig::Block(disk)], ..config };
        let report = wait(Vm::start(config).expect("the VM starts"));
        assert!(matches!(report.end, End::Shutdown { .. }), "{:?}: {}", report.end, console.text());
        console.text()
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn files_on_a_disk_are_the_hosts_and_survive_a_restart() {
    let disk = DiskFile::new("files");
    let volume = disk.volume();
    let entry = volume.create_file(&volume.root_dir(), "A note of the host.text").expect("there is room");
    let mut writer = volume.write_file(&entry).expect("it is there");
    writer.write(b"good morning\n").expect("there is room");
    writer.finish().expect("it can be finished");
    drop(volume);

    let commands = "mount; cat '/disk/A note of the host.text'; mkdir /disk/made; cp words /disk/made/words; \
                    echo first > /disk/made/lines; echo second >> /disk/made/lines; ls /disk";
    let said = disk.run(BlockOptions::default(), commands);
    for expected in ["/disk", "good morning\n", "made"] {
        assert!(said.contains(expected), "{expected:?} in {said}");
    }
    let said = disk.run(BlockOptions::default(), "cat /disk/made/lines; cksum words /disk/made/words");
    assert!(said.starts_with("first\nsecond\n"), "{said}");
    assert_eq!(disk.read("made/lines"), b"first\nsecond\n");
    let words = include_bytes!("../../sample-guests/guests/minios/files/words");
    assert!(disk.read("made/words") == words);
    if let Ok(fsck) = Command::new("/usr/sbin/fsck.vfat").arg("-n").arg(&disk.0).output() {
        assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stdout));
    }
}

#[test]
fn a_read_only_disk_is_read_and_stays_as_it_is() {
    let disk = DiskFile::new("read-only");
    disk.run(BlockOptions::default(), "echo text > /disk/file");
    let before = std::fs::read(&disk.0).expect("it is there");
    let options = BlockOptions { read_only: true, ..BlockOptions::default() };
    let said = disk.run(options, "cat /disk/file; echo more >> /disk/file; mkdir /disk/new; rm /disk/file");
    assert!(said.starts_with("text\n") && said.contains("read-only"), "{said}");
    assert!(std::fs::read(&disk.0).expect("it is there") == before);
}

#[test]
fn a_disk_without_a_file_system_is_named_and_left_alone() {
    let disk = DiskFile::new("zeros");
    disk.open().set_len(0).and_then(|()| disk.open().set_len(SIZE)).expect("it can be emptied");
    let said = disk.run(BlockOptions::default(), "ls /disk; mount");
    assert!(said.contains("disk has no FAT file system"), "{said}");
    assert!(std::fs::read(&disk.0).expect("it is there").iter().all(|byte| *byte == 0));
}

//! Files on a disk in memory, against a model, and against the host's tools where they are installed.

use super::*;
use crate::page_cache::tests::MemoryDisk;
use hadris_fat::sync::format::{FatFormatOptions, FatVolumeFormatter};
use std::collections::BTreeMap;
use std::process::Command;

/// A disk with an empty file system.
fn formatted(bytes: usize) -> MemoryDisk {
    let disk = MemoryDisk::new(bytes);
    let cache = Arc::new(Lock::new(PageCache::new(disk.clone())));
    let options = FatFormatOptions::new(bytes as u64).volume_label("TEST");
    FatVolumeFormatter::format(Cursor { cache: cache.clone(), place: 0 }, options).unwrap();
    cache.lock().flush().unwrap();
    disk
}

fn mount(disk: &MemoryDisk) -> Fat<MemoryDisk> {
    Fat::mount(disk.clone(), true).unwrap()
}

const REWRITE: Opening = Opening(Opening::WRITE.0 | Opening::CREATE.0 | Opening::TRUNCATE.0);
const CHANGE: Opening = Opening(Opening::WRITE.0 | Opening::CREATE.0);

fn write(fat: &impl FileSystem, path: &str, how: Opening, to: u64, bytes: &[u8]) -> Result<()> {
    let file = fat.open(path, how)?;
    assert_eq!(file.write(to, bytes)?, bytes.len());
    Ok(())
}

fn read(fat: &impl FileSystem, path: &str) -> Result<Vec<u8>> {
    let file = fat.open(path, Opening::READ)?;
    let (mut whole, mut buffer) = (Vec::new(), [0; 1000]);
    loop {
        match file.read(whole.len() as u64, &mut buffer)? {
            0 => return Ok(whole),
            length => whole.extend_from_slice(&buffer[..length]),
        }
    }
}

/// The names in a directory, in order; of directories with a slash.
fn names(fat: &impl FileSystem, path: &str) -> Result<Vec<String>> {
    let (mut names, mut from) = (Vec::new(), Some(0));
    while let Some(place) = from {
        let (files, next) = fat.list(path, place)?;
        let name = |file: &FileInfo| {
            file.name().to_string() + if file.kind == file_kind::DIRECTORY { "/" } else { "" }
        };
        names.extend(files.iter().map(name));
        from = next;
    }
    names.sort();
    Ok(names)
}

#[test]
fn files_and_directories_are_as_they_were_left() {
    let disk = formatted(4 << 20);
    let fat = mount(&disk);
    assert_eq!(names(&fat, ""), Ok(vec![]));
    write(&fat, "A long name with spaces.text", REWRITE, 0, b"hello").unwrap();
    fat.make_directory("dir").unwrap();
    write(&fat, "dir/file", REWRITE, 0, b"one").unwrap();
    write(&fat, "dir/file", Opening(CHANGE.0 | Opening::APPEND.0), 0, b"+two").unwrap();
    write(&fat, "dir/file", CHANGE, 1, b"NE").unwrap();
    write(&fat, "dir/file", CHANGE, 10, b"end").unwrap();
    drop(fat);
    let fat = mount(&disk);
    assert_eq!(names(&fat, ""), Ok(vec!["A long name with spaces.text".into(), "dir/".into()]));
    assert_eq!(read(&fat, "dir/file").unwrap(), b"oNE+two\0\0\0end");
    assert_eq!(
        read(&fat, "a LONG name with spaces.TEXT").unwrap(),
        b"hello",
        "capitals do not matter to FAT"
    );
    write(&fat, "dir/file", REWRITE, 0, b"short").unwrap();
    assert_eq!(read(&fat, "dir/file").unwrap(), b"short");
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let disk = formatted(4 << 20);
    let fat = mount(&disk);
    fat.make_directory("dir").unwrap();
    write(&fat, "dir/file", REWRITE, 0, b"x").unwrap();
    let before = disk.0.lock().clone();
    let open = |path: &str, how| fat.open(path, how).err();
    assert_eq!(open("", Opening::READ), Some(Error::IsDirectory));
    assert_eq!(open("dir", Opening::READ), Some(Error::IsDirectory));
    assert_eq!(open("none", Opening::READ), Some(Error::NotFound));
    assert_eq!(open("none/file", CHANGE), Some(Error::NotFound));
    assert_eq!(open("dir/file/below", CHANGE), Some(Error::NotDirectory));
    assert_eq!(open("a:b", CHANGE), Some(Error::Invalid));
    assert_eq!(open(&"n".repeat(300), CHANGE), Some(Error::Invalid));
    assert_eq!(names(&fat, "dir/file"), Err(Error::NotDirectory));
    assert_eq!(fat.make_directory("dir"), Err(Error::Exists));
    assert_eq!(fat.remove("dir"), Err(Error::NotEmpty));
    assert_eq!(fat.rename("dir/file", "dir"), Err(Error::IsDirectory));
    assert_eq!(fat.rename("none", "dir"), Err(Error::NotFound));
    assert_eq!(fat.rename("dir", "dir/inside"), Err(Error::Invalid));
    let file = fat.open("dir/file", Opening::READ).unwrap();
    assert_eq!(file.write(0, b"y"), Err(Error::BadDescriptor));
    drop(file);
    let read_only = Fat::mount(disk.clone(), false).unwrap();
    assert_eq!(read_only.open("dir/file", CHANGE).err(), Some(Error::ReadOnly));
    assert_eq!(read_only.open("new", CHANGE).err(), Some(Error::ReadOnly));
    assert_eq!(read_only.remove("dir/file"), Err(Error::ReadOnly));
    assert!(*disk.0.lock() == before);
    assert!(Fat::mount(MemoryDisk::new(1 << 20), true).is_err(), "zeros are no file system");
}

#[test]
fn a_disk_that_is_full_says_so_and_takes_more_when_there_is_room() {
    let disk = formatted(1 << 20);
    let fat = mount(&disk);
    let block = [7; 30_000];
    let mut written = 0;
    let full = loop {
        match write(&fat, &format!("file{written}"), REWRITE, 0, &block) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full, Error::NoSpace);
    assert!(written > 20, "{written}");
    fat.remove("file3").unwrap();
    fat.remove(&format!("file{written}")).unwrap();
    write(&fat, "again", REWRITE, 0, &block).unwrap();
    for number in (0..written).filter(|number| *number != 3) {
        assert!(read(&fat, &format!("file{number}")).unwrap() == block);
    }
    check_with_host(&disk, &BTreeMap::new());
}

#[test]
fn renaming_takes_the_place_of_what_was_there() {
    let disk = formatted(4 << 20);
    let fat = mount(&disk);
    fat.make_directory("a").unwrap();
    fat.make_directory("b").unwrap();
    write(&fat, "a/x", REWRITE, 0, b"from a").unwrap();
    write(&fat, "b/x", REWRITE, 0, b"from b").unwrap();
    fat.rename("a/x", "b/x").unwrap();
    assert_eq!((read(&fat, "b/x").unwrap(), read(&fat, "a/x")), (b"from a".to_vec(), Err(Error::NotFound)));
    fat.rename("b/x", "b/X").unwrap();
    assert_eq!(names(&fat, "b").unwrap(), ["X"]);
    fat.rename("b", "a/b").unwrap();
    assert_eq!(read(&fat, "a/b/X").unwrap(), b"from a");
    for path in ["a/empty", "empty"] {
        write(&fat, path, REWRITE, 0, b"").unwrap();
    }
    fat.rename("empty", "a/empty").unwrap();
    assert_eq!(names(&fat, "").unwrap(), ["a/"]);
    check_with_host(&disk, &BTreeMap::from([("a/b/X".to_string(), b"from a".to_vec())]));
}

/// What the host's tools say of a disk, where there are any.
fn check_with_host(disk: &MemoryDisk, files: &BTreeMap<String, Vec<u8>>) {
    let name = format!("minios-fat-{}-{:p}", std::process::id(), Arc::as_ptr(&disk.0));
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, &*disk.0.lock()).unwrap();
    if let Ok(fsck) = Command::new("/usr/sbin/fsck.vfat").arg("-n").arg(&path).output() {
        let said = String::from_utf8_lossy(&fsck.stdout).into_owned();
        assert!(fsck.status.success(), "fsck.vfat finds: {said}");
    }
    for (file, bytes) in files {
        let source = format!("::{file}");
        if let Ok(copy) = Command::new("mtype").arg("-i").arg(&path).arg(source).output() {
            assert!(copy.status.success() && copy.stdout == *bytes, "mtools read {file}: {:?}", copy.stderr);
        }
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn random_changes_are_as_in_a_model_and_the_hosts_tools_agree() {
    for (seed, size) in [(1, 2 << 20), (2, 20 << 20), (3, 70 << 20)] {
        let mut random = fastrand::Rng::with_seed(seed);
        let disk = formatted(size);
        let mut fat = mount(&disk);
        let mut model: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for directory in ["d0", "d1", "d1/Deeper than that"] {
            fat.make_directory(directory).unwrap();
        }
        for _ in 0..600 {
            change(&mut random, &fat, &mut model);
            if random.u32(..100) == 0 {
                fat = mount(&disk);
            }
        }
        for (path, bytes) in &model {
            assert!(read(&fat, path).unwrap() == *bytes, "{path}");
        }
        check_with_host(&disk, &model);
    }
}

/// A random path.
fn path(random: &mut fastrand::Rng) -> String {
    let directory = random.choice(["", "d0/", "d1/", "d1/Deeper than that/"]).unwrap();
    format!("{directory}File number {}", random.u32(..12))
}

/// Does something to a file, and to its model.
fn change(random: &mut fastrand::Rng, fat: &impl FileSystem, model: &mut BTreeMap<String, Vec<u8>>) {
    let path = path(random);
    let mut bytes = vec![0; random.usize(..9000)];
    random.fill(&mut bytes);
    match random.u32(..6) {
        0 => {
            write(fat, &path, REWRITE, 0, &bytes).unwrap();
            model.insert(path, bytes);
        }
        1 | 2 => {
            write(fat, &path, Opening(CHANGE.0 | Opening::APPEND.0), 0, &bytes).unwrap();
            model.entry(path).or_default().extend_from_slice(&bytes);
        }
        3 => {
            let old = model.entry(path.clone()).or_default();
            let to = random.usize(..=old.len() + 100);
            write(fat, &path, CHANGE, to as u64, &bytes).unwrap();
            if !bytes.is_empty() {
                old.resize(old.len().max(to + bytes.len()), 0);
                old[to..to + bytes.len()].copy_from_slice(&bytes);
            }
        }
        4 => {
            let expected = model.remove(&path).map(drop).ok_or(Error::NotFound);
            assert_eq!(fat.remove(&path), expected, "{path}");
        }
        _ => {
            let to = self::path(random);
            let renamed = fat.rename(&path, &to);
            match model.remove(&path) {
                None => assert_eq!(renamed, Err(Error::NotFound)),
                Some(bytes) => {
                    assert_eq!(renamed, Ok(()), "{path} {to}");
                    model.insert(to, bytes);
                }
            }
        }
    }
}

#[test]
fn days_are_dates() {
    let cases = [(0, (1970, 1, 1)), (59, (1970, 3, 1)), (11_016, (2000, 2, 29)), (11_017, (2000, 3, 1))];
    let more =
        [(19_782, (2024, 2, 29)), (20_088, (2024, 12, 31)), (20_089, (2025, 1, 1)), (47_541, (2100, 3, 1))];
    for (days, expected) in cases.into_iter().chain(more) {
        assert_eq!(date(days), expected, "{days}");
    }
}
